"""A request's whole time: what its client, or its alias, allows for queue, load, connect, prefill and stream together.

Nobody need allow anything: then a request costs one look for the header, and a stream may last for ever. Who does gets
one cancel scope over all of it (`errand.Errand.run`), beside the deadlines that each phase has anyway (`phases.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from catalogue.models import Alias
from gateway.asgi import Headers
from gateway.errors import BadRequest, DeadlineExceeded
from gateway.http.phase_deadlines import WAITING_FOR, Phase

__all__ = ["HEADER", "LONGEST_MS", "Budget", "asked_by_client", "of_alias", "tightest"]

HEADER = b"x-request-deadline-ms"
"""Counted from when the request's head has been read. No neuron gets to see it: what they see is that we hang up."""

LONGEST_MS = 24 * 3600 * 1000  # a day; who wants more wants no deadline, and gets that by leaving the header off


class Budget(NamedTuple):
    """So many seconds from a request's beginning, and who said so, as the subject of a sentence."""

    allowed_s: float
    set_by: str

    def exceeded(self, phase: Phase | None, spent_ms: Mapping[str, float]) -> DeadlineExceeded:
        """The error that says what was waited for in the end, and where the time went.

        Args:
            phase: In which it was spent; None if the request had not come to waiting for anything yet.
            spent_ms: What each phase took, that one included.
        """
        waiting = f" waiting for {WAITING_FOR[phase]} ({phase})" if phase is not None else ""
        spent = ", ".join(f"{name} {took_ms / 1000:.3f} s" for name, took_ms in spent_ms.items())
        told = f"; spent: {spent}" if spent else ""
        message = f"the {self.allowed_s:g} s that {self.set_by} allows in total ran out{waiting}{told}"
        return DeadlineExceeded(message, param="total")


def asked_by_client(headers: Headers) -> Budget | None:
    """What the client allows, or None if it says nothing.

    Raises:
        BadRequest: What it says is no whole number of milliseconds from 1 to a day, or it says two things.
    """
    said = None
    for name, value in headers:
        if name == HEADER:
            if said is not None:
                raise _senseless()
            said = _milliseconds(value)
    return None if said is None else Budget(said / 1000, HEADER.decode())


def of_alias(policy: Alias | None) -> Budget | None:
    """What the alias allows, None if there is no limit to it."""
    if policy is None or policy.deadline_seconds is None:
        return None
    return Budget(policy.deadline_seconds, f"the alias {policy.name}")


def tightest(one: Budget | None, other: Budget | None) -> Budget | None:
    """The smaller of the two."""
    if one is None or other is None:
        return one or other
    return min(one, other)


def _milliseconds(value: bytes) -> int:
    if not value.isdigit() or len(value) > len(str(LONGEST_MS)) or not 1 <= int(value) <= LONGEST_MS:
        raise _senseless()
    return int(value)


def _senseless() -> BadRequest:
    name = HEADER.decode()
    return BadRequest(f"the header {name} must be one whole number of ms, from 1 to {LONGEST_MS}", param=name)
