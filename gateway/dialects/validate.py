"""Reading a part of a request: how a client hears that it does not fit. No types of any dialect, no translation."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from gateway.dialects import loose_json
from gateway.errors import BadRequest

__all__ = ["read", "refusal"]

T = TypeVar("T")


def read(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw, path: str = "") -> T:
    """Decode what stands at `path` of the request.

    Raises:
        BadRequest: It is of another shape; names the path as the API does, `messages.3.content.0.source`.
    """
    try:
        return loose_json.decode(decoder, text)
    except msgspec.DecodeError as error:
        what, _, where = str(error).partition(" - at ")
        path = ".".join(part for part in (path, *_STEP.findall(where)) if part)
        raise refusal(path, what[:1].lower() + what[1:]) from None


_STEP = re.compile(r"[\w-]+")


def refusal(path: str, what: str) -> BadRequest:
    """The error for something wrong at `path`."""
    return BadRequest(f"{path}: {what}" if path else what, param=path or None)
