"""`cortex neuron init`, `status` and `logs`: what they find, write and print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
import trio
from click.testing import CliRunner
from fakes.agents_host import engine_table, model, running_agent

from catalogue.load import parse
from gateway.cli.main import main
from gateway.config.load import load
from neuron.agent.config.load import parse_neuron_file
from neuron.agent.devices.devices import CpuDevice
from neuron.agent.host_survey import cortex_toml, models_toml, neuron_toml, survey


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """A home folder with models, and programs on its PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("llama-server", "vllm"):
        (programs / name).touch(0o755)
    files = [
        "models/Qwen3-1.7B-Q8_0.gguf", "models/deep/Big-00001-of-00002.gguf", "models/deep/Big-00002-of-00002.gguf",
        "models/mmproj-x.gguf", "models/readme.txt",
        ".cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/abc/model.safetensors",
        ".cache/huggingface/hub/models--org--empty/snapshots/abc/config.json",
    ]  # fmt: skip
    for number, name in enumerate(files):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number * 2**20))
    return {"PATH": str(programs), "HOME": str(tmp_path)}


DEVICES = CpuDevice("none")


def test_engines_and_models_are_found(host: dict[str, str]) -> None:
    found = survey(host, [], DEVICES)

    assert found.engines.keys() >= {"llamacpp", "vllm"}
    assert {(entry.id, entry.kind) for entry in found.models} == {
        ("Qwen3-1.7B-Q8_0", "llamacpp"), ("Big", "llamacpp"), ("Qwen/Qwen3-8B", "vllm"),
    }  # fmt: skip
    assert [entry.size_mb for entry in found.models] == sorted(entry.size_mb for entry in found.models)


def test_models_without_an_engine_are_named(host: dict[str, str]) -> None:
    (Path(host["PATH"]) / "vllm").unlink()
    found = survey(host, [], DEVICES)

    assert found.skipped == ("Qwen/Qwen3-8B",)
    assert "# Found, but no engine for it: Qwen/Qwen3-8B" in neuron_toml(found)


def test_files_are_valid_and_belong_together(host: dict[str, str], tmp_path: Path) -> None:
    found = survey(host, [], DEVICES)
    loaded = parse_neuron_file(neuron_toml(found).encode(), tmp_path / "neuron.toml")
    assert loaded.warnings == ()
    assert len(loaded.settings.models) == 3
    catalogue = parse(models_toml(found, "chat").encode(), path="models.toml", generation=1, loaded_at=0.0)
    assert catalogue.warnings == ()
    assert {profile.harness for profile in catalogue.models.values()} <= loaded.settings.engines.keys()
    assert catalogue.aliases["chat"].target == found.models[0].id
    (tmp_path / "cortex.toml").write_text(cortex_toml())
    assert (
        load(tmp_path / "cortex.toml", {}).settings.neurons[0].endpoint.endswith(str(loaded.settings.api.listen.port))
    )


def test_every_commented_key_is_valid_too(host: dict[str, str], tmp_path: Path) -> None:
    text = "\n".join(
        line.removeprefix("# ") if line.startswith("# vram_mb") else line
        for line in neuron_toml(survey(host, [], DEVICES)).splitlines()
    )
    assert parse_neuron_file(text.encode(), tmp_path / "neuron.toml").settings.models[0].vram_mb is not None


def test_host_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuron.agent.host_survey.find_spec", lambda _: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    found = survey({"PATH": "", "HOME": str(tmp_path)}, [], DEVICES)
    text = neuron_toml(found)

    assert (found.engines, found.models) == ({}, ())
    assert "No engine was found" in text
    assert tomli.loads(text) == {"api": {}}


def test_init_writes_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    first = CliRunner().invoke(main, ["neuron", "init", "--gateway"])
    assert first.exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"neuron.toml", "cortex.toml", "models.toml"}
    again = CliRunner().invoke(main, ["neuron", "init"])
    assert again.exit_code == 1
    assert again.stderr == "error: neuron.toml exists already; --force replaces it\n"
    both = CliRunner().invoke(main, ["neuron", "init", "--gateway"])
    assert "cortex.toml, models.toml exist already; --force replaces them" in both.stderr
    assert CliRunner().invoke(main, ["neuron", "init", "--force"]).exit_code == 0
    assert "no such folder: nowhere" in CliRunner().invoke(main, ["neuron", "init", "nowhere"]).stderr


# status, logs .........................................................................................................


async def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli", "neuron", *map(str, arguments)]
    return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)


async def test_status_and_logs_of_a_running_neuron(tmp_path: Path) -> None:
    text = '[api]\nlisten = "0.0.0.0:0"\ntoken = "t"\n' + engine_table() + model("org/m")
    async with running_agent(tmp_path, text, token="t") as agent:
        await agent.load("org/m")
        shown = await cli("status", "--url", agent.url, "-c", agent.path)  # the token is that of the file
        assert shown.returncode == 0, shown.stderr
        assert b"org/m" in shown.stdout
        assert b"loaded" in shown.stdout
        state = json.loads((await cli("status", "--url", agent.url, "-c", agent.path, "--json")).stdout)
        assert state["models"][0]["status"] == "loaded"
        logs = await cli("logs", "org/m", "--url", agent.url, "--token", "t")
        assert b"serves org/m" in logs.stdout
        unknown = await cli("logs", "zzz", "--url", agent.url, "--token", "t")
        assert (unknown.returncode, b"unknown model 'zzz'" in unknown.stderr) == (1, True)
        refused = await cli("status", "--url", agent.url, "--token", "wrong")
        assert (refused.returncode, b"token is missing or wrong" in refused.stderr) == (1, True)


async def test_neuron_that_does_not_answer_is_exit_code_2() -> None:
    shown = await cli("status", "--url", "http://127.0.0.1:9")
    assert shown.returncode == 2
    assert shown.stderr == b"error: cannot reach http://127.0.0.1:9: Connection refused\n"
