"""The HTTP/1.1 server with well-behaved, faulty and slow clients, in memory, on the autojump clock."""

import json
import re
from typing import NamedTuple

import pytest
import structlog
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from gateway.asgi import exchange_of
from gateway.http.server import HttpServer, ServerLimits
from gateway.http.server_exchange import ClientDisconnected

GET = b"GET /x?y=1 HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


class ServerStatistics(NamedTuple):
    """Open connections, idle ones among them, requests served, and connections rejected."""

    open: int
    idle: int
    served: int
    refused: int


def server_statistics(server):
    idle = sum(connection.idle for connection in server._connections)
    return ServerStatistics(len(server._connections), idle, server._state.served, server._refused)


async def read_body(receive):
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope, receive, send):
    """Responds with the request's method, path and body."""
    body = await read_body(receive)
    seen = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
    data = json.dumps({**seen, "body": body.decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": data})


def make_server(app=echo, **limits):
    return HttpServer(app, limits=ServerLimits(**limits), log=structlog.get_logger())


async def serve(server, stream):
    """Serve one connection, with the deadlines that the server watches."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.watch_connections)
        await server.serve_stream(stream)
        nursery.cancel_scope.cancel()


async def read_all(stream):
    data = b""
    while piece := await stream.receive_some(65536):
        data += piece
    return data


async def exchange(data, app=echo, step=None, **limits):
    """Send `data`, `step` bytes at a time, until the server closes; return everything it sent."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_server(app, **limits), theirs)
        step = step or len(data) or 1
        try:
            for start in range(0, len(data), step):
                await ours.send_all(data[start : start + step])
                await wait_all_tasks_blocked()
        except trio.BrokenResourceError:
            pass
        with trio.fail_after(1000):
            response = await read_all(ours)
    return response


async def respond(send, *bodies, status=200, headers=()):
    """Send one response, one message per body."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for body in bodies[:-1]:
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": bodies[-1]})


def statuses(data):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", data)]


def parse(data):
    """Split one response into status, headers and body, without chunk framing."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
    if headers.get(b"transfer-encoding") == b"chunked":
        body = dechunk(body)
    return int(lines[0].split()[1]), headers, body


def dechunk(data):
    body = b""
    while True:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return body
        body, data = body + rest[:length], rest[length + 2 :]


# Served requests .....................................................................................................


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (GET, {"method": "GET", "path": "/x", "query": "y=1", "body": ""}),
        (POST, {"method": "POST", "path": "/echo", "query": "", "body": "hello"}),
        (CHUNKED, {"method": "POST", "path": "/echo", "query": "", "body": "hello world"}),
        (b"GET /a%2Fb%20c HTTP/1.1\r\nhost: a\r\n\r\n", {"method": "GET", "path": "/a/b c", "query": "", "body": ""}),
        (b"GET http://a/b?c HTTP/1.1\r\nhost: a\r\n\r\n", {"method": "GET", "path": "/b", "query": "c", "body": ""}),
        (b"GET HTTPS://a?c HTTP/1.1\r\nhost: a\r\n\r\n", {"method": "GET", "path": "/", "query": "c", "body": ""}),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", {"method": "OPTIONS", "path": "*", "query": "", "body": ""}),
        (b"GET /e HTTP/1.1\r\nx:\r\nhost: a\r\n\r\n", {"method": "GET", "path": "/e", "query": "", "body": ""}),
        (b"GET / HTTP/1.0\r\n\r\n", {"method": "GET", "path": "/", "query": "", "body": ""}),
        (
            b"GET /u HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            {"method": "GET", "path": "/u", "query": "", "body": ""},
        ),
    ],
)
async def test_request_is_the_same_whole_or_in_pieces(autojump_clock, request_bytes, expected):
    """The application sees the same request, whether it arrives whole or byte by byte."""
    for step in (None, 1, 7):
        status, _, body = parse(await exchange(request_bytes, step=step, keep_alive_s=1))

        assert (status, json.loads(body)) == (200, expected)


async def test_scope_follows_asgi(autojump_clock):
    """Header names in lower case, values unchanged, the path decoded once, and the query separate."""
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)
        await respond(send, b"")

    await exchange(b"PUT /a%252F%C3%BC?q=%20 HTTP/1.1\r\nHoSt: A\r\nX-Y:  Z \r\nx-y: z\r\n\r\n", app, keep_alive_s=1)

    assert seen["type"] == "http"
    assert (seen["method"], seen["http_version"], seen["scheme"], seen["root_path"]) == ("PUT", "1.1", "http", "")
    assert (seen["path"], seen["raw_path"], seen["query_string"]) == ("/a%2Fü", b"/a%252F%C3%BC", b"q=%20")
    assert [(name, value.strip()) for name, value in seen["headers"]] == [
        (b"host", b"A"),
        (b"x-y", b"Z"),
        (b"x-y", b"z"),
    ]
    assert seen["asgi"]["version"] == "3.0"
    assert (seen["client"], seen["server"]) == (None, None)


@pytest.mark.parametrize(
    "body", [b"", b"content-length: 2\r\n\r\nhi", b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("step", [None, 1])
async def test_offered_upgrade_is_ignored_and_the_connection_lives_on(autojump_clock, body, step):
    """What follows the headers is read as this request's body and the next request, not as another protocol."""
    offer = b"POST /u HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n" + (body or b"\r\n")

    data = await exchange(offer * 2 + GET, step=step, keep_alive_s=1)

    assert statuses(data) == [200, 200, 200]
    assert data.count(b'"body": "hi"') == (2 if body else 0)


async def test_burst_of_requests_that_offer_an_upgrade_is_served(autojump_clock):
    """More requests in one read than Python has stack frames."""
    offer = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"

    assert statuses(await exchange(offer * 1050, keep_alive_s=1)) == [200] * 1050


async def test_pipelined_requests_are_answered_in_order(autojump_clock):
    """Three requests sent at once are answered in order; then the idle timeout closes the connection."""
    data = await exchange(POST + GET + CHUNKED, keep_alive_s=7)

    assert [json.loads(part[part.index(b"{") :])["path"] for part in data.split(b"HTTP/1.1 200 OK")[1:]] == [
        "/echo",
        "/x",
        "/echo",
    ]
    assert trio.current_time() == 7


async def test_expect_continue_is_answered_when_the_application_reads_the_body(autojump_clock):
    """A client such as curl sends large bodies only after a 100 Continue."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_server(keep_alive_s=1), theirs)
        await ours.send_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await ours.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await ours.send_all(b"hi")
        assert parse(await read_all(ours))[0] == 200


async def test_response_to_head_has_headers_and_no_body(autojump_clock):
    """A popular coding CLI sends `HEAD /` first."""
    data = await exchange(b"HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")

    assert data.endswith(b"\r\n\r\n")
    assert parse(data)[0] == 200


async def test_stream_is_sent_in_chunks(autojump_clock):
    """Each message is one chunk; an empty message sends nothing; the last one adds the terminator."""

    async def app(scope, receive, send):
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"three", "more_body": False})

    data = await exchange(GET.replace(b"host: a", b"host: a\r\nconnection: close"), app)

    assert data.endswith(b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")


async def test_http_1_0_stream_ends_with_the_connection(autojump_clock):
    """An HTTP/1.0 client does not know chunks."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": False})

    head, _, body = (await exchange(b"GET / HTTP/1.0\r\n\r\n", app)).partition(b"\r\n\r\n")

    assert body == b"onetwo"
    assert b"connection: close" in head
    assert b"chunked" not in head


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


# Failing applications ................................................................................................


async def test_exception_before_the_response_is_a_500_without_a_traceback(autojump_clock):
    """The traceback is in the log; the client gets the error envelope."""

    async def app(scope, receive, send):
        await read_body(receive)
        raise ZeroDivisionError("secret detail")

    with structlog.testing.capture_logs() as logs:
        status, _, body = parse(await exchange(GET, app))

    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in body
    assert [entry["event"] for entry in logs] == ["app_crashed"]


@pytest.mark.parametrize("fails", [True, False])
async def test_incomplete_response_stays_incomplete(autojump_clock, fails):
    """There is no terminating chunk after the application crashes in mid-stream, or returns early."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        if fails:
            raise ZeroDivisionError

    with structlog.testing.capture_logs():
        data = await exchange(GET, app)

    assert data.endswith(b"3\r\none\r\n")


async def test_header_with_a_line_end_is_never_sent(autojump_clock):
    """An application that copies a header from elsewhere cannot split the response."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nset-cookie: b")]})
        await send({"type": "http.response.body", "body": b""})

    with structlog.testing.capture_logs():
        data = await exchange(GET, app)

    assert data.startswith(b"HTTP/1.1 500")
    assert b"set-cookie" not in data


@pytest.mark.parametrize(("bodies", "expected"), [((b"abc",), [500]), ((b"abcdef",), [500]), ((b"ab", b"c"), [200])])
async def test_body_that_differs_from_its_content_length_ends_the_connection(autojump_clock, bodies, expected):
    """Otherwise the client would read the next response as the rest of this body."""

    async def app(scope, receive, send):
        await respond(send, *bodies, headers=[(b"content-length", b"5")])

    with structlog.testing.capture_logs() as logs:
        data = await exchange(GET + GET, app)

    assert statuses(data) == expected
    assert len(logs) == 1


async def test_cancelled_passes_and_an_exception_raised_with_it_is_logged(autojump_clock):
    """An application that crashes while it is cancelled does not hide the cancellation from the nursery."""

    async def app(scope, receive, send):
        async def crash():
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash)
            await trio.sleep_forever()

    ours, theirs = memory_stream_pair()
    with structlog.testing.capture_logs() as logs, trio.move_on_after(1) as scope:
        await ours.send_all(GET)
        await make_server(app).serve_stream(theirs)

    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert [entry["event"] for entry in logs] == ["app_crashed"]


@pytest.mark.parametrize(
    ("request_bytes", "whole"), [(POST, b"hello"), (CHUNKED, b"hello world"), (CHUNKED[:-9], None)]
)
async def test_exchange_does_without_messages_what_receive_and_send_do(autojump_clock, request_bytes, whole):
    """It returns a body that has arrived, once; otherwise the application must call `receive`."""
    taken = []

    async def app(scope, receive, send):
        exchange = exchange_of(scope)
        exchange.more_headers = [(b"x-more", b"1")]
        taken.extend((exchange.take_body(), exchange.take_body()))
        exchange.start_response(200, [(b"x-own", b"2")])
        await exchange.send_body(b"one", last=False)
        await exchange.send_body(b"two", last=True)
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(RuntimeError):
            await exchange.send_body(b"three", last=True)

    status, headers, body = parse(await exchange(request_bytes, app))
    assert taken == [whole, None]
    assert (status, headers[b"x-own"], headers[b"x-more"]) == (200, b"2", b"1")
    assert body == b"onetwo"


# What applications send ...............................................................................................


async def test_server_sets_date_and_framing_itself(autojump_clock):
    """An upstream's headers about its own connection do not apply to this one."""

    async def app(scope, receive, send):
        await respond(
            send,
            b"a",
            b"b",
            headers=[(b"date", b"yesterday"), (b"transfer-encoding", b"gzip"), (b"keep-alive", b"timeout=5")],
        )

    _, headers, body = parse(await exchange(GET, app, keep_alive_s=1))

    assert set(headers) == {b"date", b"transfer-encoding"}
    assert headers[b"date"] != b"yesterday"
    assert body == b"ab"


@pytest.mark.parametrize("status", [204, 304])
async def test_204_and_304_have_no_body(autojump_clock, status):
    """The client reads no body after these statuses, so it would read one as the next response."""

    async def app(scope, receive, send):
        await respond(send, b"not sent", status=status)

    data = await exchange(GET + GET, app, keep_alive_s=1)

    assert statuses(data) == [status, status]
    assert b"not sent" not in data
    assert b"content-length" not in data
    assert b"chunked" not in data


async def test_application_can_close_the_connection(autojump_clock):
    """The connection is closed after that response."""

    async def app(scope, receive, send):
        await respond(send, b"bye", headers=[(b"connection", b"close")])

    data = await exchange(GET + GET, app)

    assert statuses(data) == [200]
    assert data.count(b"connection: close") == 1


async def test_http_1_0_keep_alive(autojump_clock):
    """ApacheBench uses it; the response must say keep-alive too."""
    data = await exchange(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" * 2, keep_alive_s=1)

    assert statuses(data) == [200, 200]
    assert data.count(b"connection: keep-alive") == 2


async def test_no_100_continue_after_the_response_began_or_to_http_1_0(autojump_clock):
    """The client would read an interim response inside a final one as its body."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await read_body(receive)
        await send({"type": "http.response.body"})

    expecting = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi"

    assert b"100 Continue" not in await exchange(expecting, app, step=40)
    assert b"100 Continue" not in await exchange(expecting.replace(b"1.1", b"1.0"), step=40)


async def test_receive_after_the_response_returns_disconnect(autojump_clock):
    """As ASGI requires."""
    seen = []

    async def app(scope, receive, send):
        await respond(send, b"")
        seen.append(await receive())

    await exchange(GET, app, keep_alive_s=1)

    assert seen == [{"type": "http.disconnect"}]


# Clients that disconnect ..............................................................................................


async def test_receive_returns_when_the_client_disconnects(autojump_clock):
    """`receive` returns `http.disconnect`; `send` raises an OSError from then on."""
    seen = []

    async def app(scope, receive, send):
        await read_body(receive)
        seen.append((await receive())["type"])
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})
        except OSError as error:
            seen.append(type(error))

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_server(app), theirs)
        await ours.send_all(POST)
        await wait_all_tasks_blocked()
        await ours.aclose()

    assert seen == ["http.disconnect", ClientDisconnected]


async def test_cancelled_receive_does_not_lose_the_next_request(autojump_clock):
    """Bytes that arrive while the application watches for a disconnect belong to the next request."""

    async def app(scope, receive, send):
        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.sleep(1)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["path"].encode()})
            nursery.cancel_scope.cancel()

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_server(app, keep_alive_s=5), theirs)
        await ours.send_all(POST)
        await trio.sleep(0.5)
        await ours.send_all(GET)
        data = await read_all(ours)

    assert [part[-len(b"/x") :] for part in data.split(b"HTTP/1.1")[1:]] == [b"ho", b"/x"]


async def test_disconnect_inside_nurseries_is_not_logged_as_a_crash(autojump_clock):
    """ClientDisconnected arrives inside nested exception groups."""

    async def app(scope, receive, send):
        async with trio.open_nursery(), trio.open_nursery():
            await receive()
            await receive()
            await respond(send, b"")

    ours, theirs = memory_stream_pair()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, make_server(app), theirs)
            await ours.send_all(GET)
            await wait_all_tasks_blocked()
            await ours.aclose()

    assert logs == []


async def test_pipelined_requests_in_memory_are_limited(autojump_clock):
    """Further requests stay in the client's socket, even if the application watches for a disconnect."""
    served = 0
    in_memory = []

    async def app(scope, receive, send):
        nonlocal served
        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        await respond(send, b"")
        served += 1
        in_memory.append(sent - len(waiting) - served * len(GET))

    ours, theirs = memory_stream_pair()
    waiting = theirs.receive_stream._incoming._data
    flood = GET * 100_000
    sent = len(flood)
    async with trio.open_nursery() as nursery:
        await ours.send_all(flood)
        nursery.start_soon(serve, make_server(app), theirs)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()

    assert served > 50
    assert max(in_memory) <= 65536 + 2 * 65536  # the limit, and one read before and after it


# Draining .............................................................................................................


async def test_drain_closes_idle_connections_and_finishes_running_requests(autojump_clock):
    """An idle connection closes at once; a running request gets its response with `connection: close`."""

    async def app(scope, receive, send):
        await trio.sleep(10)
        await echo(scope, receive, send)

    server = make_server(app)
    idle, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        busy, theirs = memory_stream_pair()
        nursery.start_soon(server.serve_stream, theirs)
        await busy.send_all(POST)
        await trio.sleep(1)
        server.drain()
        assert await read_all(idle) == b""
        assert trio.current_time() == 1
        status, headers, _ = parse(await read_all(busy))

    assert (status, headers[b"connection"]) == (200, b"close")
    assert trio.current_time() == 10


async def test_connection_accepted_just_before_a_drain_does_not_delay_it(autojump_clock):
    """It has sent no request."""
    server = make_server()
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        server.drain()
        assert await read_all(ours) == b""

    assert trio.current_time() == 0
