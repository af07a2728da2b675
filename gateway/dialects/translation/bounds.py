"""How many items, tools and content parts a translated request may have.

A request of 57 MB with 2 million tiny items took 840 MB of memory, and everybody else waited for seconds while it was
translated. The limits are far above what conversations reach: a context of a million tokens has some thousand items.
"""

from __future__ import annotations

from gateway.dialects.fields import invalid
from gateway.errors import BadRequest

__all__ = ["ITEMS_LIMIT", "PARTS_LIMIT", "TOOLS_LIMIT", "VALUES_LIMIT", "check_count", "check_values"]

ITEMS_LIMIT = 20_000  # of `messages` or `input`
TOOLS_LIMIT = 2_000  # of `tools`; OpenAI's own limit is 128
PARTS_LIMIT = 10_000  # parts or blocks of one content
VALUES_LIMIT = 300_000  # JSON values of the whole request: bounds what decoding allocates, before it begins

_SLICE_BYTES = 256 * 1024


def check_values(body: bytes) -> None:
    """Refuse a body with too many JSON values, before it is decoded.

    Commas outside of strings separate values, so they count them. A body that is shorter, or that has fewer commas in
    all, needs no closer look.

    Raises:
        BadRequest: The message names the limit.
    """
    if len(body) > VALUES_LIMIT and body.count(b",") > VALUES_LIMIT and _has_too_many_values(body):
        raise BadRequest(
            f"the request has more than {VALUES_LIMIT} JSON values: send fewer items, tools, content parts and fields"
        )


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
