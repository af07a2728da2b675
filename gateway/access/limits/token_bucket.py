"""A token bucket that holds one minute's worth and refills evenly. Pure; the caller gives the time."""

from __future__ import annotations

__all__ = ["TokenBucket"]

MINUTE_S = 60.0
_ROUNDING = 1e-9  # what floats leave of a difference


class TokenBucket:
    """What is left of a limit per minute.

    An amount larger than the bucket may be taken when the bucket is full; the level is then below zero, and the debt
    is refilled like anything else that was taken. So a client with one very large request waits, but is served.

    Args:
        per_minute: The limit, which is also the size of the bucket.
        now: The time at which the bucket is full, in seconds of a monotonic clock.

    Attributes:
        level: What was left when `refill` was called last; negative after a debt. Taking is subtracting.
    """

    __slots__ = ("_at", "level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self.level = float(per_minute)
        self._at = now

    def refill(self, now: float) -> float:
        """Bring the level up to date, and return it."""
        level = self.level
        if level != self.per_minute:
            level += (now - self._at) * self.per_minute / MINUTE_S
            if level > self.per_minute:
                level = float(self.per_minute)
            self.level = level
        self._at = now
        return level

    def has(self, amount: float, now: float) -> bool:
        """Whether `amount` may be taken now; brings the level up to date."""
        missing = (min(self.per_minute, amount)) - self.refill(now)
        return missing <= _ROUNDING

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 for now."""
        wanted = min(self.per_minute, amount)
        missing = wanted - self.refill(now)
        return missing * MINUTE_S / self.per_minute if missing > _ROUNDING else 0.0

    def give_back(self, amount: float, now: float) -> None:
        """Give back what was taken too much; a negative amount takes more."""
        level = self.refill(now) + amount
        self.level = level if level < self.per_minute else float(self.per_minute)

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit: what was taken stays taken."""
        self.level = per_minute - (self.per_minute - self.refill(now))
        self.per_minute = per_minute

    def full_in_s(self) -> float:
        """Seconds from the last `refill` until the bucket is full, if nothing more is taken."""
        return (self.per_minute - self.level) * MINUTE_S / self.per_minute
