"""A body with some of its values replaced, without a copy of the rest: pieces that are sent one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.dialects.large_bodies.outline import Outline

__all__ = ["COPIED_BYTES", "Edit", "SplicedBody", "edited", "in_one_piece", "text_of", "with_edits"]

COPIED_BYTES = 128 * 1024  # copying as much costs less than more system calls


class Edit(NamedTuple):
    """Replace the bytes from `start` to `end` of a body with `text`."""

    start: int
    end: int
    text: bytes


@dataclass(frozen=True, slots=True)
class SplicedBody:
    """A body with edits, which do not overlap.

    Attributes:
        body: The client's, which is not copied.
        edits: What differs from it.
        outline: Of the client's body, for parsers.
    """

    body: bytes
    edits: tuple[Edit, ...]
    outline: Outline

    def __len__(self) -> int:
        """The length in bytes, with the edits."""
        return len(self.body) + sum(len(text) - (end - start) for start, end, text in self.edits)

    @property
    def pieces(self) -> tuple[bytes | memoryview, ...]:
        """The bytes to send, in order: views of the client's body, and what replaces parts of it."""
        return _pieces(self.body, self.edits)

    def joined(self) -> bytes:
        """The bytes in one piece. Copies all of them, and keeps the interpreter's lock meanwhile: 20 ms for 20 MB."""
        return b"".join(self.pieces)

    def adds(self, keys: Iterable[str]) -> bool:
        """Whether an edit may add a member with one of these keys, which must have no quotes or backslashes."""
        quoted = [b'"%b"' % key.encode() for key in keys]
        return any(key in text for _, _, text in self.edits for key in quoted)

    def overlaps(self, edits: Iterable[Edit]) -> bool:
        """Whether one of these edits replaces something that an edit of this body replaces or adds to."""
        return any(mine.start < edit.end and edit.start < mine.end for mine in self.edits for edit in edits)


def with_edits(body: bytes, edits: Sequence[Edit], outline: Outline | None = None) -> bytes | SplicedBody:
    """The body with these edits, which do not overlap: the same object if there are none; a large one is not copied."""
    if not edits:
        return body
    if len(body) <= COPIED_BYTES:
        return edited(body, *edits)
    return SplicedBody(body, tuple(edits), outline or Outline(body))


def edited(body: bytes, *edits: Edit) -> bytes:
    """A copy of the body with these edits, which do not overlap."""
    return b"".join(_pieces(body, edits))


def in_one_piece(body: bytes | SplicedBody) -> bytes:
    """The body itself, or joined."""
    return body if isinstance(body, bytes) else body.joined()


def text_of(body: bytes | SplicedBody) -> bytes:
    """What a parser would read of the body: that is how long it takes."""
    return body if isinstance(body, bytes) else body.outline.text


def _pieces(body: bytes, edits: Iterable[Edit]) -> tuple[bytes | memoryview, ...]:
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    at = 0
    for start, end, text in sorted(edits):
        pieces += (view[at:start], text)
        at = end
    return (*pieces, view[at:])
