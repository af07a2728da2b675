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
    """Spares the application a task and a scope per request, and ASGI's messages.

    Its methods may be mixed with `receive` and `send`, which do the same with messages.
    """

    derived: dict[str, Any]
    """What the application derives from method, target and headers, and from nothing else, kept for the next requests.

    A request has the dict of the one before, on this connection or on another, if its head is the same, byte for byte,
    but for the content-length.
    """

    more_headers: Headers
    """Headers that the response gets besides those of the application: of a layer between server and application."""

    more_lines: bytes
    """Further header lines of the response, each with its line end. They are sent as they are, without a check."""

    @property
    def body_complete(self) -> bool:
        """Whether the whole body has arrived, so that `receive` returns it without waiting."""
        ...

    def take_body(self, limit_bytes: int) -> bytes | None:
        """Return the whole body. None if `receive` must be called: it is incomplete, longer, or returned already."""
        ...

    def start_response(self, status: int, headers: Headers) -> None:
        """As the message `http.response.start`: the head is sent together with the first piece of the body."""
        ...

    async def send_body(self, data: bytes, *, last: bool) -> None:
        """As the message `http.response.body`. Raises as `send` does: OSError if the client has gone."""
        ...

    def respond(self, status: int, headers: Headers, body: bytes) -> Awaitable[None] | None:
        """Both for a whole response. Returns what to await if the client does not take it at once. Raises as both."""
        ...

    def on_departure(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called once if the client closes the connection before the exchange ends.

        False if the server cannot watch this connection: then `receive` until it returns `http.disconnect`.
        """
        ...

    @property
    def can_carry(self) -> bool:
        """Whether `carry` relays anything: the head has been sent, and the server has a pump for this connection."""
        ...

    async def carry(self, source: int, flow: Flow) -> None:
        """Have the server's pump relay from a plain socket's descriptor to the client, until the flow leaves.

        It leaves when `flow.feed` returns None, at the end of the source or an error of it, which the next read of the
        source then meets, or when the client does not take a whole piece. Call `flush` before anything else is sent.

        Raises:
            Exception: What `flow.feed` raised.
            OSError: The client has closed the connection.
        """
        ...

    async def flush(self) -> None:
        """Wait until the client has taken what `carry` could not send. Raises OSError as `send` does."""
        ...


class Flow(Protocol):
    """A stream while a pump carries it."""

    def feed(self, data: bytes, now: float) -> bytes | None:
        """Take what has arrived, at `now` by Trio's clock; return what the client gets for it, often nothing.

        None if the stream must go on in its own task; then the flow keeps what it has taken. Synchronous.
        """
        ...


def exchange_of(scope: Scope) -> DirectExchange | None:
    """The server's extension, or None."""
    exchange: DirectExchange | None = scope["extensions"].get(EXCHANGE) if "extensions" in scope else None
    return exchange
