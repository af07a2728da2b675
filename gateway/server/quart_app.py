"""A Quart-Trio application with this gateway's error bodies and limits. The public and the admin routes use it.

Quart serves short lookups only. Inference is `proxy/app.py`: a Quart route costs 200 us per request, ends every
response after 60 s, and loses exceptions before they reach the request's scope (docs/architecture.md).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
import werkzeug.exceptions
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from gateway import errors
from gateway.asgi import Headers
from gateway.dialects.anthropic import errors as anthropic_errors

__all__ = ["ANTHROPIC_VERSION", "json_bytes_response", "json_response", "mount_document", "new_app", "raw_headers"]

ANTHROPIC_VERSION = "anthropic-version"  # every client of the Anthropic API sends this header, and no other client does
BODY_LIMIT_BYTES = 1024 * 1024  # no route but inference needs a larger body
TIMEOUT_S = 30


def new_app(name: str, not_found: Callable[[str], str]) -> QuartTrio:
    """An application that answers every error in the client's dialect.

    `not_found` returns the error text for a path that the application does not have.
    """
    app = QuartTrio(name, root_path=str(Path(__file__).parent))  # else Quart looks for a package of that name
    app.config.update(RESPONSE_TIMEOUT=TIMEOUT_S, BODY_TIMEOUT=TIMEOUT_S, MAX_CONTENT_LENGTH=BODY_LIMIT_BYTES)

    @app.errorhandler(errors.GatewayError)
    async def answer_gateway_error(error: errors.GatewayError) -> Response:
        return _error_response(error)

    @app.errorhandler(HTTPException)
    async def answer_http_exception(error: HTTPException) -> Response:
        if error.code == 404:
            return _error_response(errors.NotFound(not_found(request.path)))
        return _error_response(_as_gateway_error(error))

    @app.errorhandler(Exception)
    async def answer_crash(error: Exception) -> Response:
        app.logger.error("internal_error", exc_info=error)
        return _error_response(errors.InternalError("internal error in the gateway; its log has the traceback"))

    return app


def raw_headers() -> Headers:
    """The headers of the current request, as the server received them."""
    return list(request.scope["headers"])


def mount_document(app: QuartTrio, document: bytes) -> None:
    """Serve `/openapi.json`."""

    @app.get("/openapi.json")
    async def describe() -> Response:
        return json_bytes_response(document)


def json_response(body: object, status: int = 200) -> Response:
    """JSON with its keys in the order given; Quart's own encoder would sort them."""
    try:
        encoded = msgspec.json.encode(body)
    except UnicodeEncodeError:  # a file's path, which need not be UTF-8
        encoded = json.dumps(msgspec.to_builtins(body), ensure_ascii=False).encode("utf-8", "replace")
    return json_bytes_response(encoded, status)


def json_bytes_response(body: bytes, status: int = 200) -> Response:
    """A body that is already encoded."""
    return Response(body, status, content_type="application/json")


def _error_response(error: errors.GatewayError) -> Response:
    if ANTHROPIC_VERSION in request.headers:
        request_id = secrets.token_hex(16)
        response = json_bytes_response(anthropic_errors.body(error, request_id), error.status)
        response.headers["request-id"] = request_id
    else:
        response = json_bytes_response(errors.envelope(error), error.status)
    for name, value in error.headers:
        response.headers[name.decode()] = value.decode()
    return response


def _as_gateway_error(error: HTTPException) -> errors.GatewayError:
    if isinstance(error, werkzeug.exceptions.MethodNotAllowed):
        allow = set(error.valid_methods or ())
        return errors.MethodNotAllowed(f"{request.method} is not allowed on {request.path}", allow=allow)
    kinds: dict[int, type[errors.GatewayError]] = {
        408: errors.RequestTimeout,
        413: errors.BodyTooLarge,
        415: errors.UnsupportedMediaType,
    }
    code = error.code or 500
    kind = kinds.get(code, errors.BadRequest if code < 500 else errors.InternalError)
    return kind(error.description or error.name)
