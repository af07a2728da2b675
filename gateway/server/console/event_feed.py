"""The live events of the console: one task looks for changes once a second, and every listener gets the same bytes.

    sources --changes()--> one chunk per tick --> a bounded ring --> each listener, from where it is

What a listener missed is in the ring, or it gets everything anew: it never has a queue of its own. The feed goes on for
`GRACE_TICKS` after the last listener has left, so a page whose connection breaks resumes; nothing is computed then.
An id is `EPOCH-NUMBER`; the epoch changes when events may have been missed by all.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import structlog
import trio

from gateway import errors

__all__ = ["EventFeed", "EventSource", "Missed", "Position"]

TICK_S: Final = 1.0
GRACE_TICKS: Final = 30
LISTENER_LIMIT: Final = 100
RING_CHUNKS: Final = 600  # ten minutes
RING_BYTES: Final = 8 * 1024**2

log = structlog.get_logger("cortex.console")


class EventSource(Protocol):
    """One kind of event. Both methods are synchronous and return JSON."""

    @property
    def kind(self) -> str:
        """The name of the event."""
        ...

    def everything(self) -> bytes:
        """What a page needs that has just been opened."""
        ...

    def changes(self) -> bytes | None:
        """What has changed since the last call; None for nothing."""
        ...

    def restart(self) -> None:
        """Forget the last call: what came before is in no event."""
        ...


class Missed(Exception):
    """The ring does not have what comes after this position any more."""


class Position:
    """How far one listener is: the number of the last chunk that it has."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class EventFeed:
    """The feed of one gateway.

    Args:
        sources: What becomes events, in this order.
    """

    def __init__(self, sources: Sequence[EventSource]) -> None:
        self._sources = sources
        self._epoch = secrets.token_hex(4)
        self._number = 0  # of the newest chunk
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._listeners = 0
        self._idle_ticks = 0  # in a row, without a listener
        self._tick = trio.Event()  # replaced at each tick
        self._wanted = trio.Event()
        self._everything: tuple[int, bytes] | None = None
        self._failed: set[str] = set()

    @property
    def listeners(self) -> int:
        """How many are connected."""
        return self._listeners

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for changes while there are listeners and `GRACE_TICKS` longer, until cancelled. Started at once."""
        task_status.started()
        while True:
            await self._wanted.wait()
            await trio.sleep(TICK_S)
            self._idle_ticks = 0 if self._listeners else self._idle_ticks + 1
            if self._idle_ticks <= GRACE_TICKS:
                self._append(self._changes())
            else:
                self._wanted = trio.Event()
                self._forget()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count a listener. Raises Overloaded if there are `LISTENER_LIMIT`."""
        if self._listeners >= LISTENER_LIMIT:
            raise errors.Overloaded(f"{LISTENER_LIMIT} pages follow the events already", retry_after_s=10)
        if not self._wanted.is_set():
            self._restart()
        self._listeners += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._listeners -= 1

    def resume(self, last_id: str | None) -> Position | None:
        """The position behind this event id; None if it is unknown, or what follows is not complete."""
        epoch, _, number = (last_id or "").partition("-")
        if epoch != self._epoch or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        position = Position(int(number))
        is_known = self._number - len(self._ring) <= position.number <= self._number
        return position if is_known else None

    def begin(self) -> tuple[Position, bytes]:
        """The present position, and every event that a new page needs. Pages opened in the same second share it."""
        if self._everything is None or self._everything[0] != self._number:
            events = [self._event(source.kind, source.everything()) for source in self._sources]
            self._everything = (self._number, b"".join(events))
        return Position(self._number), self._everything[1]

    async def next(self, position: Position) -> bytes:
        """Wait for events after the position, move it behind them, and return them.

        Raises:
            Missed: The listener was too slow, and must begin again.
        """
        if position.number == self._number:
            await self._tick.wait()
        behind = self._number - position.number
        if behind > len(self._ring):
            raise Missed
        position.number = self._number
        return self._ring[-1] if behind == 1 else b"".join(list(self._ring)[-behind:])

    def _changes(self) -> bytes:
        self._number += 1
        chunk = b""
        for source in self._sources:
            try:
                data = source.changes()
            except Exception:
                if source.kind not in self._failed:  # once: it may fail each second
                    log.exception("console_source_failed", kind=source.kind)
                self._failed.add(source.kind)
                continue
            if data is not None:
                chunk += self._event(source.kind, data)
        return chunk

    def _append(self, chunk: bytes) -> None:
        self._ring.append(chunk)
        self._ring_bytes += len(chunk)
        while len(self._ring) > RING_CHUNKS or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            self._ring_bytes -= len(self._ring.popleft())
        tick, self._tick = self._tick, trio.Event()
        tick.set()

    def _event(self, kind: str, data: bytes) -> bytes:
        return b"id: %b-%d\nevent: %b\ndata: %b\n\n" % (self._epoch.encode(), self._number, kind.encode(), data)

    def _restart(self) -> None:
        """No page has listened for a while: earlier ids cannot be resumed from."""
        self._epoch = secrets.token_hex(4)
        self._idle_ticks = 0
        self._forget()
        for source in self._sources:
            source.restart()

    def _forget(self) -> None:
        self._ring.clear()
        self._ring_bytes = 0
        self._everything = None
