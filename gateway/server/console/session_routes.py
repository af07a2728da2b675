"""`/admin/session`: sign in, sign out, and the session of this browser. And who a request of the admin API comes from.

A request has either a key in `authorization`, or the cookie of a session. With a cookie, every change also needs the
session's `x-cortex-csrf`, which another site cannot read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import trio
from quart import Response, request
from quart_trio import QuartTrio

from gateway import errors
from gateway.server.admin_bodies import decode_body
from gateway.server.console.sessions import (
    CSRF_HEADER,
    LIFETIME_S,
    Operator,
    Session,
    Sessions,
    cookie_name,
    session_id_of,
)
from gateway.server.quart_app import json_response

__all__ = ["SESSION_PATH", "SignInBody", "mount_session_routes", "session_of_request"]

SESSION_PATH = "/admin/session"
KEY_CHARACTERS = 1000
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class SignInBody(msgspec.Struct, forbid_unknown_fields=True):
    """A key with the verb `read`, or the admin token."""

    key: str


def mount_session_routes(
    app: QuartTrio, sessions: Sessions, describe_more: Callable[[Operator], dict[str, Any]]
) -> None:
    """Add the routes. `describe_more` returns what a page needs besides the session itself."""

    def describe(session: Session) -> dict[str, Any]:
        operator: Operator = session.operator
        return {
            "name": operator.name,
            "verbs": sorted(operator.verbs),
            "csrf": session.csrf,
            "expires_in_s": round(session.expires_at - trio.current_time()),
            **describe_more(operator),
        }

    @app.post(SESSION_PATH)
    async def sign_in() -> Response:
        if request.mimetype != "application/json":  # a form of another site cannot send JSON
            raise errors.UnsupportedMediaType("send the key as application/json")
        body = await decode_body(SignInBody)
        begun = sessions.begin(body.key.strip()) if len(body.key) <= KEY_CHARACTERS else None
        if begun is None:
            raise errors.InvalidApiKey(
                "this key is not valid here: it is wrong, expired or revoked, or lacks the verb read"
            )
        sessions.end(_session_id())
        session_id, session = begun
        response = json_response(describe(session), 201)
        response.headers["set-cookie"] = _cookie(session_id, LIFETIME_S)
        response.headers["cache-control"] = "no-store"
        return response

    @app.get(SESSION_PATH)
    async def get_session() -> Response:
        session = sessions.find(_session_id())
        if session is None:
            raise errors.InvalidApiKey("not signed in; POST /admin/session with a key signs in")
        response = json_response(describe(session))
        response.headers["cache-control"] = "no-store"
        return response

    @app.delete(SESSION_PATH)
    async def sign_out() -> Response:
        session = sessions.find(_session_id())
        if session is not None:
            require_csrf(session, request.headers.get(CSRF_HEADER, ""))
            sessions.end(_session_id())
        response = Response(b"", 204)
        response.headers["set-cookie"] = _cookie("", 0)
        return response


def session_of_request(sessions: Sessions) -> Session | None:
    """The session of the request that Quart is serving; None without a cookie. Raises if a change lacks the CSRF value.

    Raises:
        errors.CsrfMissing: The request changes something without the session's `x-cortex-csrf`.
    """
    session = sessions.find(_session_id())
    if session is not None and request.method not in _SAFE_METHODS:
        require_csrf(session, request.headers.get(CSRF_HEADER, ""))
    return session


def require_csrf(session: Session, value: str) -> None:
    """Raise CsrfMissing unless the value is the session's."""
    if not session.permits_change(value):
        raise errors.CsrfMissing(f"send the header {CSRF_HEADER} with the value of GET {SESSION_PATH}")


def _session_id() -> str | None:
    return session_id_of(request.headers.getlist("cookie"), _port())


def _port() -> int | None:
    server = request.scope.get("server")
    return None if server is None else server[1]


def _cookie(value: str, lifetime_s: float) -> str:
    # A proxy that ends TLS says so in x-forwarded-proto. A client that lies about it gets a cookie it cannot use.
    is_tls = "https" in {request.scheme, request.headers.get("x-forwarded-proto", "").split(",")[0].strip()}
    secure = "; Secure" if is_tls else ""
    return f"{cookie_name(_port())}={value}; Path=/; Max-Age={lifetime_s:.0f}; HttpOnly; SameSite=Strict{secure}"
