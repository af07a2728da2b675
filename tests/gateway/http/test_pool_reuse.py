"""The pool with scripted neurons: when a connection is reused, and which responses are errors. In memory."""

import pytest
import trio
from fakes.patience import SAFETY_NET_S
from structlog.testing import capture_logs
from trio.testing import memory_stream_pair

from gateway.config.settings import DeadlineSettings
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import Origin, UpstreamPool, request_head

ORIGIN = Origin.parse("http://beast:13131/prefix/")
HANG = object()
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Scripted:
    """A pool over memory streams; each new connection is served by the next script."""

    def __init__(self, nursery, *scripts):
        self._nursery = nursery
        self._scripts = list(scripts)
        self.upstream = UpstreamPool(connect=self._connect)
        self.received = []

    async def _connect(self, origin):
        script = self._scripts.pop(0)
        if isinstance(script, OSError):
            raise script
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self._serve, script, theirs)
        return ours

    async def _serve(self, script, wire):
        for answer in script:
            data = await wire.receive_some()
            if not data:
                return
            self.received.append(data)
            if answer is None:
                break
            if answer is HANG:
                await trio.sleep_forever()
            await wire.send_all(answer)
        await wire.aclose()

    async def ask(self, message=b"POST / HTTP/1.1\r\n\r\n"):
        with (
            PhaseDeadlines(DeadlineSettings()) as phases,
            self.upstream.exchange(ORIGIN, (message,), phases) as exchange,
        ):
            response = await exchange.response()
            body = b""
            while piece := await response.receive():
                body += piece
            return response.status, body


@pytest.fixture
def scripted(nursery):
    return lambda *scripts: Scripted(nursery, *scripts)


def test_request_head_has_the_prefix_and_host_of_the_origin():
    """With the length of the body, and the caller's headers between."""
    head = request_head(ORIGIN, b"/v1/chat/completions", b"accept: */*\r\n", 7)

    assert head == (
        b"POST /prefix/v1/chat/completions HTTP/1.1\r\nhost: beast:13131\r\naccept: */*\r\ncontent-length: 7\r\n\r\n"
    )


async def test_connection_is_reused(autojump_clock, scripted):
    """Three requests, one connection."""
    pool = scripted([OK] * 3)
    assert [await pool.ask() for _ in range(3)] == [(200, b"ok")] * 3
    assert pool.upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 1, "reused": 2}


async def test_connection_is_not_reused_after_three_idle_seconds(autojump_clock, scripted):
    """Servers commonly close after five seconds."""
    pool = scripted([OK] * 2, [OK])
    await pool.ask()
    await trio.sleep(2.9)
    await pool.ask()
    await trio.sleep(3.1)
    await pool.ask()
    assert pool.upstream.opened == 2


async def test_idle_connection_is_swept(autojump_clock, nursery, scripted):
    """Even if the neuron gets no further request."""
    pool = scripted([OK] * 2)
    nursery.start_soon(pool.upstream.run)
    await pool.ask()
    await trio.sleep(4.1)
    assert pool.upstream.statistics()["idle"] == 0


async def test_request_is_retried_on_a_new_connection(autojump_clock, scripted):
    """The neuron closed the reused connection just before."""
    pool = scripted([OK, None], [OK])
    await pool.ask()
    assert await pool.ask() == (200, b"ok")
    assert pool.upstream.opened == 2


async def test_new_connection_closed_without_a_response_is_an_error(autojump_clock, scripted):
    """Further retries would hide a neuron that crashes at every request."""
    pool = scripted([None])
    with pytest.raises(UpstreamConnectionError, match="without sending a response"):
        await pool.ask()
    assert pool.upstream.in_use == 0


async def test_refused_connection_has_the_system_error(autojump_clock, scripted):
    """In the message, in words; the address is in the log only, because clients read the message."""
    pool = scripted(OSError(111, "Connection refused"))
    with capture_logs() as logs, pytest.raises(UpstreamConnectionError, match=r"connection refused") as raised:
        await pool.ask()

    assert "beast" not in raised.value.message
    assert (logs[0]["event"], logs[0]["address"]) == ("connect_failed", "beast:13131")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",  # until close
        OK + b"HTTP/1.1 200 OK\r\n\r\n",  # more than was asked for
        OK + b"garbage",
    ],
)
async def test_connection_is_not_reused_after(autojump_clock, scripted, answer):
    """`connection: close`, a body until close, and bytes after the response."""
    pool = scripted([answer, None] if answer[-6:] == b"\r\n\r\nok" and b"length" not in answer else [answer], [OK])
    if b"length" not in answer:
        pool = scripted_until_close(pool, answer)
    assert (await pool.ask())[1] == b"ok"
    await pool.ask()
    assert pool.upstream.opened == 2


def scripted_until_close(pool, answer):
    """Let the neuron close after its response, which ends the body."""

    async def serve(script, wire):
        await wire.receive_some()
        await wire.send_all(script[0])
        await wire.aclose()

    pool._serve = serve
    return pool


async def test_cancelled_exchange_closes_its_connection(autojump_clock, scripted):
    """Its response may still arrive; another request must not get it."""
    pool = scripted([HANG], [OK])
    with trio.move_on_after(1):
        await pool.ask()
    assert pool.upstream.statistics()["in_use"] == 0
    assert await pool.ask() == (200, b"ok")
    assert pool.upstream.opened == 2


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_interim_responses_are_skipped(autojump_clock, scripted, pieces):
    """100 and 103 precede the final response."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * pieces
    pool = scripted([interim + OK] * 2)
    assert [await pool.ask() for _ in range(2)] == [(200, b"ok")] * 2
    assert pool.upstream.opened == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n", None),
        (b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n", UpstreamConnectionError),
        (b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n", UpstreamMalformedResponse),
        (b"content-length: 3\r\n\r\nok", UpstreamConnectionError),
        (b"content-length: 2\r\ncontent-length: 3\r\n\r\nok", UpstreamMalformedResponse),
        (b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * 200_000, UpstreamMalformedResponse),
        (b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 40_000, UpstreamMalformedResponse),
        (b"x: " + b"y" * 60_000 + b"\r\ncontent-length: 2\r\n\r\nok", None),
        (b"x: " + b"y" * 66_000 + b"\r\ncontent-length: 2\r\n\r\nok", UpstreamMalformedResponse),
        (b"x: y\r\n" * 20_000 + b"content-length: 2\r\n\r\nok", UpstreamMalformedResponse),
    ],
)
async def test_framing_of_responses_is_checked(autojump_clock, scripted, body, error):
    """A truncated body is a connection error, an invalid one malformed; headers and trailers have a limit."""
    pool = scripted([b"HTTP/1.1 200 OK\r\n" + body])
    pool = scripted_until_close(pool, b"")
    if error is None:
        assert await pool.ask() == (200, b"ok")
    else:
        with pytest.raises(error):
            await pool.ask()
    assert pool.upstream.in_use == 0


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00" * 10, b"HTTP/1.1 101 Switching Protocols\r\n\r\n"]
)
async def test_garbage_as_response_is_an_error(autojump_clock, scripted, garbage):
    """Also a protocol switch that was not asked for."""
    with pytest.raises((UpstreamMalformedResponse, UpstreamConnectionError)):
        await scripted_until_close(scripted([garbage]), b"").ask()


async def test_early_response_is_read_while_a_large_body_is_sent(nursery):
    """On a real socket: the neuron sends a 413 without reading to the end, and does not close."""

    async def neuron(stream):
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, neuron, listeners)
    upstream = UpstreamPool()
    origin = Origin.parse(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n"
    with (
        trio.fail_after(SAFETY_NET_S),
        PhaseDeadlines(DeadlineSettings()) as phases,
        upstream.exchange(origin, (head, b"x" * 50_000_000), phases) as exchange,
    ):
        response = await exchange.response()
        assert (response.status, await response.receive()) == (413, b"no")
    assert upstream.statistics()["idle"] == 0
    nursery.cancel_scope.cancel()
