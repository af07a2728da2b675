"""Errors as Anthropic's clients know them: ours and those a neuron reports, as bodies and as stream events.

Shapes and types as in https://docs.anthropic.com/en/api/errors. The status is never changed by translation.
"""

from __future__ import annotations

import msgspec

from gateway import errors
from gateway.dialects import upstream_errors
from gateway.http import sse

__all__ = ["body", "event", "translate"]


def body(error: errors.GatewayError, request_id: str) -> bytes:
    """An error of ours, to go with `error.status` and its Retry-After."""
    return _body(error.status, error.message, request_id, code=error.code)


def event(error: errors.GatewayError, request_id: str) -> bytes:
    """The same as the last event of a stream."""
    return sse.write(body(error, request_id), b"error")


def translate(status: int, upstream_body: bytes, request_id: str) -> bytes:
    """A neuron's refusal in whatever form it came, to go with its own status and Retry-After.

    Understands OpenAI's envelope, a neuron's flat `{"error": text}`, FastAPI's `{"detail"}`, `{"message"}` and plain
    text. What is in Anthropic's form already keeps its type.
    """
    try:
        value = msgspec.json.decode(upstream_body)
    except (msgspec.DecodeError, RecursionError):
        value = upstream_body.decode("utf-8", "replace").strip()
    error = value.get("error") if isinstance(value, dict) else None
    known = error.get("type") if isinstance(error, dict) and value.get("type") == "error" else None
    code = error.get("code") if isinstance(error, dict) else None
    message = upstream_errors.message_in(value) or f"the neuron answered {status}"
    return _body(status, message, request_id, code=code, type_=known if isinstance(known, str) else None)


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def _type_of(status: int) -> str:
    return _TYPES.get(status) or ("invalid_request_error" if 400 <= status < 500 else "api_error")


def _body(status: int, message: str, request_id: str, *, code: object = None, type_: str | None = None) -> bytes:
    error = {"type": type_ or _type_of(status), "message": _as_clients_expect(message, code)}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def _as_clients_expect(message: str, code: object) -> str:
    """Coding clients compact a conversation when they read Anthropic's words for "too long", and only then."""
    too_long = code == "context_length_exceeded" or "maximum context length" in message
    return f"prompt is too long: {message}" if too_long and "prompt is too long" not in message else message
