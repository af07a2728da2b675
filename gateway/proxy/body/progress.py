"""How long a request's body may take: no limit in all, but it must not stall (`deadlines.upload_seconds`)."""

from __future__ import annotations

import trio

from gateway.errors import RequestTimeout

__all__ = ["STEP_BYTES", "BodyProgress", "stalled"]

STEP_BYTES = 16 * 1024  # must arrive within the time: any network is faster, and 64 MiB still end some time


def stalled(allowed_s: float) -> RequestTimeout:
    """The error for a body of which too little arrives."""
    return RequestTimeout(
        f"less than {STEP_BYTES // 1024} KiB of the request's body arrived within {allowed_s:g} s "
        "(deadlines.upload_seconds)"
    )


class BodyProgress:
    """Moves a scope's deadline while a body arrives in it.

    Args:
        scope: Contains the reading of the body.
        allowed_s: The time for each `STEP_BYTES`.
        latest: The deadline of the whole body, by Trio's clock: the client's own.
    """

    __slots__ = ("_allowed_s", "_latest", "_next_step_bytes", "_scope")

    def __init__(self, scope: trio.CancelScope, allowed_s: float, latest: float) -> None:
        self._scope = scope
        self._allowed_s = allowed_s
        self._latest = latest
        self._next_step_bytes = STEP_BYTES

    def arrived(self, size: int) -> None:
        """`size` bytes of the body have arrived so far."""
        if size >= self._next_step_bytes:
            self._next_step_bytes = size + STEP_BYTES
            self._scope.deadline = min(trio.current_time() + self._allowed_s, self._latest)

    def complete(self) -> None:
        """All of the body has arrived: only the client's own deadline is left."""
        self._scope.deadline = self._latest
