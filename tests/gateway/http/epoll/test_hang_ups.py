"""One task sees the clients of all connections leave, so that a request needs no task of its own for that."""

import socket

import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.asgi import exchange_of
from gateway.http.server import HttpServer, ServerLimits
from gateway.http.tcp.plain_stream import PlainStream

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class App:
    """Registers a callback for each request, and waits until it is called or the test sets `answer`."""

    def __init__(self):
        self.watchable = []
        self.left = 0
        self.requests = 0
        self.answer = trio.Event()

    async def __call__(self, scope, receive, send):
        self.requests += 1
        with trio.CancelScope() as request:

            def leave():
                self.left += 1
                request.cancel()

            self.watchable.append(exchange_of(scope).on_departure(leave))
            await self.answer.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})


async def connected(nursery, app, *, watched=True):
    """A client's socket; the server's side is being served."""
    ours, theirs = socket.socketpair()
    server = HttpServer(app, limits=ServerLimits(), log=structlog.get_logger())
    if watched:
        await nursery.start(server.watch_connections)
    nursery.start_soon(server.serve_stream, PlainStream(theirs))
    return ours


async def settle():
    """Let the event loop see what happened at the sockets, and every task react."""
    for _ in range(5):
        await trio.sleep(0.005)
        await wait_all_tasks_blocked()


async def test_client_that_closes_ends_its_request():
    app = App()
    async with trio.open_nursery() as nursery:
        client = await connected(nursery, app)
        client.sendall(GET)
        await settle()
        assert app.watchable == [True]
        assert app.left == 0
        client.close()
        await settle()
        assert app.left == 1
        nursery.cancel_scope.cancel()


async def test_client_that_closes_behind_unread_bytes_ends_its_request():
    app = App()
    async with trio.open_nursery() as nursery:
        client = await connected(nursery, app)
        client.sendall(GET)
        await settle()
        client.sendall(GET * 100)
        client.shutdown(socket.SHUT_WR)
        await settle()
        assert (app.requests, app.left) == (1, 1)
        nursery.cancel_scope.cancel()
        client.close()


async def test_client_that_has_left_before_its_request_began_ends_it_at_once():
    app = App()
    async with trio.open_nursery() as nursery:
        client = await connected(nursery, app)
        app.answer.set()
        client.sendall(GET)
        await settle()
        app.answer = trio.Event()
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        await settle()
        assert (app.requests, app.left) == (2, 1)
        nursery.cancel_scope.cancel()
        client.close()


async def test_each_request_of_a_connection_is_watched_while_it_runs_only():
    app = App()
    async with trio.open_nursery() as nursery:
        client = await connected(nursery, app)
        app.answer.set()
        for _ in range(3):
            client.sendall(GET)
            await settle()
            assert client.recv(65536).endswith(b"ok")
        client.close()
        await settle()
        assert app.watchable == [True] * 3
        assert app.left == 0
        nursery.cancel_scope.cancel()


async def test_server_that_does_not_watch_says_so():
    app = App()
    async with trio.open_nursery() as nursery:
        client = await connected(nursery, app, watched=False)
        client.sendall(GET)
        await settle()
        assert app.watchable == [False]
        nursery.cancel_scope.cancel()
        client.close()


async def test_descriptor_of_a_closed_connection_can_be_used_again():
    app = App()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            client = await connected(nursery, app)
            client.sendall(GET)
            await settle()
            client.close()
            await settle()
        assert app.left == 3
        nursery.cancel_scope.cancel()
