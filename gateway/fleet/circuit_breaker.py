"""A breaker per neuron: after failures in a row requests go elsewhere, and one at a time finds out whether it is well.

    closed --FAILURES in a row--> open --cool-down over--> half-open: one trial --it succeeds--> closed
                                    ^                                |
                                    +------- twice as long ----------+ it fails

The three strikes of `fleet.py` are not enough: a good poll forgives them, and a neuron whose control API is well may
break every request it is sent. Pure state: no clock, no I/O; told what happened, and when, by the fleet.
"""

from __future__ import annotations

__all__ = ["Breaker"]

# Above the three strikes, so that a neuron which is simply gone is down before its breaker has an opinion.
FAILURES = 5
FIRST_COOL_DOWN_S, LONGEST_COOL_DOWN_S = 1.0, 30.0
DOUBLINGS = 10  # more than it takes to get there: 2**1024 is no float, and a neuron can fail for a night


class Breaker:
    """One neuron's. Times are Trio's clock in seconds. `reason` is what the last failure said."""

    __slots__ = ("_failures", "_on_trial", "_openings", "reason", "until")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As new: the neuron was restarted, or has answered a request."""
        self._failures = 0
        self._openings = 0
        self._on_trial = False
        self.until = 0.0
        self.reason = ""

    @property
    def closed(self) -> bool:
        """Whether requests pass freely."""
        return not self._openings

    @property
    def clean(self) -> bool:
        """Whether there is nothing that a success would forgive."""
        return not self._failures and not self._openings

    def admits(self, now: float) -> bool:
        """Whether one more request may go: freely, or as the trial."""
        return self.closed or (now >= self.until and not self._on_trial)

    def begin_trial(self, now: float) -> bool:
        """A request goes there. True if it is the trial; whoever sent it must `end_trial`."""
        if self.closed or not self.admits(now):
            return False
        self._on_trial = True
        return True

    def end_trial(self) -> None:
        """The trial is over; without `failed` or `succeeded` it told nothing, and the next request is one again."""
        self._on_trial = False

    def failed(self, now: float, reason: str) -> bool:
        """A request failed there. True if the breaker has opened, again or for the first time.

        Failures while it cools down are of requests that were sent before, and say nothing new.
        """
        if self._openings and now < self.until:
            return False
        self.reason = reason
        self._failures += 1
        if not self._openings and self._failures < FAILURES:
            return False
        self.until = now + min(FIRST_COOL_DOWN_S * 2 ** min(self._openings, DOUBLINGS), LONGEST_COOL_DOWN_S)
        self._openings += 1
        return True

    def succeeded(self) -> bool:
        """A request was answered. True if this has closed the breaker."""
        was_open = not self.closed
        self.reset()
        return was_open
