"""Deadlines on real sockets and through the whole application: none is total, and the neuron sees each expire.

Tests to the second, in memory, on the autojump clock, are in tests/gateway.
"""

import json
from dataclasses import replace

import httpx
import pytest
import structlog
import trio
from fakes.fleets import assert_idle
from fakes.in_memory import Client
from fakes.patience import PATIENT_DEADLINES, best_of, measured, until
from fakes.running import MODELS_TOML, SMALL, running_gateway, settled
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from gateway.config.settings import NeuronSettings, RetrySettings, Settings, StreamingSettings
from gateway.fleet.reports import ModelReport, NodeReport
from gateway.http.server import HttpServer, ServerLimits
from gateway.server.gateway import Gateway
from neuron.simulated.faults import Hang, LateHeaders, SilentPrefill, Slow
from neuron.simulated.fleet import neuron

CHAT = "/v1/chat/completions"
QUESTION = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}


@pytest.fixture
async def whole_gateway(tmp_path, nursery):
    """A whole `Gateway` as `serve` runs it, except for sockets and threads: (gateway, neuron, a client)."""
    path = tmp_path / "models.toml"
    path.write_text(MODELS_TOML)
    gateway = Gateway(Settings(neurons=(NeuronSettings("beast", "http://beast:13131"),), models_config=path))
    beast = neuron("beast", [24576], [SMALL])
    gateway.fleet.answered("beast", NodeReport((ModelReport(SMALL, "loaded", url="http://beast:13131"),), devices=()))
    server = HttpServer(gateway.app, limits=ServerLimits(), log=structlog.get_logger())

    async def connect(origin):
        ours, theirs = memory_stream_pair()
        nursery.start_soon(beast.serve_stream, theirs)
        return ours

    gateway.upstream._connect = connect
    ours, theirs = memory_stream_pair()
    nursery.start_soon(server.serve_stream, theirs)
    yield gateway, beast, Client(ours)
    await gateway.aclose()


@pytest.mark.parametrize(
    ("faults", "lasts_s"),
    [
        ([Slow(factor=215)], 1200),  # 524 s of prefill, then a token every 3.4 s
        ([SilentPrefill(seconds=540)], 545),
        ([SilentPrefill(seconds=540), LateHeaders()], 545),
    ],
)
async def test_nothing_in_the_whole_application_has_a_total_deadline(autojump_clock, whole_gateway, faults, lasts_s):
    """Twenty minutes of stream, nine of prefill before or after the headers, through the whole application."""
    gateway, beast, client = whole_gateway
    beast.faults.add(*faults)
    answer = await client.ask(messages=[{"role": "user", "content": "Write 200 words"}], stream=True)

    assert trio.current_time() == pytest.approx(lasts_s, abs=10)
    assert answer.events[-1] == "[DONE]"
    gaps = [later[0] - at[0] for at, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)]
    assert max(gaps) <= 15.001, "keep-alives slow down to one in 15 s"
    assert all(gap <= 1.001 for gap in gaps[:6]), "but at first there is one every second"
    await wait_all_tasks_blocked()
    assert_idle(gateway.fleet)


FIRST_BYTE_S = 0.3
SHORT = {
    "deadlines": replace(PATIENT_DEADLINES, first_byte_seconds=FIRST_BYTE_S, idle_seconds=0.3),
    "retries": RetrySettings(attempts=0),
    "streaming": StreamingSettings(keepalive_seconds=0.05, early_commit_seconds=0.1),
}


async def request_with_short_deadlines(tmp_path, fault, *, stream):
    """The answer, the time when it ended, and the neuron, on real sockets."""
    beast = neuron("beast", [24576], [SMALL], speed=20)
    beast.faults.add(fault)
    async with running_gateway(tmp_path, [beast], **SHORT) as cortex:
        async with httpx.AsyncClient(base_url=cortex.url, trust_env=False, timeout=60) as http:
            begun = trio.current_time()
            answer = await http.post(CHAT, json={**QUESTION, "stream": stream})
            took_s = trio.current_time() - begun
        await until(lambda: beast.cancelled)
        await settled(cortex.gateway)
    return answer, took_s, beast.cancelled[0].at - begun


@pytest.mark.parametrize("fault", [Hang(), SilentPrefill(seconds=100)])
async def test_neuron_is_freed_when_its_first_byte_deadline_has_passed(tmp_path, fault):
    """The client has an early 200 and gets comments and then one error event; the neuron sees its connection close.

    If the test stood still until the deadline, there was no time for the early 200: then it is a 504.
    """
    answer, took_s, noticed_s = await request_with_short_deadlines(tmp_path, fault, stream=True)
    parts = [part for part in answer.text.split("\n\n") if part]
    error = json.loads(parts[-1].removeprefix("data: "))["error"]

    assert (answer.status_code, set(parts[:-1])) in [(200, {": keep-alive"}), (504, set())]
    assert (error["code"], error["param"]) == ("deadline_exceeded", "first_byte")
    assert min(took_s, noticed_s) >= FIRST_BYTE_S


async def test_plain_request_past_its_deadline_is_a_504(tmp_path):
    """And no comments."""
    answer, took_s, _ = await request_with_short_deadlines(tmp_path, Hang(), stream=False)

    assert (answer.status_code, answer.json()["error"]["param"]) == (504, "first_byte")
    assert took_s >= FIRST_BYTE_S


@measured
@pytest.mark.parametrize("fault", [Hang(), SilentPrefill(seconds=100)])
async def test_neuron_is_freed_the_moment_its_first_byte_deadline_has_passed(tmp_path, fault):
    """Within 100 ms, and the client has its error by then."""

    async def overrun():
        _, took_s, noticed_s = await request_with_short_deadlines(tmp_path, fault, stream=True)
        return max(took_s, noticed_s) - FIRST_BYTE_S

    await best_of(overrun, 0.1)
