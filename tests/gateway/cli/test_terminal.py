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


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_for_a_terminal_and_for_what_takes_long(is_terminal, monkeypatch, capsys):
    """From the third second on, with the time that is left; in a pipe only the lines that stay."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: is_terminal, raising=False)
    lines = []
    with terminal.Progress(lines.append) as progress:
        progress.show("loading", 1.0, 60.0)
        assert capsys.readouterr().err == ""
        now[0] = 5.0
        progress.show("loading", 6.0, 60.0)
        shown = capsys.readouterr().err
        progress.report("loaded")
        cleared = capsys.readouterr().err

    assert lines == ["loaded"]
    assert ("loading: 6 s, at most 54 s left" in shown) == is_terminal
    assert (cleared == "\r\x1b[2K") == is_terminal
    assert (shown + cleared == "") == (not is_terminal)
