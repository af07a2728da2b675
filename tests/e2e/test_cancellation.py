"""Clients that disconnect, on real sockets: the neuron notices within 100 ms, other requests are not affected, and
nothing remains.

Every moment, and 2,000 disconnects in memory with exact times, are in tests/gateway.
"""

import math
import random
import socket
import struct
from dataclasses import replace

import pytest
import trio
from fakes.in_memory import Client
from fakes.patience import best_of, measured, until
from fakes.running import BOTH_WAYS, LARGE, SMALL, settled
from msgspec import structs
from trio.testing import wait_all_tasks_blocked

from gateway.http import pool
from neuron.simulated.faults import Hang, LateHeaders, Slow

pytestmark = BOTH_WAYS

LONG = [{"role": "user", "content": "Write 4000 words"}]
WITHIN_S = 0.1


def reset(client):
    """Disconnect with an RST, as a killed process does."""
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def assert_idle(cortex):
    """Leases, gauges, live requests and connections in use are 0, and the pool has no broken connection."""
    gateway = cortex.gateway
    await settled(gateway)
    gauges = [line for line in gateway.metrics.expose().decode().splitlines() if line.startswith("cortex_inflight")]
    assert all(line.endswith(" 0.0") for line in gauges)
    resting = [connection for each in gateway.upstream._idle.values() for connection in each]
    assert all(connection.is_quiet() for connection in resting)


FOR_EVER = 1e9


async def silence(beast, client):
    """The neuron hangs with the request."""
    await until(lambda: len(beast.requests) > 1)


async def in_prefill(beast, client):
    """The neuron has the request; the client sees nothing yet."""
    await until(lambda: beast.residents[SMALL].places.in_flight == 1)


async def after_a_token(beast, client):
    """The first piece has arrived. No other follows soon, so a slow test does not reach the end of the stream."""
    _, headers = await client.head()
    await client.piece(headers)
    beast.speed = 1e-9


async def in_decode(beast, client):
    """The neuron is past prefill and decodes for ever."""
    await in_prefill(beast, client)
    await trio.sleep(0.05)
    await wait_all_tasks_blocked()


MOMENTS = [
    (True, [Hang()], silence, "hang"),
    (True, [LateHeaders(), Slow(factor=FOR_EVER)], in_prefill, "prefill"),
    (True, [Slow(factor=FOR_EVER)], in_prefill, "prefill"),
    (True, [], after_a_token, "decode"),
    (False, [Hang()], silence, "hang"),
    (False, [Slow(factor=FOR_EVER)], in_prefill, "prefill"),
    (False, [], in_decode, "decode"),
]


async def leave(beast, wire, stream, faults, moment, how):
    """A client disconnects at that moment while another request runs: seconds until the neuron notices."""
    beast.requests.clear()
    beast.cancelled.clear()
    beast.speed = 100
    small = beast.models[SMALL]
    beast.residents[SMALL].model = replace(small, decode_tok_s=1e-9) if moment is in_decode else small
    beast.faults.add(Slow(model=LARGE, factor=FOR_EVER, times=1))
    async with wire() as sibling, wire() as client:
        await sibling.send(model="helexa/large", stream=True)
        await until(lambda: beast.residents[LARGE].places.in_flight == 1)
        beast.faults.add(*[structs.replace(fault, model=SMALL, times=1) for fault in faults])
        await client.send(messages=LONG, stream=stream)
        await moment(beast, client)
        if how is not None:
            how(client)
        left_at = trio.current_time()
        client.stream.socket.close()
        await until(lambda: beast.cancelled)
        beast.speed = math.inf
        siblings_answer = await sibling.answer()

    assert siblings_answer.events[-1] == "[DONE]"
    assert b"error" not in siblings_answer.body
    return beast.cancelled[0].at - left_at


@pytest.mark.parametrize("how", [None, reset])
@pytest.mark.parametrize(("stream", "faults", "moment", "phase"), MOMENTS)
async def test_neuron_sees_its_client_disconnect(cortex, beast, wire, stream, faults, moment, phase, how):
    """Before the headers, before the first token, in mid-stream, in a plain answer, with a FIN and with an RST.

    The other request's answer is complete, and nothing is left of the disconnected one.
    """
    await leave(beast, wire, stream, faults, moment, how)

    assert [gone.phase for gone in beast.cancelled] == [phase]
    assert beast.violations == []
    await assert_idle(cortex)


@measured
@pytest.mark.parametrize("how", [None, reset])
@pytest.mark.parametrize(("stream", "faults", "moment", "phase"), MOMENTS)
async def test_neuron_sees_its_client_disconnect_within_100_ms(cortex, beast, wire, stream, faults, moment, phase, how):
    """At any moment, with a FIN or an RST."""
    await best_of(lambda: leave(beast, wire, stream, faults, moment, how), WITHIN_S)


async def leave_the_queue(beast, wire):
    """Seconds until the place in the neuron's queue is free."""
    places = beast.residents[SMALL].places
    beast.cancelled.clear()
    beast.speed = 1e-9
    async with trio.open_nursery() as nursery:
        for _ in range(beast.models[SMALL].max_in_flight):
            nursery.start_soon(_send_once, wire)
        await until(lambda: places.in_flight == beast.models[SMALL].max_in_flight)
        async with wire() as client:
            await client.send(stream=True)
            await until(lambda: places.queue_depth == 1)
            left_at = trio.current_time()
        await until(lambda: places.queue_depth == 0)
        waited_s = trio.current_time() - left_at
        beast.speed = math.inf

    assert [gone.phase for gone in beast.cancelled] == ["queued"]
    return waited_s


async def _send_once(wire):
    async with wire() as client:
        assert (await client.ask(stream=True)).events[-1] == "[DONE]"


async def test_client_that_leaves_a_neurons_queue_frees_its_place(cortex, beast, wire):
    """The neuron generates nothing for it, and the next request moves up."""
    await leave_the_queue(beast, wire)
    await assert_idle(cortex)


@measured
async def test_client_that_leaves_a_neurons_queue_frees_its_place_within_100_ms(beast, wire):
    """As for a running request."""
    await best_of(lambda: leave_the_queue(beast, wire), WITHIN_S)


async def test_disconnect_after_the_end_changes_nothing(cortex, beast, wire, monkeypatch):
    """The connection to the neuron is idle and can be reused."""
    monkeypatch.setattr(pool, "IDLE_LIMIT_S", math.inf)  # even if the test is slow with the next request
    for stream in (True, False):
        async with wire() as client:
            await client.ask(stream=stream)
            reset(client)
        await settled(cortex.gateway)
    async with wire() as client:
        await client.ask()
    await settled(cortex.gateway)

    assert not beast.cancelled
    assert cortex.gateway.upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 1, "reused": 2}
    assert "cortex_client_disconnects_total" not in cortex.gateway.metrics.expose().decode()
    await assert_idle(cortex)


async def test_400_random_disconnects_on_sockets_leave_nothing(cortex, beast):
    """Sixteen at a time, at any moment of a request, with FIN or RST; every third client stays to the end."""
    moments = random.Random(2026)  # noqa: S311 - replayable, not secret
    beast.speed = 20
    left = stayed = 0

    async def visit(number):
        nonlocal left, stayed
        stays, stream, rst = number % 3 == 0, moments.random() < 0.6, moments.random() < 0.5
        async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream_to_us:
            client = Client(stream_to_us)
            with trio.move_on_after(math.inf if stays else moments.expovariate(30)):
                answer = await client.ask(stream=stream, **({} if stays else {"messages": LONG}))
                assert stays
                assert answer.status == 200
                stayed += 1
                return
            left += 1
            if rst:
                reset(client)

    async def visitor(first):
        for number in range(first, first + 25):
            await visit(number)

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(visitor, 25 * number)

    assert (left, stayed) == (266, 134)
    await assert_idle(cortex)
    await until(lambda: beast.residents[SMALL].places.in_flight == 0)
    assert beast.violations == []
    assert (await _whole(cortex)).events[-1] == "[DONE]"


async def _whole(cortex):
    async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream:
        return await Client(stream).ask(stream=True)
