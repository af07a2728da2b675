"""Type aliases for ASGI (https://asgi.readthedocs.io/en/latest/specs/www.html), and what our own server adds to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

EXCHANGE = "cortex.exchange"
"""The key of a `DirectExchange` in the scope's `extensions`. Only our own server has this extension."""


class DirectExchange(Protocol):
    """Spares the application a task and a scope per request."""

    @property
    def body_complete(self) -> bool:
        """Whether the whole body has arrived, so that `receive` returns it without waiting."""
        ...

    def on_departure(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called once if the client closes the connection before the exchange ends.

        False if the server cannot watch this connection: then `receive` until it returns `http.disconnect`.
        """
        ...


def exchange_of(scope: Scope) -> DirectExchange | None:
    """The server's extension, or None."""
    exchange: DirectExchange | None = scope.get("extensions", _NO_EXTENSIONS).get(EXCHANGE)
    return exchange


_NO_EXTENSIONS: dict[str, Any] = {}
