"""What a neuron says when something is wrong, in whichever form: its words, and as an error of ours. No dialect."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway import errors

__all__ = ["from_stream", "message_in"]


def from_stream(value: object) -> errors.GatewayError:
    """What a neuron reports inside a stream, as an error of ours: the stream has failed, and this is why."""
    status = _status_in(value)
    message = message_in({"error": value}) or "the neuron reported an error inside its stream"
    if status in {429, 503, 529}:
        return errors.ServiceUnavailable(message)
    if 400 <= status < 500:
        return errors.BadRequest(message)
    return errors.UpstreamConnectionError(message)


def message_in(value: object) -> str | None:
    """The words of an error body, wherever they are."""
    if isinstance(value, dict):
        for key in ("error", "message", "detail"):
            if found := message_in(value.get(key)):
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
