"""Clients that leave, on real sockets: the neuron knows within 100 ms, siblings do not notice, and nothing is left.

Every moment and 2,000 departures in memory, where time is exact, are in tests/gateway/test_leaving.py.
"""

import random
import socket
import struct

import pytest
import trio
from fakes.in_memory import Client
from fakes.running import SMALL

from gateway.sim.faults import Hang, LateHeaders

LONG = [{"role": "user", "content": "Write 200 words"}]
WITHIN_S = 0.1


@pytest.fixture
def beast(beast):
    """A quarter of a second of prefill, then 200 tokens in 0.3 s: time enough to leave in."""
    beast.speed = 10
    return beast


def reset(client):
    """Leave with an RST, as a process that is killed does."""
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def until(condition):
    """Wait for something that another task is about to bring about."""
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.002)


async def nothing_is_left(cortex):
    """Leases, gauges, live requests and connections in use: all 0; and no broken connection in the pool."""
    gateway = cortex.gateway
    await until(lambda: not gateway.accounts.live and not gateway.upstream.in_use)
    gateway.fleet.assert_idle()
    gauges = [line for line in gateway.metrics.expose().decode().splitlines() if line.startswith("cortex_inflight")]
    assert all(line.endswith(" 0.0") for line in gauges)
    resting = [connection for each in gateway.upstream._idle.values() for connection in each]
    assert all(connection.is_quiet() for connection in resting)


async def at_work(beast, client):
    """The neuron has the request: there is nothing to see for the client yet."""
    await until(lambda: beast.residents[SMALL].places.in_flight > 1)


async def at_hang(beast, client):
    await until(lambda: len(beast.requests) > 1)


async def after_a_token(beast, client):
    """The first piece has arrived."""
    _, headers = await client.head()
    await client.piece(headers)


async def in_mid_decode(beast, client):
    await at_work(beast, client)
    await trio.sleep(0.4)


@pytest.mark.parametrize(
    ("stream", "fault", "moment", "phase"),
    [
        (True, Hang, at_hang, "hang"),
        (True, LateHeaders, at_work, "prefill"),
        (True, None, at_work, "prefill"),
        (True, None, after_a_token, "decode"),
        (False, Hang, at_hang, "hang"),
        (False, None, at_work, "prefill"),
        (False, None, in_mid_decode, "decode"),
    ],
)
async def test_neuron_sees_its_client_leave_within_100_ms(cortex, beast, wire, stream, fault, moment, phase):
    """Before the headers, before the first token, in mid-stream, in a plain answer; the siblings' answers are whole.

    Each time once with a FIN and once with an RST, with a sibling at work.
    """
    for how in (None, reset):
        async with wire() as sibling, wire() as client:
            beast.requests.clear()
            beast.cancelled.clear()
            await sibling.send(messages=LONG, stream=True)
            await until(lambda: beast.residents[SMALL].places.in_flight == 1)
            if fault is not None:
                beast.faults.add(fault(times=1))
            await client.send(messages=LONG, stream=stream)
            await moment(beast, client)
            if how is not None:
                how(client)
            left_at = trio.current_time()
            client.stream.socket.close()
            await until(lambda: beast.cancelled)
            answer = await sibling.answer()

        assert [gone.phase for gone in beast.cancelled] == [phase]
        assert beast.cancelled[0].at - left_at < WITHIN_S
        assert answer.events[-1] == "[DONE]"
        assert b"error" not in answer.body
        await nothing_is_left(cortex)
    assert beast.violations == []


async def test_client_that_leaves_in_the_queue_of_a_neuron_frees_its_place_in_it(cortex, beast, wire):
    """Nobody generates for a client that is gone, and the next in line moves up."""
    places = beast.residents[SMALL].places
    beast.speed = 5
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

    assert [gone.phase for gone in beast.cancelled] == ["queued"]
    assert waited_s < WITHIN_S
    await nothing_is_left(cortex)


async def _ask_once(wire):
    async with wire() as client:
        assert (await client.ask(stream=True)).events[-1] == "[DONE]"


async def test_leaving_after_the_end_changes_nothing(cortex, beast, wire):
    """The connection to the neuron is at rest, and good for the next."""
    for stream in (True, False):
        async with wire() as client:
            await client.ask(stream=stream)
            reset(client)
    async with wire() as client:
        await client.ask()

    assert not beast.cancelled
    assert cortex.gateway.upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 1, "reused": 2}
    assert "cortex_client_disconnects_total" not in cortex.gateway.metrics.expose().decode()
    await nothing_is_left(cortex)


async def test_400_random_departures_on_sockets_leave_nothing(cortex, beast):
    """Sixteen at a time, at any moment of a request, with FIN or RST, while others stay to the end."""
    moments = random.Random(2026)  # noqa: S311 - replayable, not secret
    beast.speed = 100
    left = stayed = 0

    async def visit(patience_s, stream, *, rst):
        nonlocal left, stayed
        async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream_to_us:
            client = Client(stream_to_us)
            with trio.move_on_after(patience_s) as patience:
                answer = await client.ask(stream=stream)
                stayed += 1
                assert answer.status in {200, 503}  # a neuron's line is short
            if patience.cancelled_caught:
                left += 1
                if rst:
                    reset(client)

    async def visitor():
        for _ in range(25):
            await visit(moments.expovariate(30), moments.random() < 0.6, rst=moments.random() < 0.5)

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(visitor)

    assert left + stayed == 400
    assert min(left, stayed) > 20
    await nothing_is_left(cortex)
    await until(lambda: beast.residents[SMALL].places.in_flight == 0)
    assert beast.violations == []
    assert (await _whole(cortex)).events[-1] == "[DONE]"


async def _whole(cortex):
    async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream:
        return await Client(stream).ask(stream=True)
