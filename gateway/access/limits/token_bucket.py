"""A token bucket that holds one minute's worth and refills evenly. Pure; the caller gives the time."""

from __future__ import annotations

__all__ = ["TokenBucket"]

MINUTE_S = 60.0


class TokenBucket:
    """What is left of a limit per minute.

    An amount larger than the bucket may be taken when the bucket is full; the level is then below zero, and the debt
    is refilled like anything else that was taken. So a client with one very large request waits, but is served.

    Args:
        per_minute: The limit, which is also the size of the bucket.
        now: The time at which the bucket is full, in seconds of a monotonic clock.
    """

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """What is left at `now`; negative after a debt."""
        level = self._level
        if level < self.per_minute:
            level = min(float(self.per_minute), level + (now - self._at) * self.per_minute / MINUTE_S)
            self._level = level
        self._at = now
        return level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 for now."""
        missing = min(amount, self.per_minute) - self.level(now)
        return missing * MINUTE_S / self.per_minute if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take an amount for which `wait_s` is 0, or give back what was taken too much: a negative amount."""
        self._level = min(float(self.per_minute), self.level(now) - amount)

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit: what was taken stays taken."""
        self._level = per_minute - (self.per_minute - self.level(now))
        self.per_minute = per_minute

    def full_in_s(self, now: float) -> float:
        """Seconds until the bucket is full, if nothing more is taken."""
        return (self.per_minute - self.level(now)) * MINUTE_S / self.per_minute
