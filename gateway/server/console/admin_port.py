"""The admin port's ASGI application: the pages and what streams; every other path belongs to the Quart routes.

GET /, /console/*        assets.py
GET /admin/events        event_stream.py
POST /admin/playground/* the inference application, as the signed-in key
everything else          admin_app.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway import errors
from gateway.access.keys.key import Key
from gateway.asgi import App, Headers, Receive, Scope, Send
from gateway.proxy.app import KEY_IN_SCOPE
from gateway.server.access.host_check import HostCheck
from gateway.server.console.assets import PREFIX, serve_asset
from gateway.server.console.event_feed import EventFeed
from gateway.server.console.event_stream import stream_events
from gateway.server.console.sessions import CSRF_HEADER, Operator, Session, Sessions, session_id_of

__all__ = ["AdminPort"]

EVENTS: Final = "/admin/events"
PLAYGROUND: Final = "/admin/playground"
PLAYGROUND_PATHS: Final = frozenset({"/v1/chat/completions"})


class AdminPort:
    """Everything that the admin port answers.

    Args:
        routes: The Quart application of the admin API.
        sessions: The sessions of the console.
        identify: Returns whose key this is; None if it is not valid.
        feed: The live events.
        inference: The application for the inference paths.
        may_infer: Whether an operator may send inference requests.
        inference_key: Returns the key of an operator for the playground.
        hosts: Checks the host that each request names.
    """

    def __init__(
        self,
        routes: App,
        *,
        sessions: Sessions,
        identify: Callable[[str], Operator | None],
        feed: EventFeed,
        inference: App,
        may_infer: Callable[[Operator], bool],
        inference_key: Callable[[Operator], Key | None],
        hosts: HostCheck,
    ) -> None:
        self._routes = routes
        self._sessions = sessions
        self._identify = identify
        self._feed = feed
        self._inference = inference
        self._may_infer = may_infer
        self._inference_key = inference_key
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of the admin port."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        path, is_get = scope["path"], scope["method"] in {"GET", "HEAD"}
        try:
            fault = self._hosts.fault(dict(scope["headers"]).get(b"host"))
            if fault is not None:
                raise fault
            if is_get and (path == "/" or path.startswith(PREFIX)) and await serve_asset(scope, send):
                return
            if path == EVENTS and scope["method"] == "GET":
                await self._stream_events(scope, receive, send)
            elif path.startswith(f"{PLAYGROUND}/") and scope["method"] == "POST":
                await self._infer(scope, receive, send)
            else:
                await self._routes(scope, receive, send)
        except errors.GatewayError as error:
            await _send_error(send, error)

    async def _stream_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        await stream_events(self._feed, scope, receive, send, is_allowed=self._permission(scope))

    def _permission(self, scope: Scope) -> Callable[[], bool]:
        """What tells whether the sender of this request may still read. Raises InvalidApiKey if it may not now."""
        key = _bearer(scope)
        if key is not None:
            operator = self._identify(key)
            if operator is None:
                raise errors.InvalidApiKey("this key is not valid: it is wrong, expired or revoked")
            return operator.is_valid
        session_id = _session_id(scope)
        if session_id is None or self._sessions.find(session_id) is None:
            raise errors.InvalidApiKey("no key; send it as authorization: Bearer, or sign in to the console")
        return lambda: self._sessions.is_open(session_id)

    async def _infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an inference request of the playground: the page must not know a key, and has its session instead."""
        session = self._sessions.find(_session_id(scope))
        if session is None:
            raise errors.InvalidApiKey("not signed in to the console")
        _require_csrf(session, scope)
        path = scope["path"].removeprefix(PLAYGROUND)
        if path not in PLAYGROUND_PATHS:
            raise errors.NotFound(f"no such path; the playground has {', '.join(sorted(PLAYGROUND_PATHS))}")
        if not self._may_infer(session.operator):
            raise errors.VerbNotAllowed("this key lacks the verb infer, so it cannot send requests to models")
        headers = [header for header in scope["headers"] if header[0] not in _OF_THE_SESSION]
        request = {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
        await self._inference({**request, KEY_IN_SCOPE: self._inference_key(session.operator)}, receive, send)


_OF_THE_SESSION = frozenset({b"cookie", b"authorization", b"x-api-key", b"api-key", CSRF_HEADER.encode()})


def _require_csrf(session: Session, scope: Scope) -> None:
    value = dict(scope["headers"]).get(CSRF_HEADER.encode(), b"").decode("latin-1")
    if not session.permits_change(value):
        raise errors.CsrfMissing(f"send the header {CSRF_HEADER} with the value of GET /admin/session")


def _session_id(scope: Scope) -> str | None:
    cookies = (value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie")
    server = scope.get("server")
    return session_id_of(cookies, None if server is None else server[1])


def _bearer(scope: Scope) -> str | None:
    header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


async def _send_error(send: Send, error: errors.GatewayError) -> None:
    headers: Headers = [(b"content-type", b"application/json"), *error.headers]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": errors.envelope(error), "more_body": False})
