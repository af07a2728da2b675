"""Errors inside a stream of Responses events. Error responses have OpenAI's error object (`gateway.errors`).

The API's reference documents an `error` event with its fields at the top level, its servers send them nested in
`error`, and OpenAI's SDKs raise only for the nested form. The gateway writes both. `response.failed` follows, as from
OpenAI's servers, for clients that read only that event.
"""

from __future__ import annotations

import msgspec

from gateway.dialects.loose_json import JsonObject
from gateway.errors import GatewayError
from gateway.http import sse

__all__ = ["event", "object_of"]


def event(error: GatewayError, sequence_number: int) -> bytes:
    """The `error` event."""
    fields = {"code": error.code, "message": error.message, "param": error.param}
    nested = {"type": error.type, **fields}
    body = {"type": "error", **fields, "sequence_number": sequence_number, "error": nested}
    return sse.write(msgspec.json.encode(body), b"error")


def object_of(error: GatewayError) -> JsonObject:
    """The `error` of a Response that failed, with one of the API's closed list of codes.

    One more code is used: coding agents compact a conversation on `context_length_exceeded`, and OpenAI's servers send
    it although it is not on the list.
    """
    if error.code == "context_length_exceeded":
        code = error.code
    elif error.status in {429, 503}:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if error.status < 500 else "server_error"
    return {"code": code, "message": error.message}
