"""`cortex demo`: start it, run the commands that it prints, press Ctrl-C."""

import re
import socket
import subprocess
import time

import pytest
import trio
from fakes.patience import SAFETY_NET_S
from fakes.process import environment, running_cortex

from gateway.cli.commands import demo as demo_command
from gateway.cli.demo import server as demo_server
from gateway.server.listen import CannotListen

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"

# Each number has two lines: a heading and the command.
COMMAND = re.compile(r"^  (\d)  .+\n     (.+)$", re.MULTILINE)


def commands(welcome):
    return {int(number): command for number, command in COMMAND.findall(welcome)}


def bash(command):
    """Run a command exactly as printed."""
    return subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=SAFETY_NET_S, check=True
    ).stdout


@pytest.fixture
def demo(tmp_path):
    with running_cortex("demo", "--dir", tmp_path / "a folder", "--port", 0, "--speed", 50) as process:
        yield process


def test_demo_commands_work_as_printed(demo):
    """Every printed command does what its heading says, the swap takes effect, and Ctrl-C stops the demo."""
    paste = commands(demo.read_until("Ctrl-C ends it"))

    listed = bash(paste[1])
    streamed = bash(paste[2])
    before = bash(paste[4])
    bash(paste[3])
    after = answer_from(LARGE, paste[4])
    shown = bash(paste[5])
    slept = bash(paste[6])
    asleep = bash(paste[5])
    woken = bash(paste[7])
    demo.interrupt()
    code, out, err = demo.end()

    assert sorted(paste) == [1, 2, 3, 4, 5, 6, 7]
    assert all(f'"{tier}"' in listed for tier in ("helexa/small", "helexa/balanced", "helexa/large"))
    assert streamed.count("data: ") > 3
    assert streamed.endswith("data: [DONE]\n\n")
    assert f"x-cortex-model: {SMALL}" in before
    assert "Tbilisi" in after
    assert re.search(rf"helexa/small +{re.escape(LARGE)}", shown)
    assert "catalogue generation 3" in shown  # the file, and the alias that moved once its target was warm
    assert re.search(r"beast +healthy +Simulated 24 GB", shown)
    assert "Qwen/Qwen3-8B: " in slept
    assert re.search(r"beast +asleep: its memory was wanted", asleep)
    assert "x-cortex-model: Qwen/Qwen3-8B" in woken
    assert "x-cortex-node: beast" in woken
    assert code == 0
    assert "stopping" in out
    assert err == ""


def answer_from(model, command):
    """Run the command until this model answers."""
    until = time.monotonic() + SAFETY_NET_S
    while time.monotonic() < until:
        answer = bash(command)
        if f"x-cortex-model: {model}" in answer:
            return answer
    raise AssertionError(f"no answer from {model} within {SAFETY_NET_S} s: {answer}")


def test_demo_interrupted_twice_ends_at_once(tmp_path):
    """The second Ctrl-C cuts running streams: exit code 130, no traceback."""
    with running_cortex("demo", "--dir", tmp_path, "--port", 0, "--speed", 0.05) as process:
        paste = commands(process.read_until("Ctrl-C ends it"))
        with subprocess.Popen(["bash", "-c", "exec " + paste[2]], stdout=subprocess.PIPE) as client:
            client.stdout.readline()  # the stream has begun, and would last a minute
            process.interrupt()
            process.read_until("stopping")
            process.interrupt()
            code, _, err = process.end()

    assert code == 130
    assert "Traceback" not in err


def test_demo_uses_another_port_if_its_own_is_in_use(tmp_path):
    """The printed commands have the port that is used instead."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with running_cortex("demo", "--dir", tmp_path, "--port", taken, "--speed", 50) as process:
            welcome = process.read_until("Ctrl-C ends it")
            listed = bash(commands(welcome)[1])
            process.interrupt()
            code, _, err = process.end()

    assert f"port {taken}" in err
    assert f":{taken}/" not in welcome
    assert "helexa/small" in listed
    assert code == 0


def test_demo_port_taken_before_it_listens_is_replaced(tmp_path, monkeypatch):
    """Another process may take a port while the demo writes its files."""
    tried = []

    async def taken_once(home, speed, ports):
        tried.append(ports)
        await trio.lowlevel.checkpoint()
        if len(tried) == 1:
            raise ExceptionGroup("in a nursery", [CannotListen("cannot listen")])
        return 0

    monkeypatch.setattr(demo_server, "run", taken_once)

    assert demo_command.run(tmp_path, speed=1, port=0) == 0
    assert len(tried) == 2


def test_demo_does_not_overwrite_files_of_others(tmp_path):
    """A configuration that the demo did not write is an error."""
    existing = tmp_path / "models.toml"
    existing.write_text("# precious\n")

    with running_cortex("demo", "--dir", tmp_path, "--port", 0) as process:
        code, out, err = process.end()

    assert code == 1
    assert out == ""
    assert [f"cortex demo: {existing} was not written by the demo and is kept; use --dir to name another folder"] == (
        err.splitlines()
    )
    assert existing.read_text() == "# precious\n"
