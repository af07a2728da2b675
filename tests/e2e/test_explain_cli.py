"""`cortex explain` with a running gateway."""

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


async def test_explanation_begins_with_the_facts_and_ends_with_the_last_event(cortex, http, admin):
    """Model, outcome, phases, then the events in order."""
    await http.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine"})
    await settled(cortex.gateway)
    code, out, _ = await explained(admin, "mine")
    lines = [line.strip() for line in out.splitlines()]

    assert code == 0
    assert lines[0] == "request mine"
    assert f"model      helexa/small -> {SMALL} (the target of its alias), catalogue generation 1" in lines
    assert any(line.startswith("ended      ok, status 200, after ") for line in lines)
    assert any("first_byte " in line and line.startswith("time ") for line in lines)
    assert "8 completion" in out
    assert "sent to beast, the only replica; answered after " in lines[-1]


async def test_retry_shows_each_choice_with_its_candidates(tmp_path):
    """Under each choice is the verdict on every neuron."""
    neurons = [neuron(name, [24576, 24576], [SMALL, LARGE], speed=100) for name in ("a", "b")]
    neurons[0].faults.add(faults.HttpError(status=503, text="queue is full"))
    async with running_gateway(tmp_path, neurons) as running:
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as client:
            await client.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine"})
        await settled(running.gateway)
        code, out, _ = await explained(f"http://{running.addresses.metrics}", "mine")

    texts = [line.split(maxsplit=2)[2] if "ms  " in line[:14] else line.strip() for line in out.splitlines()]
    events = texts[texts.index("") + 1 :]
    assert code == 0
    assert events[0] == "a was chosen"
    assert events[1:3] == ["a            chosen: 0 requests", "b            passed over: 0 requests"]
    assert events[3].startswith("sent to a; failed after ")
    assert events[3].endswith(": queue is full")
    assert events[4:7] == ["b was chosen", "a            failed before: this request", "b            chosen"]
    assert events[7].startswith("sent to b; answered after ")


async def test_id_of_two_requests_explains_both(cortex, http, admin):
    """The JSON output is that of the admin API."""
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


async def test_running_request_is_explained(http, admin, wire, beast):
    """As far as it is."""
    beast.faults.add(faults.Hang())
    async with wire() as client:
        await client.send(ASK, headers=("x-request-id: mine",))
        await until(lambda: beast.requests)
        _, out, _ = await explained(admin, "mine")

    assert "  state      running, for " in out
    assert "; running after " in out
    assert " out\n" not in out  # bytes to the client are counted when the request ends


async def test_unknown_request_is_one_line_and_exit_code_1(admin):
    """The error says how many requests are remembered."""
    code, out, err = await explained(admin, "unheard/of")

    assert (code, out) == (1, "")
    assert err == (
        "cortex explain: request 'unheard/of' is neither running nor among the last 1000 that ended, or the last 100"
        " that were refused\n"
    )


async def test_wrong_token_and_unreachable_gateway_are_one_line(admin):
    """No traceback."""
    code, _, err = await explained(admin, "mine", token="wrong")
    assert code == 1
    assert "the gateway rejects the key" in err

    with socket.socket() as unused:  # bound but not listening, so that no other process answers there
        unused.bind(("127.0.0.1", 0))
        unused_url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, _, err = await explained(unused_url, "mine")
    assert code == 2
    assert err.startswith(f"cortex explain: cannot reach {unused_url}/admin/requests/mine: ")
