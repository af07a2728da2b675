"""Tables on terminals of all widths and in pipes."""

from __future__ import annotations

import pytest

from gateway.cli import terminal

MODEL = "Qwen/Qwen3-Embedding-0.6B"
TITLE = "aliases in /etc/cortex/clusters/vilnius/models.toml"
WORDS = ("model", "neuron", "could be loaded on", MODEL, "quadbrat", "beast, benjy, quadbrat, tallbeast")


@pytest.fixture
def wide_table():
    """A table that needs 74 columns."""
    table = terminal.table(TITLE, *WORDS[:3])
    table.add_row(*WORDS[3:])
    return table


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def test_output_to_a_pipe_is_not_folded(wide_table, capsys):
    """A name can be found with grep, whatever its length."""
    wide_table.add_row("x" * 300, "y" * 300, "z" * 300)

    terminal.console().print(wide_table)

    title, _, first, second = capsys.readouterr().out.splitlines()
    assert title.rstrip() == TITLE
    assert first.split() == [MODEL, "quadbrat", "beast,", "benjy,", "quadbrat,", "tallbeast"]
    assert second.split() == ["x" * 300, "y" * 300, "z" * 300]


def test_columns_sets_the_width(wide_table, capsys, monkeypatch):
    """Also where the output is not a terminal."""
    monkeypatch.setenv("COLUMNS", "60")

    terminal.console().print(wide_table)

    _, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(MODEL in line for line in lines), "names in the first column are folded last"


def test_terminal_too_narrow_for_a_name_folds_it(wide_table, capsys, monkeypatch):
    """Nothing is cut off."""
    monkeypatch.setenv("COLUMNS", "40")

    terminal.console().print(wide_table)

    _, *lines = capsys.readouterr().out.splitlines()
    assert not any(MODEL in line for line in lines)
    assert sorted("".join("".join(lines).split())) == sorted("".join(WORDS).replace(" ", ""))


def test_a_title_is_not_folded_at_the_width_of_its_table(capsys, monkeypatch):
    """So a path in it can be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    short = terminal.table(TITLE, "alias")
    short.add_row("a")

    terminal.console().print(short)

    assert capsys.readouterr().out.splitlines()[0].rstrip() == TITLE
