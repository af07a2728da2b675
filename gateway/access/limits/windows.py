"""The fixed windows of budgets: minute, hour, day, week (from Monday) and month of the operator's time zone. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

from gateway.access.limits.limit import Window

__all__ = ["WINDOWS", "WindowBounds", "Windows", "day_of", "zone_of"]

WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "week", "month")
_FIXED_S = {"minute": 60, "hour": 3600}


class WindowBounds(NamedTuple):
    """From `start` to before `end`, in unix seconds."""

    start: float
    end: float


def zone_of(name: str) -> tzinfo:
    """The time zone of this name. Raises ZoneInfoNotFoundError or ValueError for one that this machine lacks."""
    return UTC if name.upper() == "UTC" else ZoneInfo(name)  # UTC also where no time zone database is installed


def day_of(now: float, zone: tzinfo) -> str:
    """The calendar day in this zone, as `2026-11-30`."""
    return datetime.fromtimestamp(now, zone).date().isoformat()


class Windows:
    """Which window of each length a time falls into. The last answer is kept, because nearly every question repeats it.

    Args:
        zone: The operator's time zone. Where its clocks change, a day has 23 or 25 hours.
    """

    def __init__(self, zone: tzinfo = UTC) -> None:
        self.zone = zone
        self._last: dict[Window, WindowBounds] = {}

    def at(self, window: Window, now: float) -> WindowBounds:
        """The window that contains `now`, in unix seconds."""
        last = self._last.get(window)
        if last is None or not last.start <= now < last.end:
            last = self._last[window] = _bounds(window, now, self.zone)
        return last


def _bounds(window: Window, now: float, zone: tzinfo) -> WindowBounds:
    local = datetime.fromtimestamp(now, zone)
    length_s = _FIXED_S.get(window)
    if length_s is not None:
        # By the offset of this moment: of the two hours that have the same local time, each is a window of its own.
        offset_s = (local.utcoffset() or timedelta()).total_seconds()
        start = (now + offset_s) // length_s * length_s - offset_s
        return WindowBounds(start, start + length_s)
    first = local.date()
    if window == "week":
        first -= timedelta(days=first.weekday())
    elif window == "month":
        first = first.replace(day=1)
    if window == "month":
        after = (first + timedelta(days=31)).replace(day=1)
    else:
        after = first + timedelta(days=7 if window == "week" else 1)
    midnights = (datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() for day in (first, after))
    return WindowBounds(*midnights)
