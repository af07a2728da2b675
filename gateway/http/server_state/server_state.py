"""Which connections wait for a request, or for the rest of one, and one timer for all of them."""

from __future__ import annotations

from math import inf
from typing import Protocol

import trio

from gateway.http.epoll.hang_ups import HangUps
from gateway.http.epoll.pump import Pump
from gateway.http.request_parser import LatestHead
from gateway.http.server_state.server_limits import ServerLimits
from gateway.http.server_tls.handshake import FailedHandshakes

__all__ = ["ServerState", "WaitingConnection"]


class WaitingConnection(Protocol):
    """A connection that waits for its client."""

    @property
    def evicted(self) -> bool:
        """Whether the server has ended it."""
        ...

    def evict(self) -> None:
        """End it."""
        ...

    def close_if_idle(self) -> bool:
        """End it unless a part of a request has arrived. Returns whether it did."""
        ...

    def expire(self) -> None:
        """End it, because its wait has exceeded its deadline."""
        ...


class ServerState:
    """What a server's connections share."""

    __slots__ = (
        "draining", "failed_handshakes", "hang_ups", "idle", "incomplete", "keeps_idle", "latest_head", "pump",
        "served",
    )  # fmt: skip

    def __init__(self, pump: Pump | None = None) -> None:
        self.draining = False
        self.keeps_idle = False  # while draining: a connection may wait for its last request
        self.failed_handshakes = FailedHandshakes()
        self.hang_ups = HangUps()
        self.pump = pump
        self.latest_head = LatestHead()
        self.served = 0  # requests
        self.idle: dict[WaitingConnection, float] = {}
        """Connections between two requests, with the Trio time at which that ends; the longest idle one comes first."""
        self.incomplete: dict[WaitingConnection, float] = {}
        """As `idle`, of those that wait for the rest of a request. The application limits the time of a body."""

    async def end_overdue(self, limits: ServerLimits) -> None:
        """End the connections whose wait has exceeded its deadline, forever. One timer: a scope per wait costs 6 us.

        It sleeps until the first deadline. A wait that begins in the meantime has a later one, or none before the
        shortest wait has passed.
        """
        while True:
            now = trio.current_time()
            next_at = now + min(limits.keep_alive_s, limits.header_s)
            for waiting in (self.idle, self.incomplete):
                for connection, deadline in waiting.items():
                    if deadline <= now:
                        connection.expire()
                    elif deadline < inf:  # the first one that is not overdue; a body has no deadline
                        next_at = min(next_at, deadline)
                        break
            await trio.sleep_until(next_at)
