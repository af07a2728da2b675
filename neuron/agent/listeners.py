"""Listening sockets of the neuron API, and its certificate."""

from __future__ import annotations

import socket
import ssl

import trio

from catalogue.toml.addresses import Listen
from gateway.http.sockets import set_latency_options
from neuron.agent.config.settings import ApiSettings

__all__ = ["CannotServe", "open_listeners", "tls_context"]

BACKLOG = 1024
STUCK_PEER_MS = 60_000


class CannotServe(Exception):
    """An operator's mistake, as opposed to a crash. The text is for the operator."""


async def open_listeners(listen: Listen) -> list[trio.SocketListener]:
    """Listen on an address. The caller owns the listeners. Raises CannotServe."""
    try:
        listeners = await trio.open_tcp_listeners(listen.port, host=listen.host, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CannotServe(f"cannot listen on {listen}: {reason}") from error
    for listener in listeners:
        # Accepted sockets inherit these: a peer that has vanished is noticed while nothing is written, and while
        # something is.
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_PEER_MS)
        set_latency_options(listener.socket.setsockopt)
    return listeners


def tls_context(api: ApiSettings) -> ssl.SSLContext | None:
    """The server's context, or None without a certificate. Raises CannotServe."""
    if api.cert is None or api.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(api.cert, api.key)
    except OSError as error:  # SSLError is one too
        raise CannotServe(f"cannot use [api] cert {api.cert} with key {api.key}: {error.strerror or error}") from error
    return context
