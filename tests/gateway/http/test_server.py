"""The HTTP/1.1 server with well-behaved clients, in memory, on the autojump clock; and its drain."""

import json

import pytest
import trio
from fakes.http_exchanges import (
    CHUNKED,
    GET,
    POST,
    echo,
    exchange,
    make_server,
    parse,
    read_all,
    read_body,
    respond,
    serve,
    statuses,
)
from trio.testing import memory_stream_pair

from gateway.asgi import exchange_of

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


# What applications send ...............................................................................................


@pytest.mark.parametrize(
    ("request_bytes", "whole"), [(POST, b"hello"), (CHUNKED, b"hello world"), (CHUNKED[:-9], None)]
)
async def test_exchange_does_without_messages_what_receive_and_send_do(autojump_clock, request_bytes, whole):
    """It returns a body that has arrived, once; otherwise the application must call `receive`."""
    taken = []

    async def app(scope, receive, send):
        exchange = exchange_of(scope)
        exchange.more_headers = [(b"x-more", b"1")]
        taken.extend((exchange.take_body(4), exchange.take_body(100), exchange.take_body(100)))
        exchange.start_response(200, [(b"x-own", b"2")])
        await exchange.send_body(b"one", last=False)
        await exchange.send_body(b"two", last=True)
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(RuntimeError):
            await exchange.send_body(b"three", last=True)

    status, headers, body = parse(await exchange(request_bytes, app))
    assert taken == [None, whole, None]
    assert (status, headers[b"x-own"], headers[b"x-more"]) == (200, b"2", b"1")
    assert body == b"onetwo"


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
