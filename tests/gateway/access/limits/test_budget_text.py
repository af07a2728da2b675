"""Budgets as operators write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.limits.budget_text import InvalidBudget, as_text, parse
from gateway.access.limits.limit import Budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("usd 20/month", Budget("money", 20, "month")),
        ("tokens 5M/day", Budget("tokens", 5_000_000, "day")),
        ("gpu-seconds 3600/day", Budget("gpu-seconds", 3600, "day")),
        ("money 0.5/hour", Budget("money", 0.5, "hour")),
        ("  USD  1.5k / Week ", Budget("money", 1500, "week")),
        ("tokens 2g/minute observe", Budget("tokens", 2e9, "minute", enforce=False)),
    ],
)
def test_budget_is_read(text, budget):
    assert parse(text) == budget
    assert parse(as_text(budget)) == budget


def test_money_is_in_the_ledgers_currency():
    assert parse("eur 5/day", "EUR") == Budget("money", 5, "day")
    assert as_text(Budget("money", 5, "day"), "EUR") == "eur 5/day"
    with pytest.raises(InvalidBudget, match="'usd' is no unit: use eur, tokens, gpu-seconds"):
        parse("usd 5/day", "EUR")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be UNIT AMOUNT/WINDOW"),
        ("20/month", "must be UNIT AMOUNT/WINDOW"),
        ("usd 20", "must be UNIT AMOUNT/WINDOW"),
        ("usd 20/month/day", "'month/day' is no window"),
        ("token 5/day", "character 1: 'token' is no unit: use usd, tokens, gpu-seconds; did you mean 'tokens'?"),
        ("usd -5/day", "character 5: '-5' is no amount"),
        ("usd 5e3/day", "character 5: '5e3' is no amount"),
        ("usd nan/day", "character 5: 'nan' is no amount"),
        ("usd 0/day", "character 5: the amount must be above 0"),
        ("usd 99999999999999999999/day", "character 5: the amount must be above 0 and at most"),
        ("tokens 5/dya", "character 10: 'dya' is no window: use minute, hour, day, week, month"),
        (" usd 5/day obsreve", "character 12: only 'observe' may follow the window"),
        ("usd 5/day observe x", "must be UNIT AMOUNT/WINDOW"),
        ("usd " + "9" * 10_000 + "x/day", "is no amount"),
    ],
)
def test_error_names_the_part_and_its_place(text, message):
    with pytest.raises(InvalidBudget) as caught:
        parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250


@given(st.text(max_size=40))
def test_any_other_text_is_refused_cleanly(text):
    try:
        budget = parse(text)
    except InvalidBudget:
        return
    assert parse(as_text(budget)) == budget
