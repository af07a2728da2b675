"""A JSON body without its pictures: long runs of base64 are cut short, so that parsers read kilobytes of megabytes.

A parser keeps the interpreter's lock for as long as one call takes: 40 ms for 20 MB, in whichever thread. The search
for runs takes steps of 0.3 ms at most, and other tasks can run between two of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator
from typing import NamedTuple

import msgspec

__all__ = ["KEPT_BYTES", "Outline", "outline_of", "outlining"]

RUN_BYTES = 8 * 1024  # a shorter run stays: a search that stops at each quote would be slower than the parser
KEPT_BYTES = 4 * 1024  # of each run: a key or a name that is cut stays longer than every one that is looked for
STEP_BYTES = 256 * 1024
MOST_KEPT_BYTES = 4 * 1024**2  # of a body with so much beside its pictures there is no outline

_DELIMITERS = (b'"', b"\\", b" ")  # base64 has none; a run of anything else, such as text, is not cut
_FILLER = b"x"  # in place of what is cut. JSON has no `x` outside strings: a parser rejects a run that is not in one
_string_decoder = msgspec.json.Decoder(msgspec.Raw)


class Outline(NamedTuple):
    """What parsers can read in place of a body: it is valid JSON only if the body is, and has the same members then.

    Attributes:
        text: The body with its runs cut short; the body itself if there is nothing to cut.
        cuts: For each cut the offset in `text` behind it, and how many bytes have been removed up to there.
    """

    text: bytes
    cuts: tuple[tuple[int, int], ...] = ()

    @property
    def removed_bytes(self) -> int:
        """How much shorter the text is than the body."""
        return self.cuts[-1][1] if self.cuts else 0

    def offset(self, offset: int) -> int:
        """The offset in the body of the byte at this offset of the text, which must not be within a run."""
        index = bisect_right(self.cuts, (offset, len(self.text) << 32))
        return offset + self.cuts[index - 1][1] if index else offset


def outline_of(body: bytes) -> Outline:
    """The outline of a body, at once."""
    steps = outlining(body)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Outline = end.value
            return found


def outlining(body: bytes) -> Generator[None, None, Outline]:
    """Make the outline of a body in steps, each of which examines about `STEP_BYTES`. Returns the outline.

    Why the text is valid JSON only if the body is: a parser of the text accepts each filler, so each is in a string. Up
    to the first one text and body are the same, so that run is in a string of the body too. What was cut of it has no
    quote, no escape and no character that a string must not have, so the string goes on behind it; and so on.
    """
    kept: list[bytes] = []
    cuts: list[tuple[int, int]] = []
    at = copied = text_bytes = removed_bytes = paused = 0
    while at + RUN_BYTES <= len(body):
        last = max(body.rfind(delimiter, at, at + RUN_BYTES) for delimiter in _DELIMITERS)
        if last >= at:
            at = last + 1
            if at - paused >= STEP_BYTES:
                paused = at
                yield
            continue
        end = yield from _end_of_run(body, at)
        if end > at:
            text_bytes += at + KEPT_BYTES - copied + len(_FILLER)
            if text_bytes > MOST_KEPT_BYTES:
                return Outline(body)
            kept += (body[copied : at + KEPT_BYTES], _FILLER)
            copied = end
            removed_bytes += end - at - KEPT_BYTES - len(_FILLER)
            cuts.append((text_bytes, removed_bytes))
        at = paused = max(end, at + RUN_BYTES)
    if not cuts or text_bytes + len(body) - copied > MOST_KEPT_BYTES:
        return Outline(body)
    return Outline(b"".join((*kept, body[copied:])), tuple(cuts))


def _end_of_run(body: bytes, start: int) -> Generator[None, None, int]:
    """The end of the run without delimiters that begins at `start`: `start` if a JSON string may not have its bytes."""
    at, stop = start, start + RUN_BYTES
    while at < len(body):
        if not _is_plain(body[at:stop]):
            return at
        at = stop
        stop = min(at + STEP_BYTES, len(body))
        found = [place for delimiter in _DELIMITERS if (place := body.find(delimiter, at, stop)) >= 0]
        if found:
            end = min(found)
            return end if _is_plain(body[at:end]) else at
        yield
    return at


def _is_plain(piece: bytes) -> bool:
    """Whether a JSON string may have these bytes in it, all of them whole characters."""
    if not piece.isascii():
        return False
    try:
        _string_decoder.decode(b'"%b"' % piece)
    except msgspec.DecodeError:  # a control character
        return False
    return True
