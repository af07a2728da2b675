"""The Quart-Trio application: `/v1/models`, `/health`, `/ready`; and the door where the data plane is mounted.

Quart serves what is looked at, `inference.py` what is waited for: a Quart route costs 200 us a request, ends every
response after 60 s and loses exceptions before they reach the request's scope (docs/architecture.md). Quart is
imported here and by the admin window only.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import werkzeug.exceptions
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from gateway import errors
from gateway.asgi import App, Headers, Message, Receive, Scope, Send
from gateway.config.settings import Settings
from gateway.dialects.anthropic import errors as anthropic_errors
from gateway.proxy.app import Inference
from gateway.proxy.endpoints import ENDPOINTS
from gateway.server import models_anthropic, openapi, path_hints
from gateway.server.models_api import Entry

__all__ = ["PublicApp", "PublicRoutes", "json_response", "make_windows", "mount_document", "new_app"]

ANTHROPIC_VERSION = "anthropic-version"  # a header that every client of that API sends, and no other does
WINDOW_BODY_LIMIT_BYTES = 1024 * 1024  # nothing but inference takes a body worth the name
WINDOW_TIMEOUT_S = 30


class PublicRoutes:
    """What the windows show, as functions of now; `serve.py` says where it comes from."""

    def __init__(
        self,
        *,
        models: Callable[[], list[Entry]],
        model: Callable[[str], Entry | None],
        health: Callable[[], dict[str, Any]],
        ready: Callable[[], bool],
    ) -> None:
        self.models = models
        self.model = model
        self.health = health
        self.ready = ready


def make_windows(windows: PublicRoutes, version: str) -> QuartTrio:
    """The Quart application of the public port."""
    app = new_app("cortex")
    mount_document(app, openapi.public(version))

    @app.get("/v1/models")
    async def list_models() -> Response:
        entries = windows.models()
        if ANTHROPIC_VERSION in request.headers:
            return _json(models_anthropic.listing(entries, request.args))
        return json_response({"object": "list", "data": entries})

    @app.get("/v1/models/<path:model_id>")
    async def get_model(model_id: str) -> Response:
        entry = windows.model(model_id)
        if entry is None:
            raise errors.ModelNotFound(f"model '{model_id}' not found: /v1/models lists what there is", param="model")
        return _json(models_anthropic.single(entry)) if ANTHROPIC_VERSION in request.headers else json_response(entry)

    @app.get("/health")
    async def health() -> Response:
        return json_response(windows.health())

    @app.get("/ready")
    async def ready() -> Response:
        return json_response({"ready": windows.ready()}, 200 if windows.ready() else 503)

    @app.get("/")
    async def root() -> Response:
        return json_response({"name": "cortex", "version": version, **windows.health()})

    return app


def new_app(name: str) -> QuartTrio:
    """A Quart-Trio application with our envelope for every error and limits set on purpose."""
    app = QuartTrio(name)
    app.config.update(
        RESPONSE_TIMEOUT=WINDOW_TIMEOUT_S, BODY_TIMEOUT=WINDOW_TIMEOUT_S, MAX_CONTENT_LENGTH=WINDOW_BODY_LIMIT_BYTES
    )

    @app.errorhandler(errors.GatewayError)
    async def refuse(error: errors.GatewayError) -> Response:
        return _error_response(error)

    @app.errorhandler(HTTPException)
    async def refuse_http(error: HTTPException) -> Response:
        return _error_response(_as_ours(error))

    @app.errorhandler(Exception)
    async def refuse_ours(error: Exception) -> Response:
        app.logger.error("internal_error", exc_info=error)
        return _error_response(errors.InternalError("an error inside the gateway; its log has more"))

    return app


def mount_document(app: QuartTrio, document: bytes) -> None:
    """`/openapi.json`."""

    @app.get("/openapi.json")
    async def describe() -> Response:
        return _json(document)


def json_response(body: object, status: int = 200) -> Response:
    """JSON, keys in the order given (Quart's own would sort them)."""
    try:
        encoded = msgspec.json.encode(body)
    except UnicodeEncodeError:  # the path of a file, whose name need not be UTF-8
        encoded = json.dumps(msgspec.to_builtins(body), ensure_ascii=False).encode("utf-8", "replace")
    return _json(encoded, status)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, content_type="application/json")


def _error_response(error: errors.GatewayError) -> Response:
    """In the form that the client's own API has for it."""
    if ANTHROPIC_VERSION in request.headers:
        request_id = secrets.token_hex(16)
        response = _json(anthropic_errors.body(error, request_id), error.status)
        response.headers["request-id"] = request_id
    else:
        response = _json(errors.envelope(error), error.status)
    for name, value in error.headers:
        response.headers[name.decode()] = value.decode()
    return response


def _as_ours(error: HTTPException) -> errors.GatewayError:
    kinds: dict[int, type[errors.GatewayError]] = {
        404: errors.NotFound,
        408: errors.RequestTimeout,
        413: errors.BodyTooLarge,
        415: errors.UnsupportedMediaType,
    }
    if error.code == 404:
        return errors.NotFound(path_hints.hint(request.path))
    if isinstance(error, werkzeug.exceptions.MethodNotAllowed):
        allow = set(error.valid_methods or ())
        return errors.MethodNotAllowed(f"{request.method} is not allowed on {request.path}", allow=allow)
    kind = kinds.get(error.code or 500, errors.BadRequest if (error.code or 500) < 500 else errors.InternalError)
    return kind(error.description or error.name)


class PublicApp:
    """The public ASGI application: inference to the data plane, the rest to Quart, CORS for both.

    `admin` is what answers under `/admin/`, where the operator wants that here too; None leaves it to the other port.
    No CORS there: no web page has any business with it.
    """

    def __init__(self, inference: Inference, windows: App, settings: Settings, *, admin: App | None = None) -> None:
        self._inference = inference
        self._windows = windows
        self._admin = admin
        self._origins = frozenset(settings.gateway.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every request of the public port comes in here."""
        if scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._windows(scope, receive, send)
            return
        if self._admin is not None and scope["path"].startswith("/admin/"):
            await self._admin(scope, receive, send)
            return
        if scope["path"] not in ENDPOINTS and (path := path_hints.meant(scope["path"])) is not None:
            scope = {**scope, "path": path}
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is not None and (allowed := self._allow(origin)) is not None:
            if scope["method"] == "OPTIONS":
                await _answer_preflight(scope, send, allowed)
                return
            send = _with_headers(send, [*allowed, *_EXPOSED])
        if scope["method"] == "OPTIONS" and scope["path"] in ENDPOINTS:
            await _answer_options(send)
            return
        await (self._inference if scope["path"] in ENDPOINTS else self._windows)(scope, receive, send)

    def _allow(self, origin: bytes) -> Headers | None:
        if "*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        if origin.decode("latin-1") in self._origins:
            return [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        return None


_EXPOSED: Headers = [
    (
        b"access-control-expose-headers",
        b"x-request-id, x-cortex-model, x-cortex-node, x-cortex-alias, retry-after, server-timing",
    )
]


async def _answer_preflight(scope: Scope, send: Send, allowed: Headers) -> None:
    """Without auth, as browsers send none with it (Fetch standard, CORS-preflight fetch)."""
    asked = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), b"*")
    headers = [
        *allowed,
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", asked),
        (b"access-control-max-age", b"86400"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer_options(send: Send) -> None:
    """Of whoever asks what it may do here, and is no browser that asks for a page of another origin."""
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", b"OPTIONS, POST")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Hypercorn's offer; our own front lets such a request pass as the GET it is. There is nothing to talk to here."""
    await receive()
    if "websocket.http.response" not in scope["extensions"]:
        await send({"type": "websocket.close"})
        return
    error = errors.NotFound(path_hints.hint(scope["path"]))
    headers = [(b"content-type", b"application/json")]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": errors.envelope(error), "more_body": False})


def _with_headers(send: Send, headers: Headers) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return send_with_headers
