"""The pump on its own: what it carries, when a stream goes back to its task, and that no stream disturbs others."""

import socket
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.http.epoll.pump import FLOWS_PER_TURN, READ_BYTES, TURN_BYTES, Pump


class Upper:
    """A flow that makes text upper case. It leaves at a full stop, and fails at an exclamation mark."""

    def __init__(self):
        self.kept = b""
        self.times = []

    def feed(self, data, now):
        self.times.append(now)
        if b"!" in data:
            raise ValueError(data)
        if b"." in data:
            self.kept = data
            return None
        return data.upper()


class Line:
    """A neuron's socket and a client's socket with their far ends, and the task that hands them to the pump."""

    def __init__(self, pump, flow=None, *, chunked=False):
        self.neuron, self.source = nonblocking_pair()
        self.sink, self.client = nonblocking_pair()
        self.pump = pump
        self.flow = flow or Upper()
        self.chunked = chunked
        self.owed = b""
        self.returned = False
        self.error = None

    def owe(self, rest):
        self.owed += rest

    async def carry(self, scope=None):
        try:
            with scope or trio.CancelScope():
                await self.pump.carry(
                    self.source.fileno(), self.sink.fileno(), self.flow, self.owe, chunked=self.chunked
                )
                self.returned = True
        except ValueError as error:
            self.error = error

    def received(self):
        try:
            return self.client.recv(2**20)
        except BlockingIOError:
            return b""

    def close(self):
        for end in (self.neuron, self.source, self.sink, self.client):
            end.close()


def nonblocking_pair():
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    return pair


@pytest.fixture
async def pump(nursery):
    pump = Pump()
    await nursery.start(pump.run)
    return pump


@contextmanager
def lines(pump, count=1, **how):
    made = [Line(pump, **how) for _ in range(count)]
    try:
        yield made
    finally:
        for line in made:
            line.close()


async def test_bytes_pass_through_the_flow(nursery, pump, autojump_clock):
    with lines(pump) as (line,):
        nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        for word in (b"one", b"two"):
            line.neuron.send(word)
            await wait_all_tasks_blocked()
            assert line.received() == word.upper()
        assert line.flow.times == [trio.current_time()] * 2
        assert not line.returned


async def test_pieces_are_framed_as_chunks(nursery, pump):
    with lines(pump, chunked=True) as (line,):
        nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        line.neuron.send(b"x" * 17)
        await wait_all_tasks_blocked()
        assert line.received() == b"11\r\n" + b"X" * 17 + b"\r\n"


async def test_flow_leaves_with_what_it_has_taken(nursery, pump):
    """Its task goes on; the pump has nothing left of it."""
    with lines(pump) as (line,):
        nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        line.neuron.send(b"end.")
        line.neuron.send(b" more")
        await wait_all_tasks_blocked()
        assert line.returned
        assert line.received() == b""
        assert pump.carried == 0
        line.neuron.send(b" and more")
        await wait_all_tasks_blocked()
        assert line.flow.kept + line.source.recv(100) == b"end. more and more"


@pytest.mark.parametrize("shutdown", [True, False])
async def test_end_of_the_source_is_left_for_its_task(nursery, pump, shutdown):
    """The task's own read meets the end, and knows what it means."""
    with lines(pump) as (line,):
        nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        line.neuron.send(b"last")
        if shutdown:
            line.neuron.shutdown(socket.SHUT_WR)
        else:
            line.neuron.close()
        await wait_all_tasks_blocked()
        assert line.received() == b"LAST"
        assert line.returned
        assert line.source.recv(1) == b""


async def test_client_that_takes_a_part_gets_the_rest_from_the_task(nursery, pump):
    """No byte is lost or sent twice, and the neuron is not read on."""
    with lines(pump) as (line,):
        nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        sent = 0
        while not line.returned:
            sent += line.neuron.send(b"x" * 4096)
            await wait_all_tasks_blocked()
        received = 0
        while data := line.received():
            received += len(data)
        assert line.owed
        assert received + len(line.owed) == sent
        assert pump.carried == 0


async def test_client_that_has_closed_is_met_by_the_task(nursery, pump):
    with lines(pump) as (line,):
        nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        line.client.close()
        line.neuron.send(b"lost")
        await wait_all_tasks_blocked()
        assert line.returned
        assert line.owed == b"LOST"


async def test_crash_fails_one_stream(nursery, pump):
    """The others that were ready in the same turn have their bytes."""
    with lines(pump, 5) as made:
        for line in made:
            nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        for number, line in enumerate(made):
            line.neuron.send(b"crash!" if number == 2 else b"fine")
        await wait_all_tasks_blocked()
        assert [line.received() for line in made] == [b"FINE", b"FINE", b"", b"FINE", b"FINE"]
        assert [line.error is not None for line in made] == [False, False, True, False, False]
        assert pump.carried == 4


async def test_cancelled_stream_is_out_at_once(nursery, pump):
    """Also if bytes are ready. Trio decides which task runs first: they are relayed, or they stay in the socket."""
    with lines(pump) as (line,):
        scope = trio.CancelScope()
        nursery.start_soon(line.carry, scope)
        await wait_all_tasks_blocked()
        line.neuron.send(b"late")
        scope.cancel()
        await wait_all_tasks_blocked()
        assert pump.carried == 0
        assert not line.returned
        assert line.received() == b"LATE" or line.source.recv(10) == b"late"
        line.neuron.send(b"later")
        await wait_all_tasks_blocked()
        assert line.source.recv(10) == b"later"


async def test_descriptor_that_is_used_again_belongs_to_the_new_stream(nursery, pump):
    """The kernel gives the lowest free number: the one of the stream that has just ended."""
    for round_ in range(20):
        with lines(pump) as (line,):
            scope = trio.CancelScope()
            nursery.start_soon(line.carry, scope)
            await wait_all_tasks_blocked()
            number = line.source.fileno()
            line.neuron.send(b"old")
            scope.cancel()
            line.source.close()
        with lines(pump) as (line,):
            assert line.source.fileno() == number or round_ == 0
            nursery.start_soon(line.carry)
            await wait_all_tasks_blocked()
            line.neuron.send(b"new.")
            await wait_all_tasks_blocked()
            assert line.flow.kept == b"new."
            assert line.returned


async def test_streams_go_on_in_their_tasks_when_the_pump_stops():
    with lines(Pump(), 3) as made:
        async with trio.open_nursery() as nursery:
            pump = made[0].pump
            for line in made:
                line.pump = pump
            async with trio.open_nursery() as of_pump:
                await of_pump.start(pump.run)
                for line in made:
                    nursery.start_soon(line.carry)
                await wait_all_tasks_blocked()
                assert pump.carried == 3
                of_pump.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            assert all(line.returned for line in made)
            assert not pump.running
            await made[0].carry()  # returns at once


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_pump_closes_its_descriptor():
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        pump = Pump()
        await nursery.start(pump.run)
        assert open_descriptors() == before + 1
        nursery.cancel_scope.cancel()
    assert open_descriptors() == before


@pytest.mark.parametrize("size", [10, READ_BYTES])
async def test_turn_is_bounded_and_fair(nursery, pump, size):
    """Another task runs between turns, and no stream is served twice before one that waits."""
    count = FLOWS_PER_TURN + 20
    served = []

    class Slow(Upper):
        def feed(self, data, now):
            served.append((turn, self))
            return b""

    turn = 0
    with lines(pump, count) as made:
        for line in made:
            line.flow = Slow()
            nursery.start_soon(line.carry)
        await wait_all_tasks_blocked()
        for line in made:
            line.neuron.send(b"x" * size)
        while len({flow for _, flow in served}) < count:
            turn += 1
            await trio.lowlevel.checkpoint()
        between = max(sum(1 for when, _ in served if when == number) for number, _ in served)
        a_turn = FLOWS_PER_TURN if size == 10 else TURN_BYTES // size + 1
        assert between <= 2 * a_turn  # Trio runs the tasks of a round in random order
        first = [flow for _, flow in served[:count]]
        assert len(set(first)) == count


async def test_load_gathers_streams_in_one_turn(autojump_clock):
    """A lone chunk does not wait. Under load a chunk waits for the time that was set, at most."""
    with lines(Pump(0.001), 2) as made:
        first, second = made
        second.pump = first.pump
        async with trio.open_nursery() as nursery:
            await nursery.start(first.pump.run)
            for line in made:
                nursery.start_soon(line.carry)
            await trio.sleep(1)
            first.neuron.send(b"a")
            await wait_all_tasks_blocked()
            assert first.received() == b"A"
            first.neuron.send(b"b")
            await trio.sleep(0.0005)
            assert first.received() == b"B"  # the one before it came long ago; this one makes the load
            second.neuron.send(b"c")
            await trio.sleep(0.0001)
            assert second.received() == b""
            first.neuron.send(b"d")
            await trio.sleep(0.001)
            assert (first.received(), second.received()) == (b"D", b"C")
            assert first.flow.times[-1] == second.flow.times[-1]
            nursery.cancel_scope.cancel()


async def test_full_turn_is_followed_by_the_next_at_once(autojump_clock):
    """No chunk waits longer than the time that was set, under any load: those behind a full turn do not wait again."""
    count = 3 * FLOWS_PER_TURN
    with lines(Pump(0.001), count) as made:
        pump = made[0].pump
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            for line in made:
                line.pump = pump
                nursery.start_soon(line.carry)
            await trio.sleep(1)
            for line in made:
                line.neuron.send(b"a")
            sent_at = trio.current_time()
            await wait_all_tasks_blocked()
            assert [line.received() for line in made] == [b"A"] * count
            assert {time for line in made for time in line.flow.times} == {sent_at}
            nursery.cancel_scope.cancel()
