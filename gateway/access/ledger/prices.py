"""What tokens and energy cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo

from catalogue.models import Cost

__all__ = ["Tariff", "token_cost"]

_MILLION = 1_000_000


def token_cost(prices: Cost | None, prompt: float, completion: float, cached: float = 0) -> float | None:
    """The cost of one request, in the currency of the prices; None if a price that it needs is unknown.

    Args:
        prices: The model's, per 10^6 tokens.
        prompt: Tokens of the prompt, the cached ones included.
        completion: Tokens of the answer.
        cached: Those of the prompt that came from a cache. Without a price of their own they cost as the others.
    """
    if prices is None or (prompt and prices.input is None) or (completion and prices.output is None):
        return None
    if prices.input is None and prices.output is None:
        return None
    per_prompt = prices.input or 0.0
    per_cached = per_prompt if prices.cache_read is None else prices.cache_read
    cached = min(cached, prompt)
    return ((prompt - cached) * per_prompt + cached * per_cached + completion * (prices.output or 0.0)) / _MILLION


class Tariff:
    """The price of electricity.

    Args:
        per_kwh: One price per kWh, or one for each of the 24 hours of a day; empty for none.
        zone: The time zone of these hours.
    """

    def __init__(self, per_kwh: Sequence[float], zone: tzinfo) -> None:
        self._per_kwh = tuple(per_kwh)
        self._zone = zone

    def cost(self, energy_wh: float | None, at: float) -> float | None:
        """The cost of this energy, used by a request that started at `at` (unix seconds); None if unknown."""
        if energy_wh is None or not self._per_kwh:
            return None
        hour = 0 if len(self._per_kwh) == 1 else datetime.fromtimestamp(at, self._zone).hour
        return energy_wh / 1000 * self._per_kwh[hour]
