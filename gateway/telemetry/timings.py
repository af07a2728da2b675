"""When the steps of one request happened. All times are Trio's clock in seconds, unless the name says otherwise."""

from __future__ import annotations

import time

from gateway.http.phase_deadlines import PhaseDeadlines

__all__ = ["RequestTimings"]


class RequestTimings:
    """The times of one request; None is "not yet".

    Attributes:
        started_at: When the request's head had been read.
        started_unix: The same in Unix time.
        read_at: When the body had been read, or as much of a form as routing needs.
        routed_at: When the first replica was chosen.
        first_byte_at: When the first bytes of an answer that is not a stream arrived.
        sent_first_at: When the first bytes of the answer had been written to the client.
        ended_at: When the request ended.
        phases: The phases of the running request, once it is resolved.
        phases_ms: How long each phase took in ms, once the request has ended.
    """

    __slots__ = (
        "ended_at",
        "first_byte_at",
        "phases",
        "phases_ms",
        "read_at",
        "routed_at",
        "sent_first_at",
        "started_at",
        "started_unix",
    )

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.started_unix = time.time()
        self.read_at: float | None = None
        self.routed_at: float | None = None
        self.first_byte_at: float | None = None
        self.sent_first_at: float | None = None
        self.ended_at: float | None = None
        self.phases: PhaseDeadlines | None = None
        self.phases_ms: dict[str, float] = {}
