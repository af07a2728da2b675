"""Engine processes and the launcher, as programs: nothing of them outlives its neuron, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio
from fakes.agents_host import engine_table, model
from fakes.patience import SAFETY_NET_S
from fakes.process import environment

from neuron.agent.process import launcher
from neuron.agent.process.engine_output import EngineOutput
from neuron.agent.process.engine_process import EngineProcess
from neuron.agent.process.survivors import MARK, end_survivors, start_time

ABANDON_S = 0.3
"""How long a random call waits before its client leaves: half of the calls are abandoned on purpose."""
"""How often the neuron is killed at a random moment; 100 takes about 4 minutes."""

SLEEP = "import time; time.sleep(600)"
TREE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], OPTIONS); {SLEEP}"


def is_alive(pid: int) -> bool:
    return start_time(pid) is not None


def wait_until(condition) -> None:
    deadline = time.monotonic() + SAFETY_NET_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def launched(program: str, *arguments: str):
    """The launcher with a Python program below it."""
    command = [sys.executable, "-I", "-S", launcher.__file__, sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("start_new_session", ["start_new_session=False", "start_new_session=True"])
@pytest.mark.parametrize("how", ["close", "T", "K"])
def test_launcher_ends_every_descendant(how: str, start_new_session: str) -> None:
    with launched(TREE.replace("OPTIONS", start_new_session)) as process:
        wait_until(lambda: len(launcher.descendants(process.pid)) == 2)
        below = launcher.descendants(process.pid)
        if how == "close":
            process.stdin.close()
        else:
            process.stdin.write(how.encode())
            process.stdin.flush()
        process.wait(SAFETY_NET_S)
        assert not any(map(is_alive, below))


@pytest.mark.parametrize(
    ("program", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 11)", 139)]
)
def test_launcher_exits_as_its_engine_did(program: str, status: int) -> None:
    with launched(program) as process:
        assert process.wait(SAFETY_NET_S) == status


async def test_output_of_an_engine_is_kept_and_its_end_is_known(tmp_path) -> None:
    output = EngineOutput(tmp_path / "m.log")
    process = EngineProcess(["sh", "-c", "echo out; echo err >&2; exit 3"], os.environ, output, stop_s=1)
    assert await process.run() == 3
    assert output.recent() == b"out\nerr\n"
    assert (tmp_path / "m.log").read_bytes() == b"out\nerr\n"


async def test_cancellation_ends_the_engine() -> None:
    process = EngineProcess(["sleep", "600"], os.environ, EngineOutput(None), stop_s=60)
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        pid = process.pid
        nursery.cancel_scope.cancel()
    assert not is_alive(pid)


async def test_stopped_engine_can_be_killed() -> None:
    """SIGSTOP does not keep it, as it would keep SIGTERM waiting."""
    process = EngineProcess(["sleep", "600"], os.environ, EngineOutput(None), stop_s=60)
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        with trio.fail_after(SAFETY_NET_S):
            while not launcher.descendants(process.pid):
                await trio.sleep(0.01)
            os.kill(launcher.descendants(process.pid)[0], signal.SIGSTOP)
            process.kill()
    assert process.exit_code == 137


async def test_killed_launcher_leaves_nothing(tmp_path) -> None:
    """The engine dies with it; a child in a session of its own is killed by the neuron."""
    command = [sys.executable, "-c", TREE.replace("OPTIONS", "start_new_session=True")]
    process = EngineProcess(command, os.environ, EngineOutput(None), stop_s=60)
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        with trio.fail_after(SAFETY_NET_S):
            while len(below := launcher.descendants(process.pid)) < 2:
                await trio.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not any(map(is_alive, below))


def test_survivors_are_found_by_their_mark_when_the_launcher_was_killed_too(tmp_path) -> None:
    env = os.environ | {MARK: str(tmp_path)}
    with subprocess.Popen(["sleep", "600"], env=env) as orphan:
        try:
            wait_until(lambda: MARK.encode() in Path(f"/proc/{orphan.pid}/environ").read_bytes())
            assert end_survivors([], tmp_path / "other") == []
            assert end_survivors([], tmp_path) == [orphan.pid]
        finally:
            orphan.kill()


@contextmanager
def neuron_process(folder: Path, text: str):
    """`cortex neuron serve` as a program. Its base URL; killed at the end."""
    path = folder / "neuron.toml"
    path.write_text('[api]\nlisten = "127.0.0.1:0"\n' + text)
    command = [sys.executable, "-m", "gateway.cli", "neuron", "serve", "-c", str(path)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as popen:
        try:
            for line in popen.stderr:
                if '"listening"' in line:
                    yield popen, json.loads(line)["api"]
                    return
            raise AssertionError("it ended before it listened")
        finally:
            popen.kill()


def processes_of(folder: Path) -> set[int]:
    """Every process that has the mark of this neuron's engines."""
    mark = f"{MARK}={folder / 'neuron-state'}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except OSError:
                continue
    return {pid for pid in found if is_alive(pid)}


def test_orphan_whose_launcher_was_killed_with_the_neuron_is_ended_at_the_next_start(tmp_path) -> None:
    """The child that escaped has neither launcher nor process group."""
    text = engine_table() + model("a", "--escaped-child", preload=True)
    with neuron_process(tmp_path, text) as (popen, _):
        wait_until(lambda: len(processes_of(tmp_path)) == 3)
        popen.send_signal(signal.SIGSTOP)  # so that its pipe stays open while its launchers die
        first = processes_of(tmp_path)
        for pid in first:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"launcher.py" in command:
                os.kill(pid, signal.SIGKILL)
        popen.send_signal(signal.SIGKILL)
        popen.wait()
    assert processes_of(tmp_path)
    with neuron_process(tmp_path, engine_table() + model("a")):
        assert not first & processes_of(tmp_path)


def test_sighup_reads_the_configuration_again(tmp_path) -> None:
    """A faulty file changes nothing, and the log has its faults."""
    text = '[api]\nlisten = "127.0.0.1:0"\n' + engine_table()
    with neuron_process(tmp_path, engine_table() + model("a")) as (popen, url):
        for content, event in [("[api", "config_refused"), (text + model("a") + model("b"), "config_reloaded")]:
            (tmp_path / "neuron.toml").write_text(content)
            popen.send_signal(signal.SIGHUP)
            assert any(event in line for line in popen.stderr)
        models = httpx.get(f"{url}/models", trust_env=False, timeout=SAFETY_NET_S).json()
        assert [entry["id"] for entry in models] == ["a", "b"]


def test_neuron_that_cannot_listen_says_so(tmp_path) -> None:
    with neuron_process(tmp_path, engine_table()) as (_, url):
        other = tmp_path / "other"
        other.mkdir()
        (other / "neuron.toml").write_text(f'[api]\nlisten = "{url.removeprefix("http://")}"\n')
        result = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "neuron", "serve", "-c", str(other / "neuron.toml")],
            env=environment(), capture_output=True, text=True, timeout=SAFETY_NET_S, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert "cortex: cannot listen on" in result.stderr
    assert "Traceback" not in result.stderr
