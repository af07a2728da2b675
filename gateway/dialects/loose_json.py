"""Decoding JSON that other programs got slightly wrong. Only what is seen in the wild; no types of any dialect.

JavaScript cuts strings between the halves of a surrogate pair, and engines that stream byte-level tokens send the
halves apart. Such an escape stands for no character (RFC 8259 section 8.2), so msgspec refuses the whole document.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

__all__ = ["decode"]

T = TypeVar("T")

_ESCAPE = re.compile(
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_REPLACEMENT = rb"\ufffd"


def decode(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw) -> T:
    """Decode, a lone surrogate being read as U+FFFD.

    Raises:
        msgspec.ValidationError: JSON, but not of the decoder's type.
        msgspec.DecodeError: No JSON, or nested too deeply.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mended = _ESCAPE.sub(_mend, bytes(text))
        if mended == text:
            raise
        return decoder.decode(mended)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


def _mend(escape: re.Match[bytes]) -> bytes:
    return _REPLACEMENT if escape[2] else escape[0]
