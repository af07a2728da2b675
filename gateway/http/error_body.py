"""The text in the body of an error response from a neuron, to an inference request or a control call.

Engines write an error in five forms: OpenAI's `{"error": {"message": ...}}`, a flat `{"error": "text"}`, `{"message"}`,
FastAPI's `{"detail"}`, and plain text. All of them are read here and nowhere else.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["decode_error_body", "error_text"]


def decode_error_body(body: bytes) -> dict[str, Any] | str:
    """The body as a JSON object, or as stripped text if it is none."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace").strip()


def error_text(value: object) -> str | None:
    """The error text in a decoded body, or in its `error`; None if there is none."""
    if isinstance(value, dict):
        for key in ("error", "message", "detail"):
            if found := error_text(value.get(key)):
                return found
        return None
    if isinstance(value, str):
        return value or None
    # FastAPI's `detail` is a list of objects. As JSON it is still the best hint there is.
    return msgspec.json.encode(value).decode() if value else None
