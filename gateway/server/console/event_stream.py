"""`GET /admin/events`: server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). Plain ASGI.

Quart would end the stream after 30 s. The stream ends when the client leaves, or its key or session is no longer valid.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from gateway.asgi import Headers, Receive, Scope, Send
from gateway.server.console.event_feed import EventFeed, Missed

__all__ = ["stream_events"]

HEADERS: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]
RECONNECT_MS = 1000
RESYNC = b"event: resync\ndata: {}\n\n"


async def stream_events(
    feed: EventFeed, scope: Scope, receive: Receive, send: Send, *, is_allowed: Callable[[], bool]
) -> None:
    """Send events until the client leaves or `is_allowed` is false, which is asked before each chunk.

    Raises:
        errors.Overloaded: Too many pages listen; nothing was sent.
    """
    last_id = dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1")
    with feed.listening():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_until_gone, receive, nursery.cancel_scope)
            await _send_chunks(feed, send, last_id, is_allowed)
            nursery.cancel_scope.cancel()


async def _send_chunks(feed: EventFeed, send: Send, last_id: str, is_allowed: Callable[[], bool]) -> None:
    position = feed.resume(last_id)
    chunk = b"retry: %d\n\n" % RECONNECT_MS
    if position is None:
        position, everything = feed.begin()
        chunk += RESYNC + everything
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    while is_allowed():
        if chunk:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        try:
            chunk = await feed.next(position)
        except Missed:  # the client reads more slowly than events come: it gets the present state instead
            position, everything = feed.begin()
            chunk = RESYNC + everything
    await send({"type": "http.response.body", "body": b"event: signed_out\ndata: {}\n\n", "more_body": False})


async def _wait_until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
