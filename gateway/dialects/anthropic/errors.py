"""Errors as Anthropic's clients know them: ours and those a neuron reports, as bodies and as stream events.

Shapes and types as in https://docs.anthropic.com/en/api/errors. The status is never changed by translation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway import errors, sse

__all__ = ["body", "event", "from_stream", "translate"]


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
    message = _message(value) or f"the neuron answered {status}"
    return _body(status, message, request_id, code=code, type_=known if isinstance(known, str) else None)


def from_stream(value: object) -> errors.GatewayError:
    """What a neuron reports inside a stream, as an error of ours: the stream has failed, and this is why."""
    status = _status_in(value)
    message = _message({"error": value}) or "the neuron reported an error inside its stream"
    if status in {429, 503, 529}:
        return errors.ServiceUnavailable(message)
    if 400 <= status < 500:
        return errors.BadRequest(message)
    return errors.UpstreamConnectionError(message)


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


def _message(value: object) -> str | None:
    """The words of an error body, wherever they are."""
    if isinstance(value, dict):
        for key in ("error", "message", "detail"):
            if found := _message(value.get(key)):
                return found
        return None
    if isinstance(value, str):
        return value or None
    # FastAPI's `detail` is a list of objects: as JSON it is still a person's best hint.
    return msgspec.json.encode(value).decode() if value else None


def _status_in(value: object) -> int:
    """The status an error inside a stream stands for; engines put it into `code` or say it by `type`."""
    error: dict[str, Any] = value if isinstance(value, dict) else {}
    code, type_ = error.get("code"), str(error.get("type"))
    if isinstance(code, int):
        return code
    if "rate_limit" in type_ or "overloaded" in type_:
        return 503
    return 400 if type_ == "invalid_request_error" or code == "context_length_exceeded" else 502
