"""A circuit breaker per node: after failures in a row requests go elsewhere, and single trials find out when to return.

    closed --FAILURES in a row--> open --cool-down over--> half-open: one trial --it succeeds--> closed
                                    ^                                |
                                    +------- twice as long ----------+ it fails

The fleet's count of misses is not enough: one good poll resets it, and a neuron whose control API works may still break
every request. Pure state: no clock, no I/O; the fleet passes outcomes and times in.
"""

from __future__ import annotations

__all__ = ["FAILURES", "CircuitBreaker"]

# More than the misses that make a node unhealthy, so a neuron that is gone is unhealthy before its breaker opens.
FAILURES = 5
FIRST_COOL_DOWN_S, LONGEST_COOL_DOWN_S = 1.0, 30.0
DOUBLINGS = 10  # more than reach the longest; the exponent must be bounded, as 2**1024 is not a float


class CircuitBreaker:
    """One node's. Times are Trio's clock in seconds. `reason` describes the last failure.

    Attributes (plain ones, because each request reads them several times):
        closed: Whether requests pass freely.
        clean: Whether a success would change nothing.
    """

    __slots__ = ("_failures", "_on_trial", "_openings", "clean", "closed", "reason", "until")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Close it and forget all failures: the neuron was restarted, or answered a request."""
        self._failures = 0
        self._openings = 0
        self._on_trial = False
        self.closed = self.clean = True
        self.until = 0.0
        self.reason = ""

    def admits(self, now: float) -> bool:
        """Whether one more request may go: freely, or as the trial."""
        return self.closed or (now >= self.until and not self._on_trial)

    def begin_trial(self, now: float) -> bool:
        """A request goes there. True if it is the trial; the caller must then call `end_trial`."""
        if self.closed or not self.admits(now):
            return False
        self._on_trial = True
        return True

    def end_trial(self) -> None:
        """The trial is over. Without `failed` or `succeeded` it proved nothing, and the next request is a trial too."""
        self._on_trial = False

    def failed(self, now: float, reason: str) -> bool:
        """A request failed there. True if this opens the breaker, for the first time or again.

        Failures during the cool-down belong to requests that were sent before it, so they count for nothing.
        """
        if self._openings and now < self.until:
            return False
        self.reason = reason
        self._failures += 1
        self.clean = False
        if not self._openings and self._failures < FAILURES:
            return False
        self.until = now + min(FIRST_COOL_DOWN_S * 2 ** min(self._openings, DOUBLINGS), LONGEST_COOL_DOWN_S)
        self._openings += 1
        self.closed = False
        return True

    def succeeded(self) -> bool:
        """A request was answered. True if this closes the breaker."""
        was_open = not self.closed
        self.reset()
        return was_open
