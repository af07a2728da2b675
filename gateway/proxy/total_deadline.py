"""A request's total deadline: the time the client or the alias allows for queue, load, connect, prefill and stream.

It is optional; without one a stream may last for ever. With one, a cancel scope around the whole request enforces it
(`Dispatch`), in addition to the deadlines of the phases (`http/phase_deadlines.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from catalogue.models import Alias
from gateway.asgi import Headers
from gateway.errors import BadRequest, DeadlineExceeded
from gateway.http.phase_deadlines import WAITING_FOR, Phase

__all__ = ["HEADER", "LONGEST_MS", "TotalDeadline", "of_alias", "of_client", "tighter"]

HEADER = b"x-request-deadline-ms"
"""Counted from when the request's head has been read. It is not passed to neurons: they see the connection close."""

LONGEST_MS = 24 * 3600 * 1000  # a day; for no deadline, leave the header off


class TotalDeadline(NamedTuple):
    """How many seconds a request may take from its start. `set_by` names who allows them, for the error message."""

    allowed_s: float
    set_by: str

    def exceeded(self, phase: Phase | None, spent_ms: Mapping[str, float]) -> DeadlineExceeded:
        """The error for the client: the phase the request was in, and the time each phase took.

        Args:
            phase: The phase at the end; None if the request had not entered one.
            spent_ms: The time each phase took, in ms, that one included.
        """
        waiting = f" waiting for {WAITING_FOR[phase]} ({phase})" if phase is not None else ""
        spent = ", ".join(f"{name} {took_ms / 1000:.3f} s" for name, took_ms in spent_ms.items())
        message = f"the {self.allowed_s:g} s that {self.set_by} allows in total ran out{waiting}"
        return DeadlineExceeded(f"{message}; spent: {spent}" if spent else message, param="total")


def of_client(headers: Headers) -> TotalDeadline | None:
    """The deadline in the client's header, if there is one.

    Raises:
        BadRequest: The value is not a whole number of milliseconds from 1 to a day, or there are two headers.
    """
    allowed_ms = None
    for name, value in headers:
        if name == HEADER:
            if allowed_ms is not None:
                raise _invalid_header()
            allowed_ms = _milliseconds(value)
    return None if allowed_ms is None else TotalDeadline(allowed_ms / 1000, HEADER.decode())


def of_alias(policy: Alias) -> TotalDeadline | None:
    """The alias's `deadline_seconds`, if it has them."""
    if policy.deadline_seconds is None:
        return None
    return TotalDeadline(policy.deadline_seconds, f"the alias {policy.name}")


def tighter(one: TotalDeadline | None, other: TotalDeadline | None) -> TotalDeadline | None:
    """The shorter of the two."""
    if one is None or other is None:
        return one or other
    return min(one, other)


def _milliseconds(value: bytes) -> int:
    if not value.isdigit() or len(value) > len(str(LONGEST_MS)) or not 1 <= int(value) <= LONGEST_MS:
        raise _invalid_header()
    return int(value)


def _invalid_header() -> BadRequest:
    name = HEADER.decode()
    return BadRequest(f"the header {name} must be one whole number of ms, from 1 to {LONGEST_MS}", param=name)
