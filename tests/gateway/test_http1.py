"""The HTTP front against good, bad and slow clients. In memory on the autojump clock, but for the last section."""

import json
import socket

import pytest
import structlog
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from gateway.http1 import ClientDisconnected, Server, ServerLimits

GET = b"GET /x?y=1 HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


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
    """Answers with what it was sent: method, path and body."""
    body = await read_body(receive)
    told = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
    data = json.dumps({**told, "body": body.decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": data})


def make_server(app=echo, **limits):
    return Server(app, limits=ServerLimits(**limits), log=structlog.get_logger())


async def read_all(stream):
    data = b""
    while piece := await stream.receive_some(65536):
        data += piece
    return data


async def exchange(data, app=echo, **limits):
    """Send `data`, half-close, and return everything that came back."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_server(app, **limits).serve_stream, theirs)
        await ours.send_all(data)
        with trio.move_on_after(200):
            return await read_all(ours)
    raise AssertionError("the server neither answered nor closed")


def parse(data):
    """Split one response into status, headers and body (chunks joined)."""
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


# What is served .......................................................................................................


@pytest.mark.parametrize(
    ("request_bytes", "told"),
    [
        (GET, {"method": "GET", "path": "/x", "query": "y=1", "body": ""}),
        (POST, {"method": "POST", "path": "/echo", "query": "", "body": "hello"}),
        (CHUNKED, {"method": "POST", "path": "/echo", "query": "", "body": "hello world"}),
        (b"GET /a%2Fb%20c HTTP/1.1\r\nhost: a\r\n\r\n", {"method": "GET", "path": "/a/b c", "query": "", "body": ""}),
        (b"GET http://a/b?c HTTP/1.1\r\nhost: a\r\n\r\n", {"method": "GET", "path": "/b", "query": "c", "body": ""}),
        (b"GET / HTTP/1.0\r\n\r\n", {"method": "GET", "path": "/", "query": "", "body": ""}),
        (
            (
                b"POST /u HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\ncontent-length: 2"
                b"\r\n\r\nhi"
            ),
            {"method": "POST", "path": "/u", "query": "", "body": "hi"},
        ),
        (
            b"GET /u HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            {"method": "GET", "path": "/u", "query": "", "body": ""},
        ),
    ],
)
async def test_request_is_served_however_it_arrives(autojump_clock, request_bytes, told):
    """Whole or byte by byte, the application sees the same request."""
    close = request_bytes.replace(b"host: a", b"host: a\r\nconnection: close", 1)
    if b"upgrade" in request_bytes:
        close = request_bytes
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_server(keep_alive_s=1).serve_stream, theirs)
        for i in range(len(close)):
            await ours.send_all(close[i : i + 1])
        status, _, body = parse(await read_all(ours))

    assert (status, json.loads(body)) == (200, told)
    whole = parse(await exchange(close, keep_alive_s=1))
    assert json.loads(whole[2]) == told


async def test_connection_is_used_again_and_pipelined_requests_are_answered_in_order(autojump_clock):
    """Three requests sent at once come back in their order, then idleness ends the connection silently."""
    data = await exchange(POST + GET + CHUNKED, keep_alive_s=7)

    assert [json.loads(part[part.index(b"{") :])["path"] for part in data.split(b"HTTP/1.1 200 OK")[1:]] == [
        "/echo",
        "/x",
        "/echo",
    ]
    assert trio.current_time() == 7


async def test_expect_continue_is_answered_when_the_body_is_wanted(autojump_clock):
    """A client like curl sends 100 kB bodies only after this."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_server(keep_alive_s=1).serve_stream, theirs)
        await ours.send_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await ours.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await ours.send_all(b"hi")
        assert parse(await read_all(ours))[0] == 200


async def test_head_has_the_headers_of_get_and_no_body(autojump_clock):
    """`HEAD /` is what a popular coding CLI sends first."""
    data = await exchange(b"HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")

    assert data.endswith(b"\r\n\r\n")
    assert parse(data)[0] == 200


async def test_stream_is_chunked_and_its_head_leaves_with_the_first_bytes(autojump_clock):
    """One write for both; then each message one chunk, and the terminator at the end."""

    async def app(scope, receive, send):
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"three", "more_body": False})

    data = await exchange(GET.replace(b"host: a", b"host: a\r\nconnection: close"), app)

    assert data.endswith(b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")


async def test_http_1_0_stream_lasts_until_the_connection_ends(autojump_clock):
    """No chunks for a client that does not know them."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": False})

    head, _, body = (await exchange(b"GET / HTTP/1.0\r\n\r\n", app)).partition(b"\r\n\r\n")

    assert body == b"onetwo"
    assert b"connection: close" in head
    assert b"chunked" not in head


# What is refused ......................................................................................................


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
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", 431),
    ],
)
async def test_bytes_that_are_no_request_are_refused_and_the_connection_closed(autojump_clock, bad, status):
    """With the envelope and `connection: close`; what follows on the connection is not looked at."""
    data = await exchange(bad + GET)
    got, headers, body = parse(data)

    assert got == status
    assert headers[b"connection"] == b"close"
    assert set(json.loads(body)["error"]) == {"message", "type", "code", "param"}
    assert data.count(b"\r\nconnection: close\r\n") == 1


async def test_fault_behind_a_good_request_comes_after_its_answer(autojump_clock):
    """Pipelined garbage does not eat the answer before it."""
    data = await exchange(POST + b"garbage\r\n\r\n")

    assert data.startswith(b"HTTP/1.1 200")
    assert data.count(b"HTTP/1.1 400") == 1


@pytest.mark.parametrize("half", [b"G", GET[:-2], b"GET / HTTP/1.1\r\nhost: a\r\nx: "])
async def test_half_a_request_is_a_408_at_its_deadline(autojump_clock, half):
    """Exactly when the headers are due, counted from the first byte."""
    status, headers, _ = parse(await exchange(half, header_s=30))

    assert (status, headers[b"connection"]) == (408, b"close")
    assert trio.current_time() == 30 + 2  # and 2 s of lingering, as the client did not close


async def test_silent_connection_is_closed_without_a_word(autojump_clock):
    """Nothing was asked, so nothing is answered."""
    assert await exchange(b"", keep_alive_s=75) == b""
    assert trio.current_time() == 75


async def test_one_connection_too_many_is_told_so(autojump_clock):
    """503 with Retry-After; and there is room again once another has gone."""
    server = make_server(connections=1)
    async with trio.open_nursery() as nursery:
        first, theirs = memory_stream_pair()
        nursery.start_soon(server.serve_stream, theirs)
        await wait_all_tasks_blocked()
        second, theirs = memory_stream_pair()
        nursery.start_soon(server.serve_stream, theirs)
        status, headers, body = parse(await read_all(second))
        assert (status, headers[b"retry-after"], json.loads(body)["error"]["code"]) == (503, b"1", "overloaded")
        await first.aclose()
        await wait_all_tasks_blocked()
        assert server.statistics().open == 0
        assert server.statistics().refused == 1


# Applications that fail ...............................................................................................


async def test_exception_before_the_answer_is_a_500_without_a_traceback(autojump_clock):
    """The log has the traceback, the client an envelope."""

    async def app(scope, receive, send):
        raise ZeroDivisionError("secret detail")

    with structlog.testing.capture_logs() as logs:
        status, _, body = parse(await exchange(GET, app))

    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in body
    assert [entry["event"] for entry in logs] == ["app_crashed"]


@pytest.mark.parametrize("fails", [True, False])
async def test_answer_that_is_not_finished_is_not_made_to_look_so(autojump_clock, fails):
    """No terminating chunk after a crash in mid-stream, nor when the application just returns."""

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


# Clients that leave ...................................................................................................


async def test_receive_tells_when_the_client_leaves_after_its_request(autojump_clock):
    """What a watcher waits for; and `send` raises from then on."""
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
        nursery.start_soon(make_server(app).serve_stream, theirs)
        await ours.send_all(POST)
        await wait_all_tasks_blocked()
        await ours.aclose()

    assert seen == ["http.disconnect", ClientDisconnected]


async def test_receive_can_be_cancelled_without_losing_the_next_request(autojump_clock):
    """A watcher is cancelled when its answer is done; bytes that came meanwhile belong to the next request."""

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
        nursery.start_soon(make_server(app, keep_alive_s=5).serve_stream, theirs)
        await ours.send_all(POST)
        await trio.sleep(0.5)
        await ours.send_all(GET)
        data = await read_all(ours)

    assert [part[-len(b"/x") :] for part in data.split(b"HTTP/1.1")[1:]] == [b"ho", b"/x"]


async def test_endless_pipelining_does_not_fill_our_memory(autojump_clock):
    """Requests sent ahead wait in the client's socket; the watcher stops reading."""
    ahead = 0

    async def app(scope, receive, send):
        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_server(app).serve_stream, theirs)
        with trio.move_on_after(0.5):
            for _ in range(1000):
                await ours.send_all(GET * 100)
                ahead += len(GET) * 100
                await wait_all_tasks_blocked()
        pending = len(theirs.receive_stream._incoming._data) if hasattr(theirs.receive_stream, "_incoming") else 0
        nursery.cancel_scope.cancel()

    assert pending >= ahead - 3 * 65536


# Draining .............................................................................................................


async def test_drain_closes_idle_connections_and_lets_running_ones_finish(autojump_clock):
    """An idle one at once; a running one after its answer, which says `connection: close`."""

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
        data = await read_all(busy)

    assert parse(data)[0] == 200
    assert trio.current_time() == 10


# Real sockets .........................................................................................................


@pytest.fixture
async def start(nursery):
    async def start_server(app=echo, **limits):
        server = make_server(app, **limits)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(server.serve, listeners)
        return server, listeners[0].socket.getsockname()

    return start_server


async def test_client_that_reads_nothing_is_dropped_and_others_never_notice(start):
    """It holds one task for `client_write_s`; meanwhile another client is answered."""
    gone = trio.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/x":
            return await echo(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError:
            gone.set()
            raise

    _, address = await start(app, client_write_s=0.5)
    stuck = await trio.open_tcp_stream(*address)
    await stuck.send_all(POST)
    await trio.sleep(0.1)
    other = await trio.open_tcp_stream(*address)
    with trio.fail_after(0.3):
        await other.send_all(GET)
        assert (await other.receive_some()).startswith(b"HTTP/1.1 200")
    with trio.fail_after(3):
        await gone.wait()
    await stuck.aclose()
    await other.aclose()


async def test_early_refusal_of_a_large_upload_reaches_the_client(start):
    """A reset on unread bytes would eat the 413; the server discards them for a while instead."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too large"})

    _, address = await start(app)
    stream = await trio.open_tcp_stream(*address)
    size = 100 * 1024**2

    async def upload():
        piece = b"x" * 1024**2
        try:
            for _ in range(100):
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        await stream.send_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
        nursery.start_soon(upload)
        with trio.fail_after(5):
            status, headers, body = parse(await read_all(stream))
        nursery.cancel_scope.cancel()

    assert (status, headers[b"connection"], body) == (413, b"close", b"too large")
    await stream.aclose()


async def test_cancelled_send_leaves_a_connection_that_is_not_used_again(start):
    """Half a chunk is out: the only honest thing is to close."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(0.2):
            await send({"type": "http.response.body", "body": b"x" * 10_000_000, "more_body": True})

    _, address = await start(app)
    stream = await trio.open_tcp_stream(*address)
    await stream.send_all(GET + GET)
    await trio.sleep(0.4)
    with trio.fail_after(5):
        data = await read_all(stream)

    assert data.count(b"HTTP/1.1") == 1
    assert len(data) < 10_000_000
    await stream.aclose()


async def test_reset_by_the_client_ends_quietly(start):
    """RST while an answer is on its way: no log line, and the server serves on."""
    _, address = await start()
    with structlog.testing.capture_logs() as logs:
        stream = await trio.open_tcp_stream(*address)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        await stream.send_all(POST)
        await stream.aclose()
        other = await trio.open_tcp_stream(*address)
        await other.send_all(GET)
        assert (await other.receive_some()).startswith(b"HTTP/1.1 200")
        await other.aclose()

    assert logs == []
