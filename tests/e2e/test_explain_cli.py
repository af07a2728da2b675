"""`cortex explain` against a running gateway: what the admin API says, and what a person reads."""

import json
import socket

import httpx
import pytest
import trio
from click.testing import CliRunner
from fakes.patience import until
from fakes.running import LARGE, PROBE, SMALL, running_gateway, settled
from structlog.testing import capture_logs

from gateway.cli import main
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

TOKEN = {"authorization": "Bearer secret"}
ASK = {"model": "helexa/small", "messages": PROBE, "max_tokens": 8}


@pytest.fixture
def admin(cortex):
    """The base URL of the admin API."""
    return f"http://{cortex.addresses.metrics}"


async def explained(admin, request_id, *options, token="secret"):  # noqa: S107 - the test gateway's
    """Exit code, standard output and standard error of the command."""
    arguments = ["explain", request_id, "--admin", admin, "--token", token, *options]
    with capture_logs():  # what the gateway logs meanwhile, in this process, would be taken for the command's output
        result = await trio.to_thread.run_sync(lambda: CliRunner().invoke(main.main, arguments))
    return result.exit_code, result.stdout, result.stderr


async def test_story_reads_from_question_to_end(cortex, http, admin):
    """What was asked for, how it ended, where the time went, and what happened, in order."""
    await http.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine"})
    await settled(cortex.gateway)
    code, out, _ = await explained(admin, "mine")
    lines = [line.strip() for line in out.splitlines()]

    assert code == 0
    assert lines[0] == "request mine"
    assert f"asked for  helexa/small: {SMALL} (the target of its alias), in generation 1 of the catalogue" in lines
    assert any(line.startswith("ended      ok with status 200, after ") for line in lines)
    assert any("first_byte " in line and line.startswith("time ") for line in lines)
    assert "8 completion" in out
    assert "beast, the only one to have it, was asked; answered after " in lines[-1]


async def test_story_of_trouble_says_who_failed_and_who_was_passed_over(tmp_path):
    """One line for each thing that happened, with the verdicts on all neurons under the choices."""
    neurons = [neuron(name, [24576, 24576], [SMALL, LARGE], speed=100) for name in ("a", "b")]
    neurons[0].faults.add(faults.HttpError(status=503, text="queue is full"))
    async with running_gateway(tmp_path, neurons) as running:
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as client:
            await client.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine"})
        await settled(running.gateway)
        code, out, _ = await explained(f"http://{running.addresses.metrics}", "mine")

    told = [line.split(maxsplit=2)[2] if "ms  " in line[:14] else line.strip() for line in out.splitlines()]
    events = told[told.index("") + 1 :]
    assert code == 0
    assert events[0] == "a was chosen"
    assert events[1:3] == ["a            chosen: 0 requests", "b            passed over: 0 requests"]
    assert events[3].startswith("a was asked; failed after ")
    assert events[3].endswith(": queue is full")
    assert events[4:7] == ["b was chosen", "a            failed before: this request", "b            chosen"]
    assert events[7].startswith("b was asked; answered after ")


async def test_id_used_twice_tells_both(cortex, http, admin):
    """Also as JSON, just as the admin API has it."""
    for model in ("helexa/small", "nobody/has-it"):
        await http.post("/v1/chat/completions", json=ASK | {"model": model}, headers={"x-request-id": "mine"})
        await settled(cortex.gateway)
    _, out, _ = await explained(admin, "mine")
    _, as_json, _ = await explained(admin, "mine", "--json")
    answer = (await http.get(f"{admin}/admin/requests/mine", headers=TOKEN)).json()

    assert out.count("request mine\n") == 2
    assert "model_not_found: model 'nobody/has-it' not found" in out
    assert json.loads(as_json) == answer
    assert [story["status"] for story in answer["requests"]] == [200, 404]


async def test_request_under_way_is_told_while_it_waits(http, admin, wire, beast):
    """And is told to be."""
    beast.faults.add(faults.Hang())
    async with wire() as client:
        await client.send(ASK, headers=("x-request-id: mine",))
        await until(lambda: beast.requests)
        _, out, _ = await explained(admin, "mine")

    assert "  now        running, for " in out
    assert "was asked; under way after " in out


async def test_unknown_request_is_one_line_and_exit_code_1(admin):
    """It says how many are remembered."""
    code, out, err = await explained(admin, "unheard/of")

    assert (code, out) == (1, "")
    assert err == "cortex explain: request 'unheard/of' is neither running nor among the last 1000 that ended\n"


async def test_wrong_token_and_silence_are_one_line(admin):
    """No traceback."""
    code, _, err = await explained(admin, "mine", token="wrong")
    assert code == 1
    assert "wrong admin token" in err

    with socket.socket() as deaf:  # nobody else's either, for as long as it is bound
        deaf.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        code, _, err = await explained(nobody, "mine")
    assert code == 2
    assert err.startswith(f"cortex explain: no answer from {nobody}: ")
