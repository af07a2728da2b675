"""Budgets as operators write them: `usd 20/month`, `tokens 5M/day`, `gpu-seconds 3600/day`."""

from __future__ import annotations

import math
import re
from typing import cast, get_args

from catalogue.nearest import did_you_mean
from gateway.access.limits.limit import Budget, BudgetUnit, Window

__all__ = ["InvalidBudget", "as_text", "parse"]

_SHAPE = re.compile(r"(?P<unit>\S+)\s+(?P<amount>[^\s/]+)\s*/\s*(?P<window>\S+)(?:\s+(?P<observe>\S+))?")
_AMOUNT = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<factor>[kKmMgG]?)")
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_LARGEST = 2.0**53  # beyond it not every whole number has a float
_EXAMPLE = "for example 'usd 20/month', 'tokens 5M/day' or 'gpu-seconds 3600/day'"
OBSERVE = "observe"


class InvalidBudget(ValueError):
    """The text is no budget; the message says which part is wrong, and at which character it begins."""


def parse(text: str, currency: str = "USD") -> Budget:
    """The budget in `text`: a unit, an amount, `/` and a window. The word `observe` at the end counts only.

    The unit is `tokens`, `gpu-seconds`, or money: `money` or the currency's code. The amount may end with k, M or G.

    Raises:
        InvalidBudget: The text is none.
    """
    found = _SHAPE.fullmatch(text.strip())
    if found is None:
        raise InvalidBudget(f"must be UNIT AMOUNT/WINDOW, {_EXAMPLE}")
    start = len(text) - len(text.lstrip()) + 1  # of the first part, counted from 1
    observe = found["observe"]
    if observe not in {None, OBSERVE}:
        raise InvalidBudget(f"character {start + found.start('observe')}: only '{OBSERVE}' may follow the window")
    return Budget(
        _unit(found["unit"], currency, start),
        _amount(found["amount"], start + found.start("amount")),
        _window(found["window"], start + found.start("window")),
        enforce=observe is None,
    )


def as_text(budget: Budget, currency: str = "USD") -> str:
    """The text from which `parse` makes the budget."""
    unit = currency.lower() if budget.unit == "money" else budget.unit
    amount = f"{budget.amount:.0f}" if budget.amount == int(budget.amount) else repr(budget.amount)
    return f"{unit} {amount}/{budget.window}" + ("" if budget.enforce else f" {OBSERVE}")


def _unit(word: str, currency: str, at: int) -> BudgetUnit:
    if word.lower() in {"money", currency.lower()}:
        return "money"
    if word.lower() in {"tokens", "gpu-seconds"}:
        return cast("BudgetUnit", word.lower())
    units = (currency.lower(), "tokens", "gpu-seconds")
    raise InvalidBudget(
        f"character {at}: '{word[:40]}' is no unit: use {', '.join(units)}{did_you_mean(word, units)}"
        " (money is counted in [ledger] currency)"
    )


def _amount(word: str, at: int) -> float:
    found = _AMOUNT.fullmatch(word)
    if found is None:
        raise InvalidBudget(f"character {at}: '{word[:40]}' is no amount: write digits, and k, M or G for thousands")
    amount = float(found["number"]) * _FACTORS[found["factor"].lower()]
    if not 0 < amount <= _LARGEST or not math.isfinite(amount):
        raise InvalidBudget(f"character {at}: the amount must be above 0 and at most {_LARGEST:.0f}")
    return amount


def _window(word: str, at: int) -> Window:
    windows = get_args(Window)
    if word.lower() in windows:
        return cast("Window", word.lower())
    raise InvalidBudget(
        f"character {at}: '{word[:40]}' is no window: use {', '.join(windows)}{did_you_mean(word, windows)}"
    )
