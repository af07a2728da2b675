"""JSON written by other programs: decoding what they get slightly wrong. Knows no dialect's types.

JavaScript clients cut strings in the middle of a surrogate pair, and engines that stream byte-level tokens send the two
halves apart. Such an escape stands for no character (RFC 8259 section 8.2), so msgspec rejects the whole document. The
bytes of a character, cut in the same way, are not valid UTF-8.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias, TypeVar

import msgspec

__all__ = ["JsonObject", "decode", "is_object"]

T = TypeVar("T")

JsonObject: TypeAlias = dict[str, Any]

_ESCAPE = re.compile(
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_REPLACEMENT = rb"\ufffd"


def decode(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw) -> T:
    """Decode JSON. A lone surrogate escape becomes U+FFFD, and so do bytes that are not valid UTF-8.

    Raises:
        msgspec.ValidationError: It is JSON, but not of the decoder's type.
        msgspec.DecodeError: It is not JSON, or is nested too deeply.
    """
    try:
        try:
            return decoder.decode(text)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            repaired = _ESCAPE.sub(lambda escape: _REPLACEMENT if escape[2] else escape[0], bytes(text))
            repaired = repaired.decode("utf-8", "replace").encode()
            if repaired == text:
                raise
            return decoder.decode(repaired)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


def is_object(value: msgspec.Raw) -> bool:
    """Whether a piece of JSON is an object. Assumes that it has no leading white space, as `Raw` fields have none."""
    return bytes(value).startswith(b"{")
