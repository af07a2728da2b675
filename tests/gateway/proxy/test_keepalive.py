"""KeepAlive: comments are sent exactly when they are due."""

import pytest
import trio
from fakes.asgi_send import RecordedSend

from gateway.config.settings import StreamingSettings
from gateway.http import sse
from gateway.proxy.response.client_response import ClientResponse
from gateway.proxy.response.keepalive import KeepAlive, SilenceWatch

HEAD = (200, [(b"content-type", b"text/event-stream")])


@pytest.fixture
def wire():
    return RecordedSend()


@pytest.fixture
def client(wire):
    return ClientResponse(wire.send)


async def run_with_keepalive(client, settings, script):
    """Run a KeepAlive task while `script(keepalive)` runs."""
    keepalive = KeepAlive(client, settings, lambda: HEAD)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keepalive.run)
        await script(keepalive)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("settings", "head_at", "writes_at", "comments_at"),
    [
        (StreamingSettings(), None, (), [5, 6, 7, 8, 9]),
        (StreamingSettings(), 2.5, (), [3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5]),
        (StreamingSettings(), 4.8, (), [5.8, 6.8, 7.8, 8.8, 9.8]),
        (StreamingSettings(), 0, (0.9, 1.8, 2.7, 3.6, 4.5, 5.4, 6.3, 7.2), [8.2, 9.2]),
        (StreamingSettings(keepalive_seconds=0), 2, (), []),
        (StreamingSettings(keepalive_seconds=0), None, (), [5]),
        (StreamingSettings(early_commit_seconds=0), None, (), []),
        (StreamingSettings(early_commit_seconds=0), 2, (), [3, 4, 5, 6, 7, 8, 9]),
        (StreamingSettings(keepalive_seconds=4, early_commit_seconds=1), None, (), [1, 5, 9]),
    ],
)
async def test_comments_are_sent_exactly_when_they_are_due(
    autojump_clock, client, wire, settings, head_at, writes_at, comments_at
):
    """After the early 200 or the upstream's head, one comment per interval without a write."""
    sent_at = []
    send = client._send

    async def send_and_note(message):
        if message.get("body") == sse.KEEP_ALIVE:
            sent_at.append(round(trio.current_time(), 6))
        await send(message)

    client._send = send_and_note

    async def script(keepalive):
        if head_at is not None:
            await trio.sleep_until(head_at)
            keepalive.stream_started(lambda: HEAD)
        for at in writes_at:
            await trio.sleep_until(at)
            keepalive.last_write_at = trio.current_time()
        await trio.sleep_until(9.9)

    await run_with_keepalive(client, settings, script)
    assert sent_at == comments_at


async def test_long_silence_gets_fewer_comments(autojump_clock, client, wire):
    """Every second for 12 s, every 6 s to 30 s, then every 15 s; a part of the answer begins this again."""
    sent_at = []
    send = client._send

    async def send_and_note(message):
        if message.get("body") == sse.KEEP_ALIVE:
            sent_at.append(round(trio.current_time(), 6))
        await send(message)

    client._send = send_and_note

    async def script(keepalive):
        keepalive.stream_started(lambda: HEAD)
        await trio.sleep(100)
        keepalive.last_write_at = trio.current_time()
        await trio.sleep(3.5)

    await run_with_keepalive(client, StreamingSettings(), script)
    assert sent_at == [*range(1, 13), 18, 24, 30, 45, 60, 75, 90, 101, 102, 103]


async def test_disabled_keepalive_sends_nothing(autojump_clock, client, wire):
    """The answer turned out not to be a stream."""

    async def script(keepalive):
        await trio.sleep(1)
        keepalive.disable_keepalive()
        await trio.sleep(60)

    await run_with_keepalive(client, StreamingSettings(), script)
    assert wire.messages == []


async def test_task_is_started_for_a_stream_that_falls_silent_only(autojump_clock, nursery):
    """In time for its first keep-alive, and at once if nothing watches or the keep-alive comes too soon."""
    watch, started = SilenceWatch(), []

    def stream(**times):
        keepalive = KeepAlive(ClientResponse(RecordedSend().send), StreamingSettings(**times), lambda: (200, []))
        keepalive.begin()
        watch.watch(keepalive, lambda: started.append((trio.current_time(), keepalive)))
        return keepalive

    unwatched = stream()
    assert [each for _, each in started] == [unwatched]
    started.clear()
    async with trio.open_nursery() as of_watch:
        await of_watch.start(watch.run)
        hasty = stream(keepalive_seconds=0.5)
        assert [each for _, each in started] == [hasty]
        started.clear()
        silent, talking, ended = stream(), stream(), stream()
        for each in (silent, talking, ended):
            each.stream_started(None)
        for _ in range(20):
            await trio.sleep(0.1)
            talking.last_write_at = trio.current_time()
            watch.forget(ended)
        assert [each for _, each in started] == [silent]
        assert started[0][0] < silent.due_at()
        of_watch.cancel_scope.cancel()
    assert [each for _, each in started] == [silent, talking]
