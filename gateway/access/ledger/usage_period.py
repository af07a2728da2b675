"""Where a report of usage begins, as operators write it: `7d`, `24h`, `2026-11-01`, or unix seconds. Pure."""

from __future__ import annotations

import re
from datetime import datetime, tzinfo

__all__ = ["InvalidPeriod", "parse_since"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhdw])", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,6})?", re.ASCII)


class InvalidPeriod(ValueError):
    """The text names no time. It is for operators."""


def parse_since(text: str, now: float, zone: tzinfo) -> float:
    """Unix seconds: a duration before `now`, or a time, of this zone if it names none.

    Raises:
        InvalidPeriod: It is neither.
    """
    text = text.strip()
    if (match := _DURATION.fullmatch(text)) is not None:
        return max(0.0, now - float(match[1]) * _UNITS_S[match[2]])
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        time = datetime.fromisoformat(text)
        return max(0.0, (time if time.tzinfo else time.replace(tzinfo=zone)).timestamp())
    except (ValueError, OverflowError):
        raise InvalidPeriod(
            "since must be a duration such as 30m, 24h or 7d, a date such as 2026-11-01, or unix seconds"
        ) from None
