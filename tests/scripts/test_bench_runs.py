"""The bench as a process, against gateways that are healthy, wrong, missing, or answer with another model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from fakes.engine import SimEngine, an_engine_gateway
from fakes.patience import SAFETY_NET_S
from fakes.process import environment
from fakes.running import LARGE, SMALL, running_gateway

from neuron.simulated.faults import HttpError, WrongModel
from neuron.simulated.fleet import neuron

BENCH = Path(__file__).parents[2] / "scripts" / "bench.py"


async def bench(folder, *arguments):
    """Run it to its end against a gateway: its output, its exit code and its samples."""
    command = [sys.executable, str(BENCH), *map(str, arguments), "--out", str(folder)]
    env = environment(COLUMNS="200")

    def run():
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=3 * SAFETY_NET_S, check=False, cwd=folder
        )

    done = await trio.to_thread.run_sync(run)
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return done, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (None, 0),
        (WrongModel(model=SMALL, echo=LARGE), 3),
        (HttpError(model=SMALL), 2),
    ],
)
async def test_exit_code_is_the_result(tmp_path, fault, code):
    """0 all correct, 2 a subject that does not answer, 3 one that is answered by another model than its target."""
    beast = neuron("beast", [24576, 24576], [SMALL, LARGE], speed=1000)
    async with running_gateway(tmp_path, [beast]) as cortex:
        if fault is not None:
            beast.faults.add(fault)
        done, samples = await bench(tmp_path, "-e", cortex.url, "-n", 1)

    assert done.returncode == code, done.stdout + done.stderr
    assert {sample["subject"] for sample in samples} == {"helexa/small", "helexa/large"}
    assert "Traceback" not in done.stderr
    assert (tmp_path / "plot.html").read_text().startswith("<!doctype html>")


async def test_wrong_answer_is_exit_code_1(tmp_path):
    """An engine with the wrong answer."""

    class Ignorant(SimEngine):
        async def _handle(self, exchange):
            if exchange.request.method == "POST":
                choice = {"index": 0, "message": {"role": "assistant", "content": "Atlanta"}, "finish_reason": "stop"}
                await exchange.respond_json(200, {"model": SMALL, "choices": [choice]})
                return
            await super()._handle(exchange)

    async with an_engine_gateway(Ignorant(SMALL)) as (_, url):
        done, samples = await bench(tmp_path, SMALL, "-e", url, "-n", 1, "--case", "short")

    assert done.returncode == 1, done.stdout + done.stderr
    assert {sample["text"] for sample in samples} == {"Atlanta"}


async def test_missing_gateway_is_exit_code_2(tmp_path):
    """With one line that has the gateway's address."""
    done, samples = await bench(tmp_path, "-e", "http://127.0.0.1:1")

    assert done.returncode == 2
    assert samples == []
    assert done.stderr.startswith("bench: ")
    assert "127.0.0.1:1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_demo_starts_its_own_fleet_and_shows_the_ratio(tmp_path):
    """Large takes 2.68 times as long as small, beside the reference, at any speed; no process is left."""
    done, samples = await bench(tmp_path, "--demo", "--speed", 50, "-n", 2, "--case", "short")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2.68" in done.stdout
    assert {sample["phase"] for sample in samples} == {"cold", "warm-up", "measured"}
    assert {sample["via"] for sample in samples} == {"gateway", "neuron"}
