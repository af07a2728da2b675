"""Listening sockets."""

import socket

import pytest
import trio

from gateway.config.settings import Listen
from gateway.http.pool import Origin, open_stream
from gateway.server.listen import STUCK_READER_MS, listening


@pytest.fixture
async def accepted():
    """A connection that has waited to be accepted."""
    async with listening(Listen("127.0.0.1", 0)) as sock, await trio.open_tcp_stream(*sock.getsockname()):
        sock.setblocking(True)
        accepted, _ = sock.accept()
        with accepted:
            yield accepted


async def test_accepted_socket_times_out_a_peer_that_stops_reading(accepted):
    """Accepted sockets inherit TCP_USER_TIMEOUT; without it, Hypercorn keeps such a connection for ever."""
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == STUCK_READER_MS


async def test_accepted_socket_has_tcp_keepalive(accepted):
    """With a first sign before the shortest common timeout of a firewall, 60 s."""
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 60
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) < 60


async def test_connection_that_waits_to_be_accepted_sends_small_messages_at_once(accepted):
    """A client that comes back before the gateway accepts must not get its tokens 40 ms late, several at a time."""
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_connection_to_a_neuron_has_tcp_keepalive(nursery):
    """An answer that is not streamed is a silent connection for minutes."""
    async with listening(Listen("127.0.0.1", 0)) as sock:
        stream = await open_stream(Origin.parse("http://{}:{}".format(*sock.getsockname())))
        async with stream:
            assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 60
