"""Clients that disconnect: at every moment of a request the neuron is freed and nothing is left behind. In memory."""

import json
import random

import pytest
import trio
from fakes.in_memory import BODY, InMemoryGateway
from trio.testing import wait_all_tasks_blocked

from gateway.errors import ShuttingDown
from neuron.simulated.faults import LateHeaders
from neuron.simulated.fleet import neuron

SMALL = "Qwen/Qwen3-1.7B"


@pytest.fixture
def beast():
    return neuron("beast", [24576], [SMALL])


@pytest.fixture
def gateway(nursery, beast):
    return InMemoryGateway(nursery, {"beast": beast})


@pytest.mark.parametrize(
    ("stream", "moment"),
    [
        (True, (1.0, "late headers", "prefill")),  # before the headers
        (True, (1.0, "", "prefill")),  # after the role chunk, before the first token
        (True, (2.48, "", "decode")),  # in mid-stream
        (False, (1.0, "", "prefill")),
        (False, (2.48, "", "decode")),
    ],
)
async def test_disconnect_cancels_the_neurons_work_at_once(autojump_clock, gateway, beast, stream, moment):
    """In every phase; another request at the same time is not affected."""
    after_s, late_headers, phase = moment
    if late_headers:
        beast.faults.add(LateHeaders())
    sibling = gateway.client()
    await sibling.send(stream=stream)
    client = gateway.client()
    await client.send(stream=stream)
    await trio.sleep(after_s)
    await client.leave()
    await wait_all_tasks_blocked()

    assert [(gone.phase, gone.at) for gone in beast.cancelled] == [(phase, after_s)]
    body = (await sibling.answer()).body
    assert body.endswith(b"data: [DONE]\n\n") if stream else b"Tbilisi" in body
    await gateway.idle()
    assert "cortex_client_disconnects_total" in gateway.metrics.expose().decode()


async def test_disconnect_after_the_end_is_not_counted(autojump_clock, gateway, beast):
    """The request was served."""
    client = gateway.client()
    await client.ask(stream=True)
    await client.leave()
    await wait_all_tasks_blocked()

    assert list(beast.cancelled) == []
    assert "cortex_client_disconnects_total" not in gateway.metrics.expose().decode()
    await gateway.idle()


@pytest.mark.parametrize("is_taken", [True, False])
async def test_client_that_leaves_while_the_terminator_is_written(autojump_clock, gateway, is_taken):
    """It was served if the server could send the piece: it may have, before it noticed that the client left."""
    left = trio.Event()
    inbox = [{"type": "http.request", "body": json.dumps({**BODY, "stream": True}).encode(), "more_body": False}]

    async def receive():
        if inbox:
            return inbox.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if b"[DONE]" in message.get("body", b""):
            left.set()
            await wait_all_tasks_blocked()
            if not is_taken:
                raise BrokenPipeError
        await trio.lowlevel.checkpoint()

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    await gateway.inference(scope, receive, send)

    await gateway.idle()
    assert ("cortex_client_disconnects_total" in gateway.metrics.expose().decode()) == (not is_taken)


async def test_2000_random_disconnects_leave_nothing_behind(autojump_clock, gateway, beast, nursery):
    """Gauges, leases, live requests and connections in use are 0; the pool holds no broken connection."""
    moments = random.Random(20261124)  # noqa: S311 - replayable, not secret
    left = finished = 0

    async def one(stream, patience_s):
        nonlocal left, finished
        client = gateway.client()
        with trio.move_on_after(patience_s):
            await client.ask(stream=stream)
            finished += 1
            return
        left += 1
        await client.leave()

    for _ in range(20):
        async with trio.open_nursery() as clients:
            for _ in range(100):
                clients.start_soon(one, moments.random() < 0.6, moments.uniform(0, 40))
    await wait_all_tasks_blocked()

    assert left + finished == 2000
    assert min(left, finished) > 200
    await gateway.idle()
    assert beast.violations == []
    assert all(connection.is_quiet() for resting in gateway.upstream._idle.values() for connection in resting)
    assert (await gateway.client().ask()).status == 200


async def test_drain_refuses_waiting_requests_and_lets_running_ones_finish(autojump_clock, gateway, nursery):
    """New and waiting requests get `shutting_down`; a running stream ends normally."""
    running = gateway.client()
    await running.send(stream=True)
    await trio.sleep(1)
    idle = gateway.client()
    gateway.inference.drain()
    refused = await idle.ask()

    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "shutting_down", "5")
    assert (await running.answer()).events[-1] == "[DONE]"


async def test_cut_ends_each_stream_with_an_error_event(autojump_clock, gateway):
    """When the drain time is over, no stream just breaks off."""
    running = gateway.client()
    await running.send(stream=True)
    await trio.sleep(2.48)
    gateway.inference.cut(_shutting_down())
    answer = await running.answer()

    assert '"code":"shutting_down"' in answer.events[-1]
    assert "[DONE]" not in answer.events
    await gateway.idle()


def _shutting_down():
    return ShuttingDown("this gateway is shutting down", retry_after_s=5)
