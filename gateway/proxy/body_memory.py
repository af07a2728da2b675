"""How much memory the bodies of all requests may take together. Of an upload most is on disk: `spool.py`."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from gateway.errors import Overloaded

__all__ = ["Bodies", "Room"]

FULL_RETRY_S = 1


class Bodies:
    """All of a gateway's. A body is kept for as long as its request runs: another neuron may have to be asked."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def room(self) -> Room:
        """For one request, as a context manager: what it took is free again when it is left."""
        return Room(self)

    def reserve(self, size: int) -> None:
        """Sync, so that two requests cannot take the same. Raises Overloaded."""
        if self.held_bytes + size > self._limit_bytes:
            raise Overloaded(
                f"requests under way fill the {self._limit_bytes / 1024**2:g} MiB this gateway has for their bodies",
                retry_after_s=FULL_RETRY_S,
            )
        self.held_bytes += size


class Room:
    """What one request's body takes."""

    __slots__ = ("_bodies", "taken_bytes")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.taken_bytes = 0

    def take(self, size: int) -> None:
        """For what has come of it, piece by piece: what is merely announced takes nothing. Raises Overloaded."""
        self._bodies.reserve(size)
        self.taken_bytes += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bodies.held_bytes -= self.taken_bytes
