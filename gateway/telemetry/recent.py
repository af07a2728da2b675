"""Requests that have ended, kept for a while: limited in number, and in what they take together. No I/O.

The records themselves are kept, which have released everything large by then. `explain.py` turns one into JSON when an
operator asks for it.
"""

from __future__ import annotations

from collections import deque

from gateway.telemetry.request_record import RequestRecord

__all__ = ["RecentRequests"]

NOTES_PER_REQUEST = 20
"""The average limit. A request takes 1 to 2 KiB, and a note 200 bytes; most requests have one note. If every request is
refused by fifty neurons in turn, fewer requests are kept, instead of in more memory."""


class RecentRequests:
    """The last `limit` requests that have ended, fewer if they have many notes; 0 keeps none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._notes_limit = limit * NOTES_PER_REQUEST
        self._kept: deque[RequestRecord] = deque()
        self._notes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, record: RequestRecord) -> None:
        """Keep a request, and drop the oldest ones that are beyond the limits. Takes a microsecond."""
        kept = self._kept
        kept.append(record)
        self._notes += record.routing.note_count
        while len(kept) > self._limit or self._notes > self._notes_limit:
            self._notes -= kept.popleft().routing.note_count

    def find(self, request_id: str) -> list[RequestRecord]:
        """All requests with this id, the oldest first. Clients choose ids, and may repeat one."""
        return [record for record in self._kept if record.request_id == request_id]
