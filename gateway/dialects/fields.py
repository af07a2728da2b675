"""Reading one field of a request, and the error for a field that is wrong. Knows no dialect's types."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from gateway.dialects import loose_json
from gateway.errors import BadRequest

__all__ = ["decode_field", "invalid"]

T = TypeVar("T")


def decode_field(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw, path: str = "") -> T:
    """Decode the JSON at `path` of a request; "" is the whole body.

    Raises:
        BadRequest: The JSON has another type. `param` is the path of the wrong value: `messages.3.content.0.source`.
    """
    try:
        return loose_json.decode(decoder, text)
    except msgspec.DecodeError as error:
        problem, _, place = str(error).partition(" - at ")
        path = ".".join(part for part in (path, *_STEP.findall(place)) if part)
        raise invalid(path, problem[:1].lower() + problem[1:]) from None


_STEP = re.compile(r"[\w-]+")  # of msgspec's `$.messages[3].content`


def invalid(path: str, problem: str) -> BadRequest:
    """The error for the field at `path`, or for the whole body if `path` is empty."""
    return BadRequest(f"{path}: {problem}" if path else problem, param=path or None)
