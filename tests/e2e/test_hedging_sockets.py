"""Hedging on real sockets, from models.toml to the metrics: the loser's neuron is free within 100 ms."""

import json

import pytest
import trio
from fakes.fleets import assert_idle
from fakes.in_memory import Client
from fakes.patience import best_of, measured, until
from fakes.running import LARGE, PROBE, SMALL, running_gateway

from neuron.simulated.faults import Hang
from neuron.simulated.fleet import neuron

WITHIN_S = 0.1
MODELS_TOML = f"""
[aliases."helexa/small"]
target = "{SMALL}"
hedge = {{ after = 0.05, budget_percent = 100 }}
"""


@pytest.fixture
async def hedging(tmp_path):
    """A gateway in front of two neurons; the first one to get the request hangs."""
    neurons = [neuron(name, [24576, 24576], [SMALL, LARGE], speed=100) for name in ("a", "b")]
    neurons[0].faults.add(Hang())
    async with running_gateway(tmp_path, neurons, models_toml=MODELS_TOML) as running:
        yield running


async def send_request(running, *, stream):
    async with await trio.open_tcp_stream("127.0.0.1", running.port) as connection:
        body = {"model": "helexa/small", "messages": PROBE, "stream": stream}
        return await Client(connection).ask(body, headers=("x-request-id: mine",))


@pytest.mark.parametrize("stream", [True, False])
async def test_hedged_answer_is_complete_and_nothing_is_leaked(hedging, stream):
    """The client sees the second neuron only by its name; the hedge is counted and logged."""
    answer = await send_request(hedging, stream=stream)
    slow, quick = hedging.neurons
    await until(lambda: slow.cancelled and not hedging.gateway.request_log.live)

    assert answer.status == 200
    assert "Tbilisi" in "".join(text_of(answer, stream=stream))
    assert answer.headers["x-cortex-node"] == "b"
    assert (len(slow.requests), len(quick.requests)) == (1, 1)
    assert_idle(hedging.gateway.fleet)
    assert hedging.gateway.upstream.in_use == 0
    assert f'cortex_hedges_total{{alias="helexa/small",model="{SMALL}",result="won"}} 1.0' in exposed(hedging)


def text_of(answer, *, stream):
    if not stream:
        return [json.loads(answer.body)["choices"][0]["message"]["content"]]
    chunks = [json.loads(event) for event in answer.events if event != "[DONE]"]
    return [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]


def exposed(running):
    return running.gateway.metrics.expose().decode()


@measured
@pytest.mark.parametrize("stream", [True, False])
async def test_neuron_that_lost_is_free_within_100_ms_of_the_first_token(hedging, stream):
    """Its connection is closed in the same step in which the other neuron's token arrived."""
    slow = hedging.neurons[0]

    async def measure():
        slow.cancelled.clear()
        answer = await send_request(hedging, stream=stream)
        await until(lambda: slow.cancelled)
        return slow.cancelled[0].at - answer.arrivals[0][0]

    await best_of(measure, WITHIN_S)
