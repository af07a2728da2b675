"""Bodies that are sent while they arrive: framing, early responses, and no retries."""

import math

import pytest
import trio
from fakes.patience import SAFETY_NET_S
from fakes.scripted import MemoryNetwork, answering, listening, with_length
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import DeadlineSettings
from gateway.errors import BodyTooLarge, DeadlineExceeded, UpstreamConnectionError
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import Origin, UpstreamPool, request_head

ORIGIN = Origin.parse("http://beast:13131")
HELLO = with_length(b"hello")
TOO_LARGE = with_length(b"too large", status="413 Content Too Large")


class Pieces:
    """A body of these pieces: bytes; an exception to raise; seconds to wait; None to wait forever."""

    def __init__(self, *pieces, length=None):
        self.pieces = list(pieces)
        self.length = length
        self.asked = 0

    async def receive(self):
        self.asked += 1
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                return piece
            await trio.sleep(math.inf if piece is None else piece)
        return b""


class Endless:
    """A body without end."""

    length = None

    def __init__(self):
        self.given = 0

    async def receive(self):
        await trio.lowlevel.checkpoint()
        self.given += 65_536
        return b"x" * 65_536


async def ask(upstream, body, origin=ORIGIN, phases=None):
    """Run one exchange; return the response's status and body."""
    head = request_head(origin, b"/v1/audio/transcriptions", b"", body.length)
    with (
        phases or PhaseDeadlines(DeadlineSettings()) as waits,
        upstream.exchange(origin, (head,), waits, body) as exchange,
    ):
        response = await exchange.response()
        answer = b""
        while piece := await response.receive():
            answer += piece
        return response.status, answer


class Recorder:
    """A peer that reads until its input ends with `enough`, then responds."""

    def __init__(self, enough, answer=HELLO):
        self.enough = enough
        self.answer = answer
        self.received = b""
        self.closed = trio.Event()

    async def __call__(self, stream):
        while not self.received.endswith(self.enough):
            piece = await stream.receive_some(65_536)
            if not piece:
                break
            self.received += piece
        else:
            await stream.send_all(self.answer)
            while await stream.receive_some(65_536):
                pass
        self.closed.set()

    @property
    def body(self):
        return self.received.partition(b"\r\n\r\n")[2]


async def test_body_with_a_length_is_sent_as_it_arrives(nursery):
    """Byte for byte, with content-length; the connection can be reused."""
    peer = Recorder(b"three")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)

    assert await ask(upstream, Pieces(b"one", b"two", b"three", length=11)) == (200, b"hello")
    assert b"content-length: 11\r\n" in peer.received
    assert peer.body == b"onetwothree"
    assert upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 1, "reused": 0}
    upstream.close()


async def test_body_without_a_length_is_sent_chunked(nursery):
    """One chunk per piece."""
    peer = Recorder(b"0\r\n\r\n")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)

    assert await ask(upstream, Pieces(b"one", b"x" * 20)) == (200, b"hello")
    assert b"transfer-encoding: chunked\r\n" in peer.received
    assert b"content-length" not in peer.received
    assert peer.body == b"3\r\none\r\n14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n"
    upstream.close()


async def test_early_response_ends_the_upload(nursery):
    """After a 413, the rest is not sent, and the connection is closed."""
    body = Endless()

    async def peer(stream):
        await stream.receive_some(1000)
        await stream.send_all(TOO_LARGE)
        await trio.sleep_forever()

    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)

    assert await ask(upstream, body) == (413, b"too large")
    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}
    nursery.cancel_scope.cancel()


async def test_early_response_is_read_when_the_socket_is_full():
    """The neuron has stopped reading, and the buffers are full when its response arrives."""
    body = Endless()

    async def peer(stream):
        await stream.receive_some(1000)
        await wait_all_tasks_blocked(0.02)
        await stream.send_all(TOO_LARGE)
        await trio.sleep_forever()

    with trio.fail_after(SAFETY_NET_S):
        async with listening(peer) as url:
            assert await ask(UpstreamPool(), body, Origin.parse(url)) == (413, b"too large")


async def test_upload_is_not_retried_when_the_neuron_closes(nursery):
    """The bytes it has read are gone."""

    async def peer(stream):
        await stream.receive_some(1000)
        await stream.aclose()

    network = MemoryNetwork(nursery, peer)
    upstream = UpstreamPool(connect=network.connect)
    with pytest.raises(UpstreamConnectionError, match="without sending a response"):
        await ask(upstream, Endless())

    assert len(network.connections) == 1
    assert upstream.in_use == 0


async def test_exception_of_the_body_ends_the_exchange(nursery):
    """It is raised unchanged, and the neuron sees the connection close."""
    peer = Recorder(b"never")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    with pytest.raises(BodyTooLarge, match="more than we take"):
        await ask(upstream, Pieces(b"some", BodyTooLarge("more than we take")))
    with trio.fail_after(SAFETY_NET_S):
        await peer.closed.wait()

    assert b"4\r\nsome\r\n" in peer.body
    assert b"0\r\n\r\n" not in peer.body
    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


async def test_cancelled_upload_closes_its_connection(nursery):
    """The neuron sees an incomplete body; no task remains."""
    peer = Recorder(b"never")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as uploading:
            uploading.start_soon(ask, upstream, Pieces(b"some", None))
            await wait_all_tasks_blocked()
            scope.cancel()
    with trio.fail_after(SAFETY_NET_S):
        await peer.closed.wait()

    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


async def test_upload_does_not_reuse_an_idle_connection(nursery):
    """It may be dead, which would show only after half of the body."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(HELLO, HELLO), Recorder(b"two")).connect)
    head = request_head(ORIGIN, b"/v1/embeddings", b"", 2)
    with upstream.exchange(ORIGIN, (head + b"{}",), PhaseDeadlines(DeadlineSettings())) as exchange:
        response = await exchange.response()
        while await response.receive():
            pass
    await ask(upstream, Pieces(b"one", b"two", length=6))

    assert upstream.statistics()["reused"] == 0
    upstream.close()


async def test_upload_has_no_total_deadline(nursery, autojump_clock):
    """Each piece restarts the deadline; after the last one, the deadline for the first byte begins."""
    peer = Recorder(b"end")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    pieces = [step for _ in range(20) for step in (500.0, b"x")]
    phases = PhaseDeadlines(DeadlineSettings())

    assert await ask(upstream, Pieces(*pieces, b"end", length=23), phases=phases) == (200, b"hello")
    assert trio.current_time() == 10_000
    assert [phase for phase, _ in phases.entered] == ["connect", "upload", "first_byte"]
    assert phases.spent_ms(trio.current_time())["upload"] == 10_000_000
    upstream.close()


async def test_neuron_that_reads_nothing_exceeds_the_upload_deadline(nursery, autojump_clock):
    """The same time as for the first byte."""

    async def connect(origin):
        await trio.lowlevel.checkpoint()
        return StuckStream()

    upstream = UpstreamPool(connect=connect)
    with pytest.raises(DeadlineExceeded, match="600 s for the neuron to take") as caught:
        await ask(upstream, Pieces(100.0, b"x", length=1))

    assert caught.value.param == "upload"
    assert trio.current_time() == 600


class StuckStream(trio.abc.Stream):
    """Reads a request's head, then nothing more; sends nothing."""

    def __init__(self):
        self._sent = 0

    async def send_all(self, data):
        self._sent += 1
        if self._sent > 1:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes=None):
        await trio.sleep_forever()

    async def aclose(self):
        await trio.lowlevel.checkpoint()
