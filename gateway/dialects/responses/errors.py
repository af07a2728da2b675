"""Errors inside a stream of Responses events; whole bodies are OpenAI's envelope (`gateway.errors`).

The API's reference has an `error` event with its fields at the top, its servers send them nested in `error`, and only
the nested form makes OpenAI's SDKs raise: ours has both. `response.failed` follows it, as it does from the API, for
clients that know that one and not the other.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import GatewayError
from gateway.http import sse

__all__ = ["event", "object_of"]


def event(error: GatewayError, sequence_number: int) -> bytes:
    """The `error` event."""
    said = {"code": error.code, "message": error.message, "param": error.param}
    nested = {"type": error.type, **said}
    body = {"type": "error", **said, "sequence_number": sequence_number, "error": nested}
    return sse.write(msgspec.json.encode(body), b"error")


def object_of(error: GatewayError) -> dict[str, Any]:
    """The `error` of a Response that failed. Its codes are a closed list of the API's, but for the last one here.

    Coding agents compact a conversation on `context_length_exceeded`; the API sends it, though its types do not say so.
    """
    if error.code == "context_length_exceeded":
        code = error.code
    elif error.status in {429, 503}:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if error.status < 500 else "server_error"
    return {"code": code, "message": error.message}
