"""The limit on the memory that the bodies of all running requests take together (`limits.bodies_mb`).

Of an upload only a little is in memory; the rest is on disk, which `forms/spool.py` limits.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.errors import Overloaded

__all__ = ["BodyMemory", "BodyReservation"]

FULL_RETRY_S = 1


class BodyMemory:
    """Counts the bytes of request bodies in memory, for all requests of this process.

    A body stays in memory until its request ends, because a retry sends it to another neuron.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0

    def full(self) -> Overloaded:
        """Return the error for a request whose body would exceed the limit."""
        return Overloaded(
            f"the bodies of running requests fill the {self.limit_bytes / 1024**2:g} MiB this gateway allows for "
            "them (limits.bodies_mb); try again later",
            retry_after_s=FULL_RETRY_S,
        )


class BodyReservation(Struct, eq=False):
    """The memory that one request's body takes. Its owner calls `release` at the end."""

    memory: BodyMemory
    reserved_bytes: int = 0

    def add(self, size: int) -> None:
        """Reserve `size` bytes that have arrived; bytes that content-length only announces are not reserved.

        Sync, so that two requests cannot reserve the same bytes.

        Raises:
            Overloaded: The limit would be exceeded; nothing is reserved.
        """
        memory = self.memory
        if memory.reserved_bytes + size > memory.limit_bytes:
            raise memory.full()
        memory.reserved_bytes += size
        self.reserved_bytes += size

    def release(self) -> None:
        """Free what it has reserved."""
        self.memory.reserved_bytes -= self.reserved_bytes
