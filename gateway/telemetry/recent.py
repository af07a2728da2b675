"""Requests that have ended, remembered for a while: a ring that is bounded in number and in what each may hold. No I/O.

What is kept is the record itself, which has let go of everything large by then (`record.Record`); it becomes an
account to read only when somebody asks for one (`explain.py`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.telemetry.request_record import Record

__all__ = ["Recent"]

NOTES_PER_REQUEST = 20
"""On average. A request takes 1 to 2 KiB, and a note 200 bytes; most requests have one. A bad hour of a large fleet, in
which every request is refused by fifty neurons in turn, is remembered for fewer requests instead of in more memory."""


class Recent:
    """The last `limit` requests that have ended, fewer if much was to be noted of them; 0 keeps none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._notes_limit = limit * NOTES_PER_REQUEST
        self._kept: deque[Record] = deque()
        self._notes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, record: Record) -> None:
        """Remember one more, and forget who has to make room. Costs a microsecond."""
        kept = self._kept
        kept.append(record)
        self._notes += record.notes
        while len(kept) > self._limit or self._notes > self._notes_limit:
            self._notes -= kept.popleft().notes

    def find(self, request_id: str) -> list[Record]:
        """All that had this id, the oldest first: it is the client's, and it may use one again."""
        return [record for record in self._kept if record.request_id == request_id]
