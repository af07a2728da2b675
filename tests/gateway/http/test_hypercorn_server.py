"""Hypercorn's front, on a real socket: how long it keeps connections open."""

import socket

import pytest
import trio
from fakes.patience import SAFETY_NET_S

from gateway.config.settings import DeadlineSettings, GatewaySettings, Settings
from gateway.http.hypercorn_server import HypercornServer

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
    else:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()


@pytest.fixture
async def connect(nursery):
    """Opens a connection to a server with these settings."""
    sock = socket.create_server(("127.0.0.1", 0))

    async def serve_and_connect(**seconds):
        header_s = seconds.get("header_seconds", 30)
        front = GatewaySettings(keep_alive_seconds=seconds.get("keep_alive_seconds", 650))
        settings = Settings(gateway=front, deadlines=DeadlineSettings(header_seconds=header_s))
        server = HypercornServer(answer, sock, settings)
        await nursery.start(server.serve)
        return await trio.open_tcp_stream(*sock.getsockname())

    with sock, trio.fail_after(SAFETY_NET_S):
        yield serve_and_connect


async def test_idle_connection_outlives_the_deadline_of_a_header(connect):
    """A load balancer that reuses it would find it closed."""
    async with await connect(header_seconds=0.05) as stream:
        await stream.send_all(REQUEST)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
        await trio.sleep(0.5)  # ten times the deadline, which must have no effect
        await stream.send_all(REQUEST)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")


async def test_idle_connection_is_closed_after_its_own_time(connect):
    """`gateway.keep_alive_seconds`."""
    async with await connect(header_seconds=10 * SAFETY_NET_S, keep_alive_seconds=0.05) as stream:
        await stream.send_all(REQUEST)
        received = b""
        while piece := await stream.receive_some():
            received += piece
        assert received.startswith(b"HTTP/1.1 204")
