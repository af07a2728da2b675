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
        level: What was left when `refill` or `take` was called last; negative after a debt. Taking is
            subtracting, giving back is adding: whatever reads it next takes what is above the size for nothing.
        at: When that was.
        size: `per_minute` as a float: arithmetic with an int takes three times as long.
        per_s: What is refilled in a second.
        per_minute_text: `per_minute` as a header has it.
    """

    __slots__ = ("at", "level", "per_minute", "per_minute_text", "per_s", "size")

    def __init__(self, per_minute: int, now: float) -> None:
        self.level = float(per_minute)
        self.at = now
        self._set(per_minute)

    def _set(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.per_minute_text = b"%d" % per_minute
        self.size = float(per_minute)
        self.per_s = per_minute / MINUTE_S

    def refill(self, now: float) -> float:
        """Bring the level up to date, and return it."""
        level, size = self.level + (now - self.at) * self.per_s, self.size
        if level > size:  # noqa: PLR1730 - not `min`, which takes as long as the rest
            level = size
        self.at = now
        self.level = level
        return level

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` if it may be taken now; returns whether it was."""
        level, size = self.level + (now - self.at) * self.per_s, self.size  # as `refill`, without a call
        if level > size:  # noqa: PLR1730
            level = size
        self.at = now
        if level < amount and level < min(size, amount) - _ROUNDING:
            self.level = level
            return False
        self.level = level - amount
        return True

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 for now."""
        missing = min(self.size, amount) - self.refill(now)
        return missing / self.per_s if missing > _ROUNDING else 0.0

    def give_back(self, amount: float, now: float) -> None:
        """Give back what was taken too much; a negative amount takes more."""
        level, size = self.refill(now) + amount, self.size
        self.level = min(size, level)

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit: what was taken stays taken."""
        self.level = per_minute - (self.per_minute - self.refill(now))
        self._set(per_minute)

    def reading(self, now: float) -> tuple[float, float]:
        """What is left, at least 0, and seconds until the bucket is full, if nothing more is taken."""
        level, size = self.level + (now - self.at) * self.per_s, self.size  # as `refill`, without a call
        if level > size:  # noqa: PLR1730
            level = size
        return level if level > 0 else 0.0, (size - level) / self.per_s
