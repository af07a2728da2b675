"""The HTTP/1.1 server refuses malformed requests, slow ones and those beyond its limits, in memory."""

import json

import pytest
import trio
from fakes.http_exchanges import (
    CHUNKED,
    GET,
    POST,
    ServerStatistics,
    exchange,
    make_server,
    parse,
    read_all,
    read_body,
    respond,
    serve,
    server_statistics,
    statuses,
)
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

# Rejected requests ....................................................................................................


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"GET / HTTP/1.1\nhost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1e3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello", 400),
        (b"\x00" * 100, 400),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\na", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\na", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\n" + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n host: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nhost: a\r\n\r\n", 505),
        (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", 431),
    ],
)
async def test_malformed_request_is_rejected_and_the_connection_closed(autojump_clock, bad, status):
    """The response has the error envelope and `connection: close`; the bytes after the bad request are ignored."""
    for step in (None, 1 if len(bad) < 1000 else 1000):
        data = await exchange(bad + GET, step=step)
        got, headers, body = parse(data)

        assert got == status
        assert headers[b"connection"] == b"close"
        assert set(json.loads(body)["error"]) == {"message", "type", "code", "param"}
        assert len(statuses(data)) == 1


@pytest.mark.parametrize("endless", [b"1;", b"0\r\nx: ", b"0\r\n" + b"x: y\r\n" * 10])
async def test_chunk_extensions_and_trailers_have_the_limit_of_headers(autojump_clock, endless):
    """The parser, llhttp, keeps them in memory and has no limit of its own."""
    start = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    more = b"x: y\r\n" if endless.endswith(b"\n") else b"y"

    data = await exchange(start + endless + more * 200_000, step=50_000, header_bytes=65536)

    assert statuses(data) == [431]


@pytest.mark.parametrize("before", [b"", b"5\r\nhello\r\n"])
@pytest.mark.parametrize("step", [None, 50_000, 1000])
async def test_long_chunk_extension_is_rejected_although_body_follows(autojump_clock, before, step):
    """In the same read, too. Many small chunks have more framing than body, and are accepted."""
    start = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    extension = start + before + b"5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n"
    small = start + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n"

    assert statuses(await exchange(extension, step=step)) == [431]
    assert statuses(await exchange(small, step=step, keep_alive_s=1)) == [200]


@pytest.mark.parametrize("begun", [False, True])
async def test_malformed_body_is_never_answered_with_success(autojump_clock, begun):
    """The application receives `http.disconnect`; the client gets a 400, or an incomplete response."""

    async def app(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await respond(send, b"all is well") if not begun else None

    start = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_server(app), theirs)
        await ours.send_all(start)
        await wait_all_tasks_blocked()
        await ours.send_all(b"zz\r\n")
        data = await read_all(ours)

    assert statuses(data) == ([200] if begun else [400])
    assert b"all is well" not in data
    assert not data.endswith(b"0\r\n\r\n")


async def test_client_gets_time_to_stop_sending_after_an_early_response(autojump_clock):
    """Closing a socket with unread bytes sends a reset, which may lose the response (RFC 9112, section 9.6)."""

    async def early(scope, receive, send):
        await respond(send, b"too large", status=413)

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_server(early), theirs)
        await ours.send_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nx")
        assert statuses(bytes(await ours.receive_some())) == [413]
        for _ in range(3):
            await trio.sleep(0.5)
            await ours.send_all(b"x")  # still accepted
        assert await ours.receive_some() == b""
    assert trio.current_time() == 2


async def test_error_in_pipelined_bytes_comes_after_the_response_before_it(autojump_clock):
    """The valid request is served first."""
    data = await exchange(POST + b"garbage\r\n\r\n")

    assert data.startswith(b"HTTP/1.1 200")
    assert data.count(b"HTTP/1.1 400") == 1


@pytest.mark.parametrize("half", [b"G", GET[:-2], b"GET / HTTP/1.1\r\nhost: a\r\nx: "])
async def test_incomplete_headers_get_a_408_at_the_deadline(autojump_clock, half):
    """The deadline counts from the first byte."""
    status, headers, _ = parse(await exchange(half, header_s=30))

    assert (status, headers[b"connection"]) == (408, b"close")
    assert trio.current_time() == 30 + 2  # and 2 s of lingering, because the client does not close


async def test_incomplete_headers_after_a_served_request_get_a_408(autojump_clock):
    """A request that has begun has the header deadline, not the idle timeout, even if it was sent ahead."""
    assert statuses(await exchange(GET + GET[:-2], header_s=30, keep_alive_s=75)) == [200, 408]
    assert trio.current_time() == 30 + 2


async def test_idle_connection_is_closed_without_a_response(autojump_clock):
    """The client asked nothing, so it gets no response."""
    assert await exchange(b"", keep_alive_s=75) == b""
    assert trio.current_time() == 75


class Clients:
    """Clients of one server, and an application that answers `/x` at once and other paths after `go_on`."""

    def __init__(self, nursery, **limits):
        self.nursery = nursery
        self.server = make_server(self.app, **limits)
        self.go_on = trio.Event()

    async def app(self, scope, receive, send):
        if scope["path"] != "/x":
            await read_body(receive)
            await self.go_on.wait()
        await respond(send, b"served")

    async def connect(self, data=b""):
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.server.serve_stream, theirs)
        if data:
            await ours.send_all(data)
        await wait_all_tasks_blocked()
        return ours


async def test_connection_beyond_the_limit_gets_a_503(autojump_clock, nursery):
    """If no connection is idle, the new one gets 503 with Retry-After; when one ends, a new one is accepted again."""
    clients = Clients(nursery, connections=1)
    first = await clients.connect(POST)
    second = await clients.connect(GET)
    status, headers, body = parse(await read_all(second))
    assert (status, headers[b"retry-after"], json.loads(body)["error"]["code"]) == (503, b"1", "overloaded")
    await first.aclose()
    clients.go_on.set()
    await wait_all_tasks_blocked()
    assert server_statistics(clients.server) == ServerStatistics(open=0, idle=0, served=1, refused=1)
    assert (await (await clients.connect(GET)).receive_some()).startswith(b"HTTP/1.1 200")


async def test_longest_idle_connection_is_closed_for_a_new_one(autojump_clock, nursery):
    """First one that never sent anything, then the one served longest ago; never one that is being served."""
    clients = Clients(nursery, connections=4)
    busy = await clients.connect(POST)
    served = await clients.connect(GET)
    silent, fresh = await clients.connect(), await clients.connect()
    await served.send_all(GET)  # once more: now the silent one has been idle longest
    await wait_all_tasks_blocked()

    for closed in (silent, fresh, served):
        new = await clients.connect(GET)
        assert (await new.receive_some()).startswith(b"HTTP/1.1 200")
        assert (await read_all(closed)).count(b"HTTP/1.1 200") == (2 if closed is served else 0)
    clients.go_on.set()
    assert (await busy.receive_some()).startswith(b"HTTP/1.1 200")
    assert server_statistics(clients.server) == ServerStatistics(open=4, idle=4, served=6, refused=0)


@pytest.mark.parametrize("begun", [b"G", GET[:-2], POST[:-1], POST[:-5], CHUNKED[:-5]])
async def test_oldest_incomplete_request_is_evicted_for_a_new_connection(autojump_clock, nursery, begun):
    """Wherever the request stops, and without an answer; a request that is being served is never evicted."""
    clients = Clients(nursery, connections=3)
    busy = await clients.connect(POST)
    older, newer = await clients.connect(begun), await clients.connect(begun)

    for evicted in (older, newer):
        new = await clients.connect(GET)
        assert (await new.receive_some()).startswith(b"HTTP/1.1 200")
        assert await read_all(evicted) == b""
        await new.aclose()
        filler = await clients.connect(begun)
        assert filler is not None
    clients.go_on.set()
    assert (await busy.receive_some()).startswith(b"HTTP/1.1 200")
