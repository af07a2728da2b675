"""The public port's ASGI application: which application a path belongs to, and CORS for all of them."""

from __future__ import annotations

import os
from collections.abc import Awaitable

from gateway import errors
from gateway.asgi import App, Headers, Message, Receive, Scope, Send, exchange_of
from gateway.config.settings import Settings
from gateway.dialects.anthropic import errors as anthropic_errors
from gateway.proxy.endpoints import ENDPOINTS
from gateway.server import path_hints
from gateway.server.access.host_check import HostCheck

__all__ = ["PublicApp"]


class PublicApp:
    """Inference goes to the proxy, every other path to the Quart routes.

    `admin` answers under `/admin/` if the operator sets `[admin] public`; with None only the metrics port does. It gets
    no CORS headers: no web page may call it. `hosts` checks the host that each request names.
    """

    def __init__(
        self,
        inference: App,
        routes: App,
        settings: Settings,
        *,
        admin: App | None = None,
        hosts: HostCheck | None = None,
    ) -> None:
        self._inference = inference
        self._routes = routes
        self._admin = admin
        self._hosts = hosts or HostCheck()
        self._origins = frozenset(settings.gateway.cors_origins)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request of the public port. A plain function, to save nearly every request a coroutine."""
        exchange = exchange_of(scope)
        derived = {} if exchange is None else exchange.derived
        if _IS_PLAIN not in derived:
            derived[_IS_PLAIN] = self._is_plain_inference(scope)
        return (self._inference if derived[_IS_PLAIN] else self._answer)(scope, receive, send)

    def _is_plain_inference(self, scope: Scope) -> bool:
        """Whether the head of a request says that the proxy is all that it needs."""
        if scope["type"] != "http" or scope["path"] not in ENDPOINTS or scope["method"] != "POST":
            return False
        headers = dict(scope["headers"])
        return b"origin" not in headers and self._hosts.fault(headers.get(b"host")) is None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._answer_other(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if (error := self._hosts.fault(headers.get(b"host"))) is not None:
            await _answer_error(scope, send, error)
            return
        if self._admin is not None and scope["path"].startswith("/admin/"):
            await self._admin(scope, receive, send)
            return
        if scope["path"] not in ENDPOINTS and (path := path_hints.corrected(scope["path"])) is not None:
            scope = {**scope, "path": path}
        if (origin := headers.get(b"origin")) is not None and (allowed := self._allow(origin)) is not None:
            if scope["method"] == "OPTIONS":
                await _answer_preflight(scope, send, allowed)
                return
            send = _with_headers(scope, send, [*allowed, *_EXPOSED])
        if scope["path"] not in ENDPOINTS:
            await self._routes(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await _answer_no_content(send, [(b"allow", b"OPTIONS, POST")])
        else:
            await self._inference(scope, receive, send)

    async def _answer_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
        else:
            await self._routes(scope, receive, send)

    def _allow(self, origin: bytes) -> Headers | None:
        if "*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        if origin.decode("latin-1") in self._origins:
            return [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        return None


_IS_PLAIN = "cortex.plain_inference"  # of what the server keeps per head
_EXPOSED_NAMES = (
    b"x-request-id, request-id, x-cortex-model, x-cortex-node, x-cortex-alias, x-cortex-ignored, retry-after, "
    b"retry-after-ms, x-should-retry, server-timing, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    b"x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_EXPOSED: Headers = [(b"access-control-expose-headers", _EXPOSED_NAMES)]


async def _answer_preflight(scope: Scope, send: Send, allowed: Headers) -> None:
    """Needs no credentials: browsers send none with a preflight (Fetch standard, CORS-preflight fetch)."""
    requested = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), b"*")
    headers = [
        *allowed,
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", requested),
        (b"access-control-max-age", b"86400"),
    ]
    await _answer_no_content(send, headers)


async def _answer_no_content(send: Send, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer_error(scope: Scope, send: Send, error: errors.GatewayError) -> None:
    """Answer in the dialect of the client, as far as the head of its request shows it."""
    is_anthropic = any(name == b"anthropic-version" for name, _ in scope["headers"])
    body = anthropic_errors.body(error, os.urandom(16).hex()) if is_anthropic else errors.envelope(error)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *error.headers]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Only Hypercorn offers WebSockets; our own server passes the request on as the GET that it is."""
    await receive()
    if "websocket.http.response" not in scope["extensions"]:
        await send({"type": "websocket.close"})
        return
    error: errors.GatewayError = errors.NotFound(path_hints.hint(scope["path"]))
    if scope["path"] in ENDPOINTS:
        error = errors.UpgradeRequired(f"{scope['path']} has no WebSocket: send the request with POST")
    headers = [(b"content-type", b"application/json"), *error.headers]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": errors.envelope(error), "more_body": False})


def _with_headers(scope: Scope, send: Send, headers: Headers) -> Send:
    if (exchange := exchange_of(scope)) is not None:
        exchange.more_headers = headers
        return send

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return send_with_headers
