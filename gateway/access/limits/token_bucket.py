"""A token bucket that holds one minute's worth and refills evenly. Pure; the caller gives the time.

A bucket is kept as the time at which it will be full: taking moves that time into the future, giving back moves it
towards the past, and nothing needs to be done while it refills (the generic cell rate algorithm of ITU-T I.371).
"""

from __future__ import annotations

__all__ = ["LATEST_FULL_S", "MINUTE_S", "ROUNDING_S", "TokenBucket"]

MINUTE_S = 60.0
ROUNDING_S = 1e-7  # what floats leave of a difference of times
LATEST_FULL_S = MINUTE_S + ROUNDING_S
"""How far from now a bucket that is not in debt is full at the latest."""


class TokenBucket:
    """What is left of a limit per minute.

    An amount larger than the bucket may be taken when the bucket is full; what is left is then below zero, and the debt
    is refilled like anything else that was taken. So a client with one very large request waits, but is served.

    Args:
        per_minute: The limit, which is also the size of the bucket.
        now: The time at which the bucket is full, in seconds of a monotonic clock.

    Attributes:
        full_at: When the bucket is full, if nothing more is taken; in the past for one that is full.
        size: `per_minute` as a float: arithmetic with an int takes three times as long.
        each_s: How long one unit takes to refill.
        per_minute_text: `per_minute` as a header has it.
    """

    __slots__ = ("each_s", "full_at", "per_minute", "per_minute_text", "size")

    def __init__(self, per_minute: int, now: float) -> None:
        self.full_at = now
        self._set(per_minute)

    def _set(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.per_minute_text = b"%d" % per_minute
        self.size = float(per_minute)
        self.each_s = MINUTE_S / per_minute

    def level(self, now: float) -> float:
        """What is left; negative after a debt."""
        return self.size - max(0.0, self.full_at - now) / self.each_s

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 for now."""
        wait_s = max(0.0, self.full_at - now) + min(amount * self.each_s, MINUTE_S) - MINUTE_S
        return wait_s if wait_s > ROUNDING_S else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, whether it may be taken or not."""
        self.full_at = max(self.full_at, now) + amount * self.each_s

    def give_back(self, amount: float) -> None:
        """Give back what was taken too much."""
        self.full_at -= amount * self.each_s

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit: what was taken stays taken."""
        taken = self.size - self.level(now)
        self._set(per_minute)
        self.full_at = now + taken * self.each_s

    def reading(self, now: float) -> tuple[float, float]:
        """What is left, at least 0, and seconds until the bucket is full, if nothing more is taken."""
        full_in_s = max(0.0, self.full_at - now - ROUNDING_S)
        return max(0.0, self.size - full_in_s / self.each_s), full_in_s
