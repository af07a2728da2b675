"""The HTTP/1.1 server on real sockets and the real clock: behaviour that depends on the kernel."""

import contextlib
import resource
import socket

import pytest
import structlog
import trio
from fakes.http_exchanges import (
    GET,
    POST,
    ServerStatistics,
    echo,
    make_server,
    parse,
    read_all,
    respond,
    server_statistics,
)
from fakes.patience import SAFETY_NET_S, until
from trio.testing import wait_all_tasks_blocked

from gateway.http.server import ACCEPTS_PER_TURN
from gateway.http.server_connection import SENDS_PER_CHECKPOINT
from gateway.http.server_exchange import ClientDisconnected


@pytest.fixture
async def start(nursery):
    async def start_server(app=echo, *, send_buffer_bytes=None, **limits):
        server = make_server(app, **limits)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        if send_buffer_bytes is not None:  # connections inherit it
            listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        await nursery.start(server.serve, listeners)
        return server, listeners[0].socket.getsockname()

    return start_server


async def send_without_end(send):
    """Send 64 KiB again and again."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


async def test_client_that_reads_nothing_does_not_delay_others(start):
    """It occupies one task; another client is answered meanwhile."""

    async def app(scope, receive, send):
        await (echo(scope, receive, send) if scope["path"] == "/x" else send_without_end(send))

    server, address = await start(app)
    stuck, other = [await trio.open_tcp_stream(*address) for _ in range(2)]
    await stuck.send_all(POST)
    await until(lambda: server_statistics(server).served)
    await wait_all_tasks_blocked(0.05)
    await other.send_all(GET)
    with trio.fail_after(SAFETY_NET_S):
        assert (await other.receive_some()).startswith(b"HTTP/1.1 200")
    assert server_statistics(server).open == 2
    await stuck.aclose()
    await other.aclose()


async def test_client_that_reads_nothing_is_dropped(start):
    """After `client_write_s`."""
    gone = trio.Event()

    async def app(scope, receive, send):
        try:
            await send_without_end(send)
        except OSError:
            gone.set()
            raise

    _, address = await start(app, client_write_s=0.2)
    async with await trio.open_tcp_stream(*address) as stuck:
        await stuck.send_all(POST)
        with trio.fail_after(SAFETY_NET_S):
            await gone.wait()


async def test_early_413_reaches_a_client_that_is_still_sending(start):
    """A reset would lose the 413; the server discards the upload for a while instead."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too large"})

    _, address = await start(app, linger_s=SAFETY_NET_S)
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
        with trio.fail_after(SAFETY_NET_S):
            status, headers, body = parse(await read_all(stream))
        nursery.cancel_scope.cancel()

    assert (status, headers[b"connection"], body) == (413, b"close", b"too large")
    await stream.aclose()


class CancelledSender:
    """An application whose send of 10 MB is cancelled while it waits; then it sends `b"and on"`, or nothing."""

    def __init__(self, *, sends_more):
        self.sends_more = sends_more
        self.sending = trio.Event()
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.refused = None

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.sending.set()
        with self.scope:
            await send({"type": "http.response.body", "body": b"x" * 10_000_000, "more_body": True})
        self.ended.set()
        if self.sends_more:
            try:
                await send({"type": "http.response.body", "body": b"and on"})
            except ClientDisconnected as error:
                self.refused = error


@pytest.mark.parametrize("sends_more", [False, True])
async def test_connection_is_closed_after_a_cancelled_send(start, sends_more):
    """Half a chunk is sent. A client would read anything sent after it as the rest of the chunk."""
    app = CancelledSender(sends_more=sends_more)
    _, address = await start(app, send_buffer_bytes=65_536)  # some kernels' buffers would take all 10 MB
    stream = await trio.open_tcp_stream(*address)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    await stream.send_all(GET + GET)
    with trio.fail_after(SAFETY_NET_S):
        await app.sending.wait()
        await wait_all_tasks_blocked(0.05)
        app.scope.cancel()
        await app.ended.wait()
        data = await read_all(stream)

    assert data.count(b"HTTP/1.1") == 1
    assert len(data) < 10_000_000
    assert b"and on" not in data
    assert (app.refused is not None) is sends_more
    await stream.aclose()


async def test_cancelled_server_drops_a_client_that_reads_nothing():
    """No send is shielded, so the process can always stop."""

    async def app(scope, receive, send):
        await send_without_end(send)

    with trio.fail_after(SAFETY_NET_S):
        async with trio.open_nursery() as nursery:
            server, listeners = make_server(app), await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(server.serve, listeners)
            stream = await trio.open_tcp_stream(*listeners[0].socket.getsockname())
            await stream.send_all(GET)
            await until(lambda: server_statistics(server).served)
            await wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
    await stream.aclose()


async def test_application_with_its_response_in_memory_lets_other_tasks_run(start):
    """A send that the socket takes at once is no checkpoint, so the server adds one to every sixteenth."""
    checkpoints = 0

    async def app(scope, receive, send):
        before = checkpoints
        await respond(send, *[b"x"] * 321)
        run_meanwhile.append(checkpoints - before)

    async def count_checkpoints():
        nonlocal checkpoints
        while True:
            checkpoints += 1
            await trio.lowlevel.checkpoint()

    run_meanwhile = []
    _, address = await start(app)
    stream = await trio.open_tcp_stream(*address)
    await stream.send_all(GET.replace(b"host: a", b"host: a\r\nconnection: close"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_checkpoints)
        await read_all(stream)
        nursery.cancel_scope.cancel()

    assert run_meanwhile[0] >= 320 // SENDS_PER_CHECKPOINT - 1  # Trio runs tasks in random order
    await stream.aclose()


async def test_incomplete_http_1_0_response_ends_with_a_reset(start):
    """To an HTTP/1.0 client, an orderly close means that the body is complete."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await trio.sleep(0.05)

    _, address = await start(app)
    stream = await trio.open_tcp_stream(*address)
    await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(SAFETY_NET_S):
        await read_all(stream)
    await stream.aclose()


async def test_endless_headers_get_a_431_while_they_arrive(start):
    """The 431 reaches a client that is still sending."""
    _, address = await start()
    stream = await trio.open_tcp_stream(*address)

    async def flood():
        try:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: a\r\n")
            while True:
                await stream.send_all(b"x: y\r\n" * 10_000)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        with trio.fail_after(SAFETY_NET_S):
            assert parse(await stream.receive_some())[0] == 431
        nursery.cancel_scope.cancel()
    await stream.aclose()


@pytest.mark.parametrize(("sent", "status"), [(GET[:-2], 408), (b"\x16\x03\x01 hello", 400)])
async def test_incomplete_and_malformed_requests_get_an_error_response(start, sent, status):
    """As in memory; here with the half-close that lets the response arrive."""
    _, address = await start(header_s=0.1)
    stream = await trio.open_tcp_stream(*address)
    with trio.fail_after(SAFETY_NET_S):
        await stream.send_all(sent)
        assert parse(await read_all(stream))[0] == status
    await stream.aclose()


async def test_flood_of_connections_beyond_the_limit_leaves_nothing_open(start):
    """While one request runs, 150 connections are rejected or closed; the request gets its response."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        await go_on.wait()
        await respond(send, b"served")

    server, address = await start(app, connections=1)
    served = await trio.open_tcp_stream(*address)
    await served.send_all(GET)
    await until(lambda: server_statistics(server).served)
    refused = [await trio.open_tcp_stream(*address) for _ in range(150)]
    with trio.fail_after(SAFETY_NET_S):
        for stream in refused:
            await read_all(stream)
    go_on.set()
    assert parse(await served.receive_some())[0] == 200
    assert server._rejecting <= 100
    await until(lambda: server_statistics(server) == ServerStatistics(open=1, idle=1, served=1, refused=150))
    for stream in [served, *refused]:
        await stream.aclose()


async def test_silent_connections_do_not_lock_others_out(start):
    """Three hundred silent connections, and room for fifty: a client with a request is answered."""
    server, address = await start(connections=50)
    silent = [await trio.open_tcp_stream(*address) for _ in range(300)]
    for _ in range(3):
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(GET)
            with trio.fail_after(SAFETY_NET_S):
                assert parse(await stream.receive_some())[0] == 200
    await until(lambda: server_statistics(server).open <= 50)
    assert server_statistics(server).refused == 0
    for stream in silent:
        await stream.aclose()


class _EvictedInVain(trio.abc.Instrument):
    """Evicts a connection whose task is about to read, and for which nothing is left to read."""

    def __init__(self, server):
        self.server = server
        self.task = None

    def before_task_step(self, task):
        if task is self.task and self.server._state.idle:
            self.task = None
            (connection,) = self.server._state.idle
            connection._stream.socket.recv(100)
            connection.evict()


async def test_eviction_is_noticed_by_a_task_that_was_woken_for_nothing(start):
    """The kernel may report a socket readable when it is not (select(2), BUGS), and the task is not waiting then."""

    async def app(scope, receive, send):
        served_by.append(trio.lowlevel.current_task())
        await echo(scope, receive, send)

    served_by = []
    server, address = await start(app)
    instrument = _EvictedInVain(server)
    trio.lowlevel.add_instrument(instrument)
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(GET)
        await client.receive_some()
        await until(lambda: server_statistics(server).idle)
        (instrument.task,) = served_by
        await client.send_all(b"G")
        with trio.fail_after(SAFETY_NET_S):
            assert await client.receive_some() == b""
    assert instrument.task is None
    trio.lowlevel.remove_instrument(instrument)


async def test_clients_that_come_at_once_are_accepted_at_once():
    """None of them waits until another has its answer: their requests are read in one pass of the event loop."""
    served_after_a_pass = []

    async def app(scope, receive, send):
        await trio.lowlevel.checkpoint()
        served_after_a_pass.append(server_statistics(server).served)
        await echo(scope, receive, send)

    server = make_server(app)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=100)
    with contextlib.ExitStack() as clients:
        for _ in range(ACCEPTS_PER_TURN):
            client = clients.enter_context(socket.create_connection(listeners[0].socket.getsockname()))
            client.sendall(GET)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            await until(lambda: server_statistics(server).served == ACCEPTS_PER_TURN)
            nursery.cancel_scope.cancel()
    assert served_after_a_pass[0] == ACCEPTS_PER_TURN


async def test_client_waits_while_there_are_no_descriptors(start):
    """The server logs it and goes on."""
    _, address = await start()
    client = trio.socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with structlog.testing.capture_logs() as logs, client:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))  # those that are open stay open
            await client.connect(address)
            await client.send(GET)
            await until(lambda: logs)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with trio.fail_after(SAFETY_NET_S):
            assert (await client.recv(1000)).startswith(b"HTTP/1.1 200")
    assert {entry["event"] for entry in logs} == {"accept_failed"}


async def test_drain_ends_when_the_running_stream_does():
    """New connections fail, an idle one is closed, the stream gets its terminator, then `serve` returns."""
    go_on = trio.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/x":
            await echo(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    with trio.fail_after(SAFETY_NET_S):
        async with trio.open_nursery() as nursery:
            server = make_server(app)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            address = listeners[0].socket.getsockname()
            await nursery.start(server.serve, listeners)
            idle, streaming = [await trio.open_tcp_stream(*address) for _ in range(2)]
            await idle.send_all(GET)
            await idle.receive_some()
            await streaming.send_all(POST)
            data = await streaming.receive_some()
            server.drain()
            assert await idle.receive_some() == b""
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(*address)
            go_on.set()
            assert parse(data + await read_all(streaming))[2] == b"onetwo"
            await server.drained()
    await idle.aclose()
    await streaming.aclose()


async def test_request_that_arrives_as_the_drain_begins_is_answered(start):
    """Closing would reset the connection of a client that did nothing wrong."""
    server, address = await start()
    stream = await trio.open_tcp_stream(*address)
    await stream.send_all(GET)
    assert parse(await stream.receive_some())[0] == 200
    with socket.socket(fileno=socket.dup(stream.socket.fileno())) as plain:
        plain.send(GET)  # without a checkpoint, so that the server's task cannot have seen it
    server.drain()
    with trio.fail_after(SAFETY_NET_S):
        status, headers, _ = parse(await read_all(stream))
        assert (status, headers[b"connection"]) == (200, b"close")
        await server.drained()
    await stream.aclose()


async def test_crash_of_one_request_does_not_affect_others(start):
    """The server and the other connection continue."""

    async def app(scope, receive, send):
        if scope["path"] == "/x":
            return await echo(scope, receive, send)
        raise ZeroDivisionError

    _, address = await start(app)
    with structlog.testing.capture_logs():
        good, bad = [await trio.open_tcp_stream(*address) for _ in range(2)]
        await bad.send_all(POST)
        assert parse(await read_all(bad))[0] == 500
        await good.send_all(GET)
        assert parse(await good.receive_some())[0] == 200
    await good.aclose()
    await bad.aclose()


async def test_reset_by_the_client_is_not_logged(start):
    """The client resets while a response is on its way; the server serves the next client."""
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


@pytest.mark.parametrize("linger", [None, b"\x01\x00\x00\x00\x00\x00\x00\x00"])
async def test_client_that_sent_much_ahead_and_left_is_noticed(start, linger):
    """By a close and by a reset, although what it sent ahead stays unread."""
    noticed = trio.Event()

    async def app(scope, receive, send):
        if scope["path"] != "/x":
            return await respond(send, b"")
        while (await receive())["type"] != "http.disconnect":
            pass
        noticed.set()
        raise ClientDisconnected

    _, address = await start(app)
    stream = await trio.open_tcp_stream(*address)
    with trio.move_on_after(0.5):
        await stream.send_all(GET * 5000)
    if linger is not None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await stream.aclose()
    with trio.fail_after(SAFETY_NET_S):
        await noticed.wait()
