"""What a request uses, in the three units of budgets, and what a model's requests use on average. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from gateway.access.limits.limit import BudgetUnit

__all__ = ["NOTHING", "UNIT_INDEX", "Amounts", "LearntMeans", "amounts_of"]


class Amounts(NamedTuple):
    """Tokens of prompt and completion, money in the ledger's currency, and GPU-seconds."""

    tokens: float = 0.0
    money: float = 0.0
    gpu_s: float = 0.0


amounts_of: Callable[[tuple[float, float, float]], Amounts] = partial(tuple.__new__, Amounts)
"""As `Amounts(*values)`, in a quarter of the time."""

NOTHING = Amounts()
UNIT_INDEX: dict[BudgetUnit, int] = {"tokens": 0, "money": 1, "gpu-seconds": 2}
"""Where in `Amounts` each unit of a budget is."""

FIRST_TOKENS = 100.0  # of the first answers of a model, before any has ended
_SAMPLES = 32  # the mean follows about this many of the last answers


_FIRST = (0, FIRST_TOKENS, 0.0)


class LearntMeans:
    """The mean completion tokens and GPU-seconds of each model's last answers: the reservation of the next one.

    Bounded by the models that have answered.
    """

    def __init__(self) -> None:
        self._means: dict[str, tuple[int, float, float]] = {}

    def of(self, model: str) -> tuple[float, float]:
        """Completion tokens and GPU-seconds to expect."""
        _, tokens, gpu_s = self._means.get(model, _FIRST)
        return tokens, gpu_s

    def learn(self, model: str, completion_tokens: float, gpu_s: float) -> None:
        """An answer has ended."""
        count, tokens, mean_gpu_s = self._means.get(model, (0, 0.0, 0.0))
        count = min(count + 1, _SAMPLES)
        self._means[model] = (
            count,
            tokens + (completion_tokens - tokens) / count,
            mean_gpu_s + (gpu_s - mean_gpu_s) / count,
        )
