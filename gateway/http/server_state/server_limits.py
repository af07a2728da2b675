"""The limits of the HTTP server for one client."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServerLimits"]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits on what a client can send and on how long it can take."""

    header_bytes: int = 65536
    header_s: float = 30  # from a request's first byte to the end of its headers
    keep_alive_s: float = 650  # between requests; longer than common load balancers, whose longest is 600 s
    client_write_s: float = 60  # for the client to read something
    connections: int = 10_000
    linger_s: float = 2  # for a client to read an early response and stop sending
    linger_bytes: int = 256 * 1024**2  # four bodies of the default limit
    pipelined_bytes: int = 65536  # of requests sent ahead; further ones stay in the client's socket
