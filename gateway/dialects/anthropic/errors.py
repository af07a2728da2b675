"""Errors in the form of Anthropic's API, as response bodies and as stream events. The status is never changed here.

Shapes and types as in https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

import msgspec

from gateway import errors
from gateway.dialects.token_room import read_token_refusal
from gateway.dialects.upstream_errors import UpstreamErrorResponse, is_context_overflow
from gateway.http import sse

__all__ = ["body", "event", "upstream_error_body"]


def body(error: errors.GatewayError, request_id: str) -> bytes:
    """The response body for an error of the gateway, to go with `error.status`."""
    return _body(error.status, error.message, request_id, code=error.code)


def event(error: errors.GatewayError, request_id: str) -> bytes:
    """The `error` event that ends a stream."""
    return sse.write(body(error, request_id), b"error")


def upstream_error_body(response: UpstreamErrorResponse, request_id: str) -> bytes:
    """The response body for a neuron's error, to go with its own status and Retry-After.

    A body that has Anthropic's form already keeps its error type.
    """
    value = response.value
    if not isinstance(value, dict) or not isinstance(error := value.get("error"), dict):
        return _body(response.status, response.message, request_id)
    type_ = error.get("type") if value.get("type") == "error" else None
    return _body(
        response.status,
        response.message,
        request_id,
        code=error.get("code"),
        type_=type_ if isinstance(type_, str) else None,
    )


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def _body(status: int, message: str, request_id: str, *, code: object = None, type_: str | None = None) -> bytes:
    by_status = _TYPES.get(status) or ("invalid_request_error" if 400 <= status < 500 else "api_error")
    error = {"type": type_ or by_status, "message": _in_anthropics_words(message, code)}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def _in_anthropics_words(message: str, code: object) -> str:
    """Coding clients compact a conversation only if the error message contains "prompt is too long".

    They lower `max_tokens` only for "input length and `max_tokens` exceed context limit".
    """
    refusal = read_token_refusal(message)
    if refusal is not None:
        return refusal.message or message
    too_long = code == "context_length_exceeded" or is_context_overflow(message)
    return f"prompt is too long: {message}" if too_long and "prompt is too long" not in message else message
