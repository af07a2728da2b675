"""Requests that have ended, kept for a while: limited in number, and in what they take together. No I/O.

The records themselves are kept, which have released everything large by then. `explain.py` turns one into JSON when an
operator asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import merge

from gateway.telemetry.request_record import RequestRecord

__all__ = ["RecentRequests"]

NOTES_PER_REQUEST = 20
"""The average limit. A request takes 1 to 2 KiB, and a note 200 bytes; most requests have one note. If every request is
refused by fifty neurons in turn, fewer requests are kept, instead of in more memory."""


class _Kept:
    """The last `limit` requests, fewer if they have many notes."""

    __slots__ = ("_limit", "_notes", "_notes_limit", "requests")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._notes_limit = limit * NOTES_PER_REQUEST
        self._notes = 0
        self.requests: deque[RequestRecord] = deque()

    def add(self, record: RequestRecord) -> None:
        requests = self.requests
        requests.append(record)
        self._notes += record.routing.note_count
        while len(requests) > self._limit or self._notes > self._notes_limit:
            self._notes -= requests.popleft().routing.note_count


class RecentRequests:
    """The last requests that have ended: `limit` that were sent to a neuron, and `refused` others. 0 keeps none.

    The others were refused before any neuron was asked: no room, an unknown model, a client's mistake. They have places
    of their own: a storm of them must not displace those that were served.
    """

    def __init__(self, limit: int, refused: int) -> None:
        self._sent = _Kept(limit)
        self._refused = _Kept(refused)

    def __len__(self) -> int:
        return len(self._sent.requests) + len(self._refused.requests)

    def add(self, record: RequestRecord) -> None:
        """Keep a request, and drop the oldest ones that are beyond the limits. Takes a microsecond."""
        is_refused = record.outcome == "error" and record.routing.node is None
        (self._refused if is_refused else self._sent).add(record)

    def newest_first(self) -> Iterator[RequestRecord]:
        """All of them, the one that ended last first. Not to be kept while requests end."""
        return merge(reversed(self._sent.requests), reversed(self._refused.requests), key=_ended_at, reverse=True)

    def newest_sent_first(self) -> Iterator[RequestRecord]:
        """Those that were sent to a neuron, the one that ended last first. Not to be kept while requests end."""
        return reversed(self._sent.requests)

    def find(self, request_id: str) -> list[RequestRecord]:
        """All requests with this id, the oldest first. Clients choose ids, and may repeat one."""
        found = [
            record
            for kept in (self._refused, self._sent)
            for record in kept.requests
            if record.request_id == request_id
        ]
        return sorted(found, key=lambda record: record.started_at)


def _ended_at(record: RequestRecord) -> float:
    return record.ended_at or 0.0
