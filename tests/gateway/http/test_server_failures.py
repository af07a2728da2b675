"""The HTTP/1.1 server with applications that fail and clients that leave, in memory."""

import gc
import json

import pytest
import structlog
import trio
from fakes.http_exchanges import GET, POST, exchange, make_server, parse, read_all, read_body, respond, serve, statuses
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from gateway.http.request_parser import RequestParser
from gateway.http.server_connection import ServerConnection
from gateway.http.server_exchange import ClientDisconnected

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


@pytest.mark.parametrize("bad", [b"\0\r\n\r\n", POST + b"\0\r\n\r\n", b"GET / HTTP/1.1\r\na: " + b"b" * 200_000])
async def test_connection_that_ends_with_a_malformed_request_leaves_no_cycle(autojump_clock, bad):
    """The error has the frames of the connection, with what was received: only the collector would free them."""
    gc.collect()
    gc.disable()
    try:
        assert 400 <= statuses(await exchange(bad))[-1] < 500
        await wait_all_tasks_blocked()
        assert not [each for each in gc.get_objects() if isinstance(each, RequestParser)]
    finally:
        gc.enable()


async def test_application_that_keeps_an_exchange_does_not_keep_its_connection(autojump_clock):
    """Quart's objects refer to each other, and to `send`, until the garbage collector frees them."""
    kept = []

    async def app(scope, receive, send):
        kept.append(send)
        await respond(send, b"ok")

    gc.collect()
    await exchange(POST[:-1], app)  # the rest of its body never comes
    assert not [each for each in gc.get_objects() if isinstance(each, ServerConnection)]
    assert kept[0].__self__.body == []
