"""The windows of budgets: where each begins and ends, also where the operator's clocks change."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.access.limits.windows import WINDOWS, Windows, day_of, zone_of

BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")


def at(text, zone=UTC, fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("window", "zone", "now", "start", "end"),
    [
        ("minute", UTC, "2026-11-30T10:29:22", "2026-11-30T10:29:00", "2026-11-30T10:30:00"),
        ("hour", KOLKATA, "2026-11-30T10:29:22", "2026-11-30T10:00:00", "2026-11-30T11:00:00"),
        ("day", BERLIN, "2026-11-30T00:00:00", "2026-11-30T00:00:00", "2026-12-01T00:00:00"),
        ("day", BERLIN, "2026-03-29T12:00:00", "2026-03-29T00:00:00", "2026-03-30T00:00:00"),
        ("week", BERLIN, "2026-11-29T23:59:59", "2026-11-23T00:00:00", "2026-11-30T00:00:00"),
        ("week", BERLIN, "2026-11-30T00:00:00", "2026-11-30T00:00:00", "2026-12-07T00:00:00"),
        ("month", BERLIN, "2026-12-31T23:00:00", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("month", BERLIN, "2026-02-01T00:00:00", "2026-02-01T00:00:00", "2026-03-01T00:00:00"),
    ],
)
def test_window_is_that_of_the_operators_calendar(window, zone, now, start, end):
    assert Windows(zone).at(window, at(now, zone)) == (at(start, zone), at(end, zone))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-10-26", 24)])
def test_a_day_is_as_long_as_the_clocks_say(day, hours):
    start, end = Windows(BERLIN).at("day", at(f"{day}T12:00:00", BERLIN))
    assert end - start == hours * 3600


def test_each_of_two_hours_with_the_same_name_is_a_window_of_its_own():
    """On 25 October 2026 the hour from 2 to 3 comes twice in Berlin."""
    windows = Windows(BERLIN)
    first, second = (windows.at("hour", at("2026-10-25T02:30:00", BERLIN, fold=fold)) for fold in (0, 1))
    assert first.end == second.start
    assert second.end - second.start == 3600


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("zone", [UTC, BERLIN, KOLKATA, ZoneInfo("America/Havana"), ZoneInfo("Australia/Lord_Howe")])
def test_windows_follow_each_other_without_gap_or_overlap(window, zone):
    """For two years, over every change of the clocks."""
    windows, now = Windows(zone), at("2026-01-01T00:00:00", zone)
    for _ in range(800):
        start, end = windows.at(window, now)
        assert start <= now < end
        assert Windows(zone).at(window, end - 1) == (start, end)
        assert Windows(zone).at(window, end).start == end
        now = end + (0 if window not in {"minute", "hour"} else 86_400 * 0.9)


def test_a_clock_that_is_set_back_finds_the_earlier_window():
    windows = Windows(UTC)
    windows.at("day", at("2026-11-30T00:00:01"))
    assert windows.at("day", at("2026-11-29T23:59:59")).end == at("2026-11-30T00:00:00")


def test_day_of_a_time_is_that_of_the_zone():
    assert day_of(at("2026-11-30T23:30:00"), BERLIN) == "2026-12-01"
    assert day_of(at("2026-11-30T23:30:00"), zone_of("utc")) == "2026-11-30"
