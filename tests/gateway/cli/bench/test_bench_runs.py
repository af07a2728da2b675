"""`cortex bench` as a process: against gateways that are right, wrong, missing, or answer with another model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from fakes.bench_answers import ANSWERS
from fakes.engine import SimEngine, an_engine_gateway
from fakes.patience import SAFETY_NET_S
from fakes.process import environment, on_a_terminal
from fakes.running import LARGE, SMALL, running_gateway

from gateway.cli.bench.questions import questions
from neuron.simulated.faults import HttpError, WrongModel
from neuron.simulated.fleet import neuron

SCRIPT = Path(__file__).parents[4] / "scripts" / "bench.py"


async def bench(folder, *arguments, command=("-m", "gateway.cli", "bench")):
    """Run it to its end: the process and the samples."""
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, *map(str, command), *map(str, arguments), "--out", str(folder / "out")],
            env=environment(COLUMNS="200"),
            capture_output=True,
            text=True,
            timeout=3 * SAFETY_NET_S,
            check=False,
            cwd=folder,
        )
    )
    assert "Traceback" not in done.stderr, done.stderr
    lines = (folder / "out" / "samples.jsonl").read_text().splitlines()
    return done, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("fault", "code"), [(None, 0), (WrongModel(model=SMALL, echo=LARGE), 3), (HttpError(model=SMALL), 2)]
)
async def test_exit_code_is_the_result(tmp_path, fault, code):
    """0 measured, 2 a tier that does not answer, 3 one that is answered by another model than its target."""
    beast = neuron("beast", [24576, 24576], [SMALL, LARGE], speed=1000)
    async with running_gateway(tmp_path, [beast]) as cortex:
        if fault is not None:
            beast.faults.add(fault)
        done, samples = await bench(tmp_path, "-e", cortex.url, "--quick")

    assert done.returncode == code, done.stdout + done.stderr
    assert {sample["tier"] for sample in samples} == {"helexa/small", "helexa/large"}
    assert "These figures are simulated." in (tmp_path / "out" / "report.html").read_text()
    assert done.stderr.splitlines()[0] == "step 1 of 7: probe: helexa/small (1 request)"
    assert "correct answers" not in done.stdout


class Scholar(SimEngine):
    """An engine that knows every right answer, but those to the questions in `unknown`."""

    def __init__(self, *unknown):
        super().__init__(SMALL)
        asked = {question.prompt: question.id for question in questions()}
        self.answers = {prompt: "No idea." if name in unknown else ANSWERS[name] for prompt, name in asked.items()}

    async def _handle(self, exchange):
        if exchange.request.method != "POST":
            await super()._handle(exchange)
            return
        prompt = json.loads(exchange.request.body)["messages"][0]["content"]
        answer = self.answers.get(prompt.rpartition("\n")[2], self.answers.get(prompt, "Tbilisi"))
        delta = {"content": answer}
        if isinstance(answer, tuple):
            call = {"name": answer[0], "arguments": json.dumps(answer[1])}
            delta = {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": call}]}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        chunks = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage},
        ]
        events = [json.dumps({"model": SMALL, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
        await exchange.respond(200, body.encode(), "text/event-stream")


async def test_correctness_of_a_real_engine_is_reported(tmp_path):
    """A full run by the script: 40 of 42, by kind, as tables, JSON and HTML; --min-correct is the exit code 1."""
    async with an_engine_gateway(Scholar("capital", "gcd")) as (_, url):
        done, samples = await bench(tmp_path, SMALL, "-e", url, "--json", "--min-correct", 97, command=(SCRIPT,))

    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    [tier] = summary["tiers"]
    assert (tier["correct"]["facts"], tier["correct"]["code"], sum(tier["correct"].values())) == (6, 6, 40)
    assert [load["concurrency"] for load in summary["loads"]] == [1, 4, 16]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "40 of 42" in page
    assert "simulated" not in page
    wrong = [(sample["question"], sample["verdict"]) for sample in samples if sample["verdict"] != "correct"]
    assert sorted(wrong) == [("capital", "wrong answer"), ("gcd", "wrong answer")]


async def test_missing_gateway_and_unknown_tier_are_exit_code_2(tmp_path):
    """With one line that says what is wrong."""
    done, samples = await bench(tmp_path, "-e", "http://127.0.0.1:1")
    assert (done.returncode, samples, len(done.stderr.splitlines())) == (2, [], 1)
    assert "no answer from http://127.0.0.1:1" in done.stderr
    async with an_engine_gateway(Scholar()) as (_, url):
        done, _ = await bench(tmp_path, "huge", "-e", url)
    assert done.returncode == 2
    assert f"does not list huge; it lists {SMALL}" in done.stderr


async def test_demo_starts_its_own_fleet_and_shows_the_ratio(tmp_path):
    """The ratio stands beside the reference; GPUs and a cold start are there."""
    done, samples = await bench(tmp_path, "--demo", "--speed", 50, "--quick")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "times as long as helexa/small (reference: 2.5 s, 6.7 s, ratio 2.68)" in done.stdout
    assert {sample["phase"] for sample in samples} == {"cold", "probe", "question", "load"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Simulated 24 GB (24 GB)" in page
    assert "A cold start" in page


def test_terminal_has_a_bar_with_the_time_left(tmp_path):
    """It vanishes at the end."""
    with on_a_terminal("bench", "--demo", "--speed", 50, "--quick", "--out", tmp_path / "out") as process:
        process.read_until("left", times=3)
        process.read_until("report.html", times=1)
    assert "step 1 of" not in process.screen
