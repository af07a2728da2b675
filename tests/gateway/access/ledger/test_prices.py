"""What tokens and energy cost."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from catalogue.models import Cost
from gateway.access.ledger.prices import Tariff, token_cost


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (Cost(input=2.0, output=8.0), 2 * 0.001 + 8 * 0.0005),
        (Cost(input=2.0, output=8.0, cache_read=0.5), 2 * 0.0006 + 0.5 * 0.0004 + 8 * 0.0005),
        (Cost(input=0.0, output=0.0), 0.0),
        (Cost(input=2.0), None),
        (Cost(output=2.0), None),
        (Cost(), None),
        (None, None),
    ],
)
def test_cost_of_a_request_is_that_of_its_tokens(prices, expected):
    cost = token_cost(prices, prompt=1000, completion=500, cached=400)
    assert cost == (None if expected is None else pytest.approx(expected))


def test_an_embedding_needs_no_price_of_answers():
    assert token_cost(Cost(input=1.0), prompt=1_000_000, completion=0) == 1.0


def test_electricity_costs_what_its_hour_costs():
    per_hour = [0.1] * 18 + [0.4] * 6
    tariff = Tariff(per_hour, ZoneInfo("Europe/Berlin"))
    evening = datetime(2026, 11, 30, 17, 30, tzinfo=UTC).timestamp()  # 18:30 in Berlin
    assert tariff.cost(500.0, evening) == pytest.approx(0.2)
    assert tariff.cost(500.0, evening - 3600) == pytest.approx(0.05)
    assert Tariff([0.3], UTC).cost(1000.0, evening) == pytest.approx(0.3)
    assert Tariff([], UTC).cost(1000.0, evening) is None
    assert tariff.cost(None, evening) is None
