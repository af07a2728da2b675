"""The capture of a gateway: at most one at a time, of one alias, for a limited time, within limited memory.

    off --start--> running --stop, or its time is over--> off: every text is erased

A capture must be allowed in `cortex.toml`. Its start, its end and what it erased are lines of the audit log.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self

import msgspec
import trio

from gateway import errors
from gateway.config.settings import CaptureSettings
from gateway.proxy.response.response_headers import header_value

__all__ = ["Capture", "CapturedRequest", "RunningCapture"]

ENTRIES: Final = 500
TEXT_BYTES: Final = 256 * 1024  # of one request, and of one answer


class CapturedRequest(msgspec.Struct, frozen=True):
    """One request with its texts. `at` is in unix seconds; `is_cut` if a text was longer than is kept."""

    request_id: str
    at: float
    alias: str
    model: str | None
    node: str | None
    status: int
    messages: list[dict[str, str]]
    answer: str
    is_cut: bool

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return 500 + 2 * len(self.answer) + sum(200 + 2 * len(message["text"]) for message in self.messages)


class RunningCapture:
    """One capture. `until` is in unix seconds, `deadline` Trio's clock; `header` the value of `x-cortex-alias`."""

    __slots__ = (
        "alias",
        "deadline",
        "entries",
        "header",
        "is_over",
        "is_redacted",
        "limit_bytes",
        "seen",
        "until",
        "used_bytes",
        "who",
    )

    def __init__(self, alias: str, seconds: float, who: str, *, is_redacted: bool, limit_bytes: int) -> None:
        self.alias = alias
        self.who = who
        self.is_redacted = is_redacted
        self.limit_bytes = limit_bytes
        self.deadline = trio.current_time() + seconds
        self.until = time.time() + seconds
        self.header = header_value(alias)
        self.is_over = False
        self.entries: deque[CapturedRequest] = deque()
        self.used_bytes = 0  # by entries, and by requests that are being read
        self.seen = 0

    def reserve(self, size: int) -> bool:
        """Take memory for a request that passes; the oldest entries give way. False if there is none."""
        while self.used_bytes + size > self.limit_bytes and self.entries:
            self.used_bytes -= self.entries.popleft().size
        if self.used_bytes + size > self.limit_bytes:
            return False
        self.used_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """What `reserve` took."""
        self.used_bytes -= size

    def keep(self, entry: CapturedRequest) -> None:
        """Keep a request that has ended, unless there is no memory for it."""
        self.seen += 1
        if self.reserve(entry.size):
            self.entries.append(entry)
        while len(self.entries) > ENTRIES:
            self.used_bytes -= self.entries.popleft().size


class Capture:
    """Starts and ends captures.

    Args:
        is_allowed: `[capture] enabled`.
        limit_bytes: Memory for all texts.
        longest_s: The longest time of a capture, in seconds.
        record: `Auditor.record_action`.

    Attributes:
        running: The capture now; None for none. Every request looks at it.
    """

    def __init__(self, *, is_allowed: bool, limit_bytes: int, longest_s: float, record: Callable[..., None]) -> None:
        self._is_allowed = is_allowed
        self._limit_bytes = limit_bytes
        self._longest_s = longest_s
        self._record = record
        self._changed = trio.Event()
        self.running: RunningCapture | None = None

    @classmethod
    def from_settings(cls, settings: CaptureSettings, *, record: Callable[..., None]) -> Self:
        """As `[capture]` says."""
        return cls(
            is_allowed=settings.enabled,
            limit_bytes=int(settings.max_mb * 1024**2),
            longest_s=settings.max_seconds,
            record=record,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End each capture when its time is over, until cancelled. Started at once."""
        task_status.started()
        while True:
            running = self.running
            deadline = trio.current_time() + 3600 if running is None else running.deadline
            with trio.move_on_at(deadline):
                await self._changed.wait()
            self._changed = trio.Event()
            if self.running is not None and trio.current_time() >= self.running.deadline:
                self._end(self.running.who, "its time is over")

    def start(self, alias: str, seconds: float, who: str, *, is_redacted: bool) -> None:
        """Begin to capture an alias; ends the capture before.

        Raises:
            Conflict: Captures are not allowed here.
            BadRequest: The time is too long.
        """
        if not self._is_allowed:
            raise errors.Conflict("captures are not allowed; [capture] enabled = true in cortex.toml allows them")
        if not 0 < seconds <= self._longest_s:
            raise errors.BadRequest(f"seconds must be above 0 and at most {self._longest_s:g}", param="seconds")
        if self.running is not None:
            self._end(who, "another one begins")
        self.running = RunningCapture(alias, seconds, who, is_redacted=is_redacted, limit_bytes=self._limit_bytes)
        how = "redacted texts" if is_redacted else "texts"
        summary = f"capture {how} of {alias} for {seconds:g} s"
        self._record("capture", who, summary=summary, outcome="running", alias=alias)
        self._changed.set()

    def stop(self, who: str) -> None:
        """End the capture and erase its texts. Raises NotFound if there is none."""
        if self.running is None:
            raise errors.NotFound("no capture is running")
        self._end(who, f"stopped by {who}")
        self._changed.set()

    def status(self) -> dict[str, Any] | None:
        """The running capture without its texts, for everybody who may read."""
        running = self.running
        if running is None:
            return None
        return {
            "alias": running.alias,
            "who": running.who,
            "redacted": running.is_redacted,
            "until": round(running.until),
            "kept": len(running.entries),
        }

    def _end(self, who: str, reason: str) -> None:
        running, self.running = self.running, None
        if running is not None:
            summary = f"end the capture of {running.alias}: {reason}"
            outcome = f"{running.seen} requests were captured; their texts are erased"
            running.is_over = True
            running.entries.clear()
            self._record("capture", who, summary=summary, outcome=outcome, alias=running.alias)
