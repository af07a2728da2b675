"""Listening sockets."""

import socket

import trio

from gateway.config.settings import Listen
from gateway.server.listen import STUCK_READER_MS, listening


async def test_accepted_socket_times_out_a_peer_that_stops_reading():
    """Accepted sockets inherit TCP_USER_TIMEOUT; without it, Hypercorn keeps such a connection for ever."""
    async with listening(Listen("127.0.0.1", 0)) as sock, await trio.open_tcp_stream(*sock.getsockname()):
        sock.setblocking(True)
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == STUCK_READER_MS
