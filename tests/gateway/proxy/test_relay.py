"""The client's side of an answer: who may write when, and what is never put where. Sends are a list in memory."""

import pytest
import trio
from fakes.patience import SAFETY_NET_S
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import StreamingSettings
from gateway.http import sse
from gateway.proxy.relay import Answer, ClientGone, Pacer

HEAD = (200, [(b"content-type", b"text/event-stream")])
EVENT = b"data: x\n\n"


class Wire:
    """An ASGI `send` that keeps what it gets. While `blocked`, it takes nothing; once `gone`, it breaks."""

    def __init__(self):
        self.messages = []
        self.blocked = None
        self.gone = False

    async def send(self, message):
        await trio.lowlevel.checkpoint()
        if self.blocked is not None:
            await self.blocked.wait()
        if self.gone:
            raise OSError("the client has left")
        self.messages.append(message)

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def starts(self):
        return [message["status"] for message in self.messages if message["type"] == "http.response.start"]


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def answer(wire):
    return Answer(wire.send)


async def test_comment_brings_the_head_along_if_nothing_was_sent(answer, wire):
    """That is the early commit."""
    await answer.comment(lambda: HEAD)

    assert wire.starts == [200]
    assert wire.body == sse.KEEP_ALIVE
    assert (answer.started, answer.committed) == (True, False)


@pytest.mark.parametrize("written", [b"data: x", b"data: x\n", b"data: x\r\n", b"d", b": comment\n"])
async def test_comment_is_not_put_inside_an_event(answer, wire, written):
    """Nor after the line that may go on."""
    await answer.start(*HEAD)
    await answer.write(written)
    await answer.comment(lambda: HEAD)

    assert wire.body == written


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
async def test_comment_is_put_between_events_also_after_a_blank_line_sent_by_bytes(answer, wire, end):
    """What ends an event may come one byte at a time."""
    await answer.start(*HEAD)
    for byte in b"data: x" + end:
        await answer.write(bytes([byte]))
    await answer.comment(lambda: HEAD)

    assert wire.body == b"data: x" + end + sse.KEEP_ALIVE


async def test_comment_gives_way_to_a_write_and_a_write_waits_for_a_comment(answer, wire):
    """Two tasks write, never both at once, and neither loses anything."""
    await answer.start(*HEAD)
    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer.write, EVENT)
        await wait_all_tasks_blocked()
        nursery.start_soon(answer.comment, lambda: HEAD)
        await wait_all_tasks_blocked()
        wire.blocked.set()
    assert wire.body == EVENT

    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer.comment, lambda: HEAD)
        await wait_all_tasks_blocked()
        nursery.start_soon(answer.write, EVENT)
        await wait_all_tasks_blocked()
        wire.blocked.set()
    assert wire.body == EVENT + sse.KEEP_ALIVE + EVENT
    assert answer.bytes_sent == len(wire.body)


@pytest.mark.parametrize("how", ["end", "fail", "respond"])
async def test_nothing_follows_the_end(answer, wire, how):
    """However it ends, and also while its last bytes are still on their way."""
    ends = {
        "end": lambda: answer.end(EVENT),
        "fail": lambda: answer.fail(sse.write(b"{}")),
        "respond": lambda: answer.respond(503, [], b"{}"),
    }
    if how != "respond":
        await answer.start(*HEAD)
    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends[how])
        await wait_all_tasks_blocked()
        await answer.comment(lambda: HEAD)
        wire.blocked.set()
    await answer.comment(lambda: HEAD)

    assert sse.KEEP_ALIVE not in wire.body
    assert wire.messages[-1]["more_body"] is False
    assert len(wire.starts) == 1
    assert answer.ended


@pytest.mark.parametrize(
    ("written", "cut"), [(b"", b""), (EVENT, b""), (b"data: {", b"\n\n"), (b"data: {}\n", b"\n\n")]
)
async def test_failure_is_an_event_of_its_own(answer, wire, written, cut):
    """Half an event is ended first, so that nobody joins it with the error."""
    await answer.start(*HEAD)
    if written:
        await answer.write(written)
    await answer.fail(sse.write(b'{"error":{}}'))

    assert wire.body == written + cut + b'data: {"error":{}}\n\n'


async def test_client_that_is_gone_is_noticed_by_whoever_writes(answer, wire):
    """As one exception of ours, and the next writer is not kept waiting by the failed one."""
    await answer.start(*HEAD)
    wire.gone = True
    for write in (answer.write, answer.end):
        with pytest.raises(ClientGone):
            await write(EVENT)
    other = Answer(wire.send)
    with pytest.raises(ClientGone):
        await other.comment(lambda: HEAD)
    with pytest.raises(ClientGone):
        await other.write(EVENT)


async def test_cancelled_comment_keeps_no_writer_waiting(answer, wire):
    """The pacer goes with its nursery; the error event still has to be sent."""
    await answer.start(*HEAD)
    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer.comment, lambda: HEAD)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    wire.blocked = None
    with trio.fail_after(SAFETY_NET_S):
        await answer.fail(sse.write(b"{}"))

    assert wire.body == b"data: {}\n\n"


async def paced(answer, settings, script):
    """Run a pacer beside `script(pacer)`; when each comment was sent is told by the wire."""
    pacer = Pacer(answer, settings, lambda: HEAD)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        await script(pacer)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("settings", "opened_at", "heard_at", "spoken_at"),
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
async def test_silence_is_filled_exactly_when_it_is_due(
    autojump_clock, answer, wire, settings, opened_at, heard_at, spoken_at
):
    """From the early commit or the neuron's head on, a comment after each stretch of silence, and only then."""
    spoken = []
    send = answer._send

    async def noting(message):
        if message.get("body") == sse.KEEP_ALIVE:
            spoken.append(round(trio.current_time(), 6))
        await send(message)

    answer._send = noting

    async def script(pacer):
        if opened_at is not None:
            await trio.sleep_until(opened_at)
            pacer.opened(lambda: HEAD)
        for at in heard_at:
            await trio.sleep_until(at)
            pacer.quiet_since = trio.current_time()
        await trio.sleep_until(9.9)

    await paced(answer, settings, script)
    assert spoken == spoken_at


async def test_hushed_pacer_says_nothing(autojump_clock, answer, wire):
    """What comes turned out to be no stream."""

    async def script(pacer):
        await trio.sleep(1)
        pacer.disable_keepalive()
        await trio.sleep(60)

    await paced(answer, StreamingSettings(), script)
    assert wire.messages == []
