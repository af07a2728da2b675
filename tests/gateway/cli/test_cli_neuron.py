"""`cortex neuron`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.main import main

GOOD = '[engines.a]\nkind = "vllm"\n[[models]]\nid = "m"\nengine = "a"\n'


def run(*arguments: object):
    return CliRunner().invoke(main, ["neuron", *map(str, arguments)])


def test_check_accepts_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "neuron.toml"
    path.write_text(GOOD)

    result = run("check", "-c", path)

    assert (result.exit_code, result.stdout) == (0, "ok: 1 engine, 1 model\n")


def test_check_finds_the_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neuron.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)

    assert run("check").exit_code == 0


def test_check_lists_every_fault_and_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "neuron.toml"
    path.write_text('[api]\nopen = 1\n[engines.a]\nkind = "vlm"\n')

    result = run("check", "-c", path)

    assert result.exit_code == 1
    assert f"error: {path}:2: api.open: must be true or false, not an integer" in result.stderr
    assert f"error: {path}:4: engines.a.kind: must be one of" in result.stderr
    assert "did you mean `vllm`?" in result.stderr


def test_check_without_a_file_names_the_command_that_writes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run("check")

    assert result.exit_code == 1
    assert "`cortex neuron init` writes one" in result.stderr
