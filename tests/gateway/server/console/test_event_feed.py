"""The live events: computed once for all, only while a page listens, and resumable within a bound."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest
import trio

from gateway import errors
from gateway.server.console import event_feed
from gateway.server.console.event_feed import GRACE_TICKS, LISTENER_LIMIT, RING_CHUNKS, TICK_S, EventFeed, Missed
from gateway.server.console.event_sources import StateSource


class Counter:
    """A source that counts how often it is asked."""

    kind = "count"

    def __init__(self):
        self.asked = 0

    def everything(self):
        return b'"all %d"' % self.asked

    def changes(self):
        self.asked += 1
        return b"%d" % self.asked

    def restart(self):
        pass


@pytest.fixture
async def feed(nursery):
    feed = EventFeed([Counter()])
    feed.counter = feed._sources[0]
    await nursery.start(feed.run)
    return feed


def data_of(chunk):
    return [int(each) for each in re.findall(rb"data: (\d+)", chunk)]


def last_id_of(chunk):
    return re.findall(rb"id: (\S+)", chunk)[-1].decode()


async def test_nothing_is_computed_without_listeners(autojump_clock, feed):
    await trio.sleep(100)
    assert feed.counter.asked == 0
    with feed.listening():
        await trio.sleep(3.5)
    await trio.sleep(TICK_S * (GRACE_TICKS + 100))
    assert feed.counter.asked == 3 + GRACE_TICKS
    assert not feed._ring


async def test_page_that_opens_during_a_short_change_learns_of_its_end(autojump_clock, nursery):
    """The state is the same at both ticks, but not the one with which the page opened."""
    state = ["usual"]
    feed = EventFeed([StateSource("state", lambda: state)])
    await nursery.start(feed.run)
    with feed.listening():
        await trio.sleep(TICK_S * 1.5)
        state[0] = "drained"
        position, first = feed.begin()
        assert b"drained" in first
        state[0] = "usual"
        assert b"usual" in await feed.next(position)
        assert await feed.next(position) == b""


async def test_fifty_listeners_get_the_same_bytes(autojump_clock, feed):
    """The source is asked once per tick, and the bytes are one object."""
    got = []

    async def listen():
        with feed.listening():
            position, _ = feed.begin()
            got.extend([await feed.next(position) for _ in range(2)])

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(listen)
    assert feed.counter.asked == 2
    assert len(got) == 100
    assert len({id(chunk) for chunk in got}) == 2


async def test_listener_resumes_behind_the_last_event_it_has(autojump_clock, feed):
    with feed.listening():
        position, everything = feed.begin()
        assert everything.count(b"event: count") == 1
        last_id = last_id_of(await feed.next(position))
        await trio.sleep(3.5)
        resumed = feed.resume(last_id)
        assert data_of(await feed.next(resumed)) == [2, 3, 4]


@pytest.mark.parametrize(
    "last_id", ["", None, "nonsense", "0-1", "{epoch}-999", "{epoch}-", "{epoch}--1", "{epoch}-1e3"]
)
async def test_unknown_id_is_not_resumed_from(autojump_clock, feed, last_id):
    """The listener gets everything instead."""
    with feed.listening():
        assert feed.resume(last_id and last_id.replace("{epoch}", feed._epoch)) is None


async def test_id_is_not_resumed_from_after_a_time_without_listeners(autojump_clock, feed):
    """What happened in that time is in no event."""
    with feed.listening():
        position, _ = feed.begin()
        last_id = last_id_of(await feed.next(position))
    await trio.sleep(TICK_S * (GRACE_TICKS + 2))
    with feed.listening():
        assert feed.resume(last_id) is None


async def test_only_listener_resumes_after_a_broken_connection(autojump_clock, feed):
    """The feed goes on for a while without it, so it gets what it missed."""
    with feed.listening():
        position, _ = feed.begin()
        last_id = last_id_of(await feed.next(position))
    await trio.sleep(TICK_S * (GRACE_TICKS - 0.5))
    with feed.listening():
        resumed = feed.resume(last_id)
        assert data_of(await feed.next(resumed)) == list(range(2, GRACE_TICKS + 1))
        await trio.sleep(TICK_S * GRACE_TICKS)
    await trio.sleep(TICK_S * (GRACE_TICKS - 0.5))
    with feed.listening():  # each absence has a grace of its own
        assert feed.resume(last_id) is not None


async def test_slow_listener_misses_events_and_the_memory_is_bounded(autojump_clock, feed):
    with feed.listening():
        position, _ = feed.begin()
        await trio.sleep(TICK_S * (RING_CHUNKS + 10))
        assert len(feed._ring) == RING_CHUNKS
        with pytest.raises(Missed):
            await feed.next(position)


async def test_large_events_shorten_the_memory(autojump_clock, feed, monkeypatch):
    monkeypatch.setattr(event_feed, "RING_BYTES", 1000)
    with feed.listening():
        await trio.sleep(TICK_S * 200)
        assert feed._ring_bytes <= 1000
        assert feed._ring_bytes == sum(map(len, feed._ring))


async def test_number_of_listeners_is_bounded(autojump_clock, feed):
    with ExitStack() as stack:
        for _ in range(LISTENER_LIMIT):
            stack.enter_context(feed.listening())
        with pytest.raises(errors.Overloaded), feed.listening():
            pass
    assert feed.listeners == 0


async def test_source_that_fails_does_not_end_the_gateway(autojump_clock, feed, monkeypatch):
    """The others go on."""
    monkeypatch.setattr(feed.counter, "changes", lambda: 1 / 0)
    with feed.listening():
        position, _ = feed.begin()
        assert await feed.next(position) == b""
        assert await feed.next(position) == b""
