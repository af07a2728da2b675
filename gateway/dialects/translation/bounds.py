"""How large a body may be that is decoded into Python objects: a request or an answer that is translated.

A request of 57 MB with 2 million tiny items took 840 MB of memory, and everybody else waited for seconds while it was
translated. The limits are far above what conversations reach: a context of a million tokens has some thousand items and
4 MB of text. Within them no single step of decoding or encoding takes more than 50 ms, since `slices` decodes requests
item by item; the caller runs these steps in a thread (`gateway/proxy/body/off_loop.py`).
"""

from __future__ import annotations

from gateway.dialects.fields import invalid
from gateway.errors import BadRequest

__all__ = [
    "ITEMS_LIMIT",
    "PARTS_LIMIT",
    "TEXT_LIMIT_BYTES",
    "TOOLS_LIMIT",
    "VALUES_LIMIT",
    "check_count",
    "check_size",
    "excess_of",
]

ITEMS_LIMIT = 20_000  # of `messages` or `input`
TOOLS_LIMIT = 2_000  # of `tools`; OpenAI's own limit is 128
PARTS_LIMIT = 10_000  # parts or blocks of one content
VALUES_LIMIT = 200_000  # JSON values in all: bounds what decoding allocates, before it begins
TEXT_LIMIT_BYTES = 8 * 1024**2  # without pictures and sound; to decode and encode escapes takes 5 ms a megabyte

_SLICE_BYTES = 256 * 1024
_DATA_ESCAPES = 0.03  # base64 in lines of 76 characters has fewer; some clients escape each slash


def check_size(body: bytes) -> None:
    """Refuse a request that is too large to be translated, before it is decoded.

    Raises:
        BadRequest: The message names the limit.
    """
    excess = excess_of(body)
    if excess is not None:
        raise BadRequest(f"the request has {excess}: send fewer or shorter items, tools, content parts and fields")


def excess_of(body: bytes) -> str | None:
    """What a JSON body has too much of, as the end of a sentence; None if it is within the limits.

    Commas outside of strings separate values, so they count them. A body that is shorter, or that has fewer commas in
    all, needs no closer look.
    """
    if len(body) <= VALUES_LIMIT:
        return None
    if body.count(b",") > VALUES_LIMIT and _has_too_many_values(body):
        return f"more than {VALUES_LIMIT} JSON values"
    if len(body) > TEXT_LIMIT_BYTES and _has_too_much_text(body):
        return f"more than {TEXT_LIMIT_BYTES // 1024**2} MiB of text, beside base64 data"
    return None


def _has_too_much_text(body: bytes) -> bool:
    """Slice by slice: base64 has no white space and next to no escapes."""
    text_bytes = 0
    for start in range(0, len(body), _SLICE_BYTES):
        part = body[start : start + _SLICE_BYTES]
        if not part.isascii() or b" " in part or part.count(b"\\") > _DATA_ESCAPES * len(part):
            text_bytes += len(part)
    return text_bytes > TEXT_LIMIT_BYTES


def _has_too_many_values(body: bytes) -> bool:
    """Count slice by slice, so that a body of small values is refused soon and a large text takes little memory."""
    commas = 0
    in_string = False
    start = 0
    while start < len(body):
        part = body[start : start + _SLICE_BYTES]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:
            part = part[:-1]  # a backslash stays with the character that it escapes
        pieces = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        commas += b"".join(pieces[in_string::2]).count(b",")
        if commas > VALUES_LIMIT:
            return True
        in_string ^= len(pieces) % 2 == 0
        start += len(part)
    return False


def check_count(values: object, path: str, limit: int) -> None:
    """Refuse a list that is too long. Raises BadRequest, which names the list and the limit."""
    if isinstance(values, list) and len(values) > limit:
        raise invalid(path, f"must have at most {limit} entries, not {len(values)}")
