"""scripts/soak: which series it calls flat, and what share of the CPU it ascribes to pages."""

import pytest
from page_cost import Round, share_of_pages
from soak_trend import trend_of

TOLERANCE = 10.0


def series(*values):
    """A sample each minute."""
    return [(60.0 * number, float(value)) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "is_flat"),
    [
        ([100] * 20, True),
        ([100 + 5 * (number % 2) for number in range(20)], True),  # saw tooth of a garbage collector
        ([50, 70, 90, *[100] * 17], True),  # fills up during the warm-up
        ([100] * 8 + [500] + [100] * 11, True),  # one outlier
        ([100 + number for number in range(20)], False),  # 15 after the warm-up
        ([100 + number + 20 * (number % 3) for number in range(20)], False),  # the same, hidden in noise
        ([200 - number for number in range(20)], True),  # falls
    ],
)
def test_only_what_rises_after_the_warm_up_grows(values, is_flat):
    trend = trend_of(series(*values), warm_up_s=240, tolerance=TOLERANCE)
    assert trend.is_flat == is_flat


def test_trend_states_its_figures():
    trend = trend_of(series(*range(100, 120)), warm_up_s=240, tolerance=TOLERANCE)
    assert (trend.first, trend.last, trend.settled, trend.end) == (100, 119, 104, 119)
    assert (trend.rise, trend.per_hour) == (15, 60)


def test_few_samples_are_no_trend():
    assert trend_of(series(1, 2, 3, 4), warm_up_s=60, tolerance=TOLERANCE) is None


def test_share_of_pages_is_free_of_the_rate():
    """A request costs 1 ms, and the pages 4 ms per s: 2 % of 200 requests/s, also if the machine allows fewer."""
    rates = [200, 180, 200, 150, 190, 200]
    rounds = [Round(bool(number % 2), 0.001 * rate + 0.004 * (number % 2), rate) for number, rate in enumerate(rates)]
    assert share_of_pages(rounds, 200) == pytest.approx(0.02)
