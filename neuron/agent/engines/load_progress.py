"""How far a load is, from what the engine prints. Pure."""

from __future__ import annotations

import re

__all__ = ["printed_progress"]

_PERCENT = re.compile(
    rb"(?:Loading[^\r\n%]{0,80}?(?:shards|weights)[^\r\n%]{0,40}?|load_tensors[^\r\n%]{0,60}?)\b([0-9]{1,3})(?:\.[0-9]+)?%",
    re.IGNORECASE,
)
_READ_BYTES = 8192


def printed_progress(output: bytes) -> float | None:
    """The fraction, 0 to 1, of the last progress line ("Loading safetensors checkpoint shards:  25%"), or None."""
    found = _PERCENT.findall(output[-_READ_BYTES:])
    return min(int(found[-1]), 100) / 100 if found else None
