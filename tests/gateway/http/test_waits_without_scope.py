"""Waits for a response's head with a shared timer in place of a cancel scope: on socket pairs, with exact times."""

import socket
from functools import partial

import pytest
import trio
import trio.testing

from gateway.config.settings import DeadlineSettings
from gateway.errors import DeadlineExceeded, ShuttingDown, UpstreamConnectionError
from gateway.http.phase_deadlines import AGAIN_S, PhaseDeadlines, WaitTimer
from gateway.http.pool import Origin, UpstreamPool
from gateway.http.tcp.plain_stream import PlainStream

ORIGIN = Origin.parse("http://beast:13131")
ALLOWED_S = 600
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BODY_FOLLOWS = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Neuron:
    """A pool whose connections are socket pairs; the test plays the neuron at `sides`. Its timer runs."""

    def __init__(self):
        self.pool = UpstreamPool(connect=self._connect)
        self.sides = []

    async def _connect(self, _):
        await trio.lowlevel.checkpoint()
        ours, theirs = socket.socketpair()
        self.sides.append(PlainStream(theirs))
        return PlainStream(ours)

    async def answer(self, data, *, ends=False):
        """To the next request on the idle connection."""
        await self.sides[0].receive_some()
        if data:
            await self.sides[0].send_all(data)
        if ends:
            await self.sides[0].send_eof()

    async def ask(self, phases):
        with phases, self.pool.exchange(ORIGIN, (b"POST / HTTP/1.1\r\n\r\n",), phases) as exchange:
            response = await exchange.response()
            body = b""
            while piece := await response.receive():
                body += piece
            return body


@pytest.fixture
async def neuron(nursery, autojump_clock):
    """One connection is open and idle: the next request reuses it."""
    neuron = Neuron()
    await nursery.start(neuron.pool.timer.run)
    async with trio.open_nursery() as first:
        first.start_soon(neuron.ask, deadlines())
        await trio.testing.wait_all_tasks_blocked()
        await neuron.answer(OK)
    yield neuron
    assert not neuron.pool.timer.deadlines
    for side in neuron.sides:
        side.close()
    neuron.pool.close()


def deadlines():
    return PhaseDeadlines(DeadlineSettings(first_byte_seconds=ALLOWED_S, idle_seconds=60))


async def test_answer_in_one_piece_needs_no_scope(autojump_clock, neuron, nursery):
    phases = deadlines()
    nursery.start_soon(neuron.ask, phases)
    await trio.testing.wait_all_tasks_blocked()
    assert phases.scope is None
    assert len(neuron.pool.timer.deadlines) == 1
    await neuron.sides[0].send_all(OK)
    await trio.testing.wait_all_tasks_blocked()
    assert neuron.pool.statistics()["idle"] == 1
    assert len(neuron.sides) == 1


@pytest.mark.parametrize("sent", [b"", OK[:20], BODY_FOLLOWS, BODY_FOLLOWS + b"o"])
async def test_deadline_ends_the_wait(autojump_clock, neuron, nursery, sent):
    """Before the head, within it, and after it: the same error at the same time, and no other attempt."""
    started_at = trio.current_time()
    nursery.start_soon(neuron.answer, sent)
    with pytest.raises(DeadlineExceeded, match=r"waited 600 s for the neuron's first token \(first_byte\)"):
        await neuron.ask(deadlines())
    assert trio.current_time() - started_at == ALLOWED_S
    assert neuron.pool.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 1}


@pytest.mark.parametrize("sent", [b"", OK[:20], BODY_FOLLOWS])
async def test_interrupt_ends_the_wait(autojump_clock, neuron, nursery, sent):
    phases, failure = deadlines(), ShuttingDown("this gateway shuts down")
    nursery.start_soon(neuron.answer, sent)

    async def interrupt():
        await trio.sleep(5)
        phases.interrupt(failure)

    started_at = trio.current_time()
    nursery.start_soon(interrupt)
    with pytest.raises(ShuttingDown) as caught:
        await neuron.ask(phases)
    assert caught.value is failure
    assert trio.current_time() - started_at == 5
    assert neuron.pool.statistics()["idle"] == 0


async def test_interrupt_between_the_waits_cancels_the_request(autojump_clock, neuron, nursery):
    """A complete answer is here, and the request waits for something else: its client."""
    with trio.CancelScope() as request_scope:
        phases = PhaseDeadlines(DeadlineSettings(), request_scope)
        with phases:
            nursery.start_soon(neuron.answer, OK)
            with neuron.pool.exchange(ORIGIN, (b"POST / HTTP/1.1\r\n\r\n",), phases) as exchange:
                response = await exchange.response()
                assert response.complete
                phases.interrupt(ShuttingDown("this gateway shuts down"))
                await trio.sleep_forever()
    assert request_scope.cancelled_caught


async def test_cancelled_wait_leaves_nothing(autojump_clock, neuron):
    with trio.move_on_after(5) as scope:
        await neuron.ask(deadlines())
    assert scope.cancelled_caught
    assert neuron.pool.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 1}


async def test_connection_that_breaks_off_is_no_deadline(autojump_clock, neuron, nursery):
    """In the middle of a head: the wait has ended by itself."""
    nursery.start_soon(partial(neuron.answer, OK[:20], ends=True))
    with pytest.raises(UpstreamConnectionError, match="in the middle of its response"):
        await neuron.ask(deadlines())


async def test_answer_in_the_instant_of_the_deadline_counts(autojump_clock, neuron, nursery):
    """The timer finds no wait to end: the task has its input and is about to go on."""
    phases = deadlines()

    class Timer(trio.abc.Instrument):
        def before_task_step(self, task):
            if "ask" in task.name and neuron.pool.timer.deadlines:
                phases.expire()

    async def ask():
        return await neuron.ask(phases)

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.add_instrument(timer := Timer())
    await neuron.answer(OK)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(timer)
    assert neuron.pool.statistics()["idle"] == 1


async def test_interrupt_in_the_instant_of_a_part_of_the_head_counts(autojump_clock, neuron, nursery):
    """The wait has its input already, and must not begin again."""
    phases, failure, started_at = deadlines(), ShuttingDown("this gateway shuts down"), trio.current_time()

    class Interrupter(trio.abc.Instrument):
        def before_task_step(self, task):
            if "ask" in task.name and neuron.pool.timer.deadlines:
                phases.interrupt(failure)

    async def ask():
        with pytest.raises(ShuttingDown):
            await neuron.ask(phases)

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(interrupter := Interrupter())
        await neuron.answer(OK[:20])
    trio.lowlevel.remove_instrument(interrupter)
    assert trio.current_time() == started_at


class Wait:
    def __init__(self, timer):
        self._timer = timer
        self.ended_at = []

    def expire(self):
        self.ended_at.append(trio.current_time())
        if len(self.ended_at) == 2:
            del self._timer.deadlines[self]


def begin(timer, wait, deadline):
    timer.deadlines[wait] = deadline
    if deadline < timer.next_at:
        timer.wake_at(deadline)


async def test_timer_ends_each_wait_at_its_deadline(nursery, autojump_clock):
    """A shorter deadline may begin later. A wait that does not end at once is ended again."""
    timer, begun_at = WaitTimer(), trio.current_time()
    assert not timer.running
    await nursery.start(timer.run)
    waits = [Wait(timer) for _ in range(3)]
    begin(timer, waits[0], begun_at + 100)
    begin(timer, waits[1], begun_at + 50)
    await trio.sleep(10)
    begin(timer, waits[2], begun_at + 20)
    await trio.sleep(200)
    assert [wait.ended_at for wait in waits] == [
        pytest.approx([begun_at + after_s, begun_at + after_s + AGAIN_S]) for after_s in (100, 50, 20)
    ]


async def test_timer_stops_with_its_task(nursery, autojump_clock):
    timer = WaitTimer()
    with trio.move_on_after(1):
        await timer.run()
    assert not timer.running
