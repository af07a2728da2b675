"""Clients that leave, on real sockets: the neuron knows within 100 ms, siblings do not notice, and nothing is left.

Every moment and 2,000 departures in memory, where time is exact, are in tests/gateway/test_leaving.py.
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
from fakes.running import LARGE, SMALL, settled
from msgspec import structs
from trio.testing import wait_all_tasks_blocked

from gateway.http import pool
from neuron.simulated.faults import Hang, LateHeaders, Slow

LONG = [{"role": "user", "content": "Write 4000 words"}]
WITHIN_S = 0.1


def reset(client):
    """Leave with an RST, as a process that is killed does."""
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def nothing_is_left(cortex):
    """Leases, gauges, live requests and connections in use: all 0; and no broken connection in the pool."""
    gateway = cortex.gateway
    await settled(gateway)
    gauges = [line for line in gateway.metrics.expose().decode().splitlines() if line.startswith("cortex_inflight")]
    assert all(line.endswith(" 0.0") for line in gauges)
    resting = [connection for each in gateway.upstream._idle.values() for connection in each]
    assert all(connection.is_quiet() for connection in resting)


FOR_EVER = 1e9


async def nothing_can_be_heard(beast, client):
    """The neuron hangs with the request."""
    await until(lambda: len(beast.requests) > 1)


async def in_prefill(beast, client):
    """The neuron has the request: there is nothing to see for the client yet."""
    await until(lambda: beast.residents[SMALL].places.in_flight == 1)


async def after_a_token(beast, client):
    """The first piece has arrived, and no other comes: it is far from the last, and not to be so by our being slow."""
    _, headers = await client.head()
    await client.piece(headers)
    beast.speed = 1e-9


async def in_decode(beast, client):
    """The neuron is past prefill: it sleeps until then, and we until later; it goes on with it for ever."""
    await in_prefill(beast, client)
    await trio.sleep(0.05)
    await wait_all_tasks_blocked()


MOMENTS = [
    (True, [Hang()], nothing_can_be_heard, "hang"),
    (True, [LateHeaders(), Slow(factor=FOR_EVER)], in_prefill, "prefill"),
    (True, [Slow(factor=FOR_EVER)], in_prefill, "prefill"),
    (True, [], after_a_token, "decode"),
    (False, [Hang()], nothing_can_be_heard, "hang"),
    (False, [Slow(factor=FOR_EVER)], in_prefill, "prefill"),
    (False, [], in_decode, "decode"),
]


async def leave(beast, wire, stream, faults, moment, how):
    """A client comes and, at that moment, goes, while a sibling is being answered: seconds until the neuron knew."""
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
async def test_neuron_sees_its_client_leave(cortex, beast, wire, stream, faults, moment, phase, how):
    """Before the headers, before the first token, in mid-stream, in a plain answer, with a FIN and with an RST.

    A sibling's answer is whole, and nothing is left of the one that went.
    """
    await leave(beast, wire, stream, faults, moment, how)

    assert [gone.phase for gone in beast.cancelled] == [phase]
    assert beast.violations == []
    await nothing_is_left(cortex)


@measured
@pytest.mark.parametrize("how", [None, reset])
@pytest.mark.parametrize(("stream", "faults", "moment", "phase"), MOMENTS)
async def test_neuron_sees_its_client_leave_within_100_ms(cortex, beast, wire, stream, faults, moment, phase, how):
    """Whenever and however it goes."""
    await best_of(lambda: leave(beast, wire, stream, faults, moment, how), WITHIN_S)


async def leave_the_queue(beast, wire):
    """Seconds until the place in the neuron's line was free."""
    places = beast.residents[SMALL].places
    beast.cancelled.clear()
    beast.speed = 1e-9
    async with trio.open_nursery() as nursery:
        for _ in range(beast.models[SMALL].max_in_flight):
            nursery.start_soon(_ask_once, wire)
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


async def _ask_once(wire):
    async with wire() as client:
        assert (await client.ask(stream=True)).events[-1] == "[DONE]"


async def test_client_that_leaves_the_queue_of_a_neuron_frees_its_place_in_it(cortex, beast, wire):
    """Nobody generates for a client that is gone, and the next in line moves up."""
    await leave_the_queue(beast, wire)
    await nothing_is_left(cortex)


@measured
async def test_client_that_leaves_the_queue_of_a_neuron_does_so_within_100_ms(beast, wire):
    """As one that is being answered."""
    await best_of(lambda: leave_the_queue(beast, wire), WITHIN_S)


async def test_leaving_after_the_end_changes_nothing(cortex, beast, wire, monkeypatch):
    """The connection to the neuron is at rest, and good for the next."""
    monkeypatch.setattr(pool, "IDLE_LIMIT_S", math.inf)  # however long we take for the next
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
    await nothing_is_left(cortex)


async def test_400_random_departures_on_sockets_leave_nothing(cortex, beast):
    """Sixteen at a time, at any moment of a request, with FIN or RST, while every third stays to the end."""
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
    await nothing_is_left(cortex)
    await until(lambda: beast.residents[SMALL].places.in_flight == 0)
    assert beast.violations == []
    assert (await _whole(cortex)).events[-1] == "[DONE]"


async def _whole(cortex):
    async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream:
        return await Client(stream).ask(stream=True)
