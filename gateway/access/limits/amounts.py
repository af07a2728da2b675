"""What a request uses, in the three units of budgets, and what a model's requests use on average. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from gateway.access.limits.limit import BudgetUnit

__all__ = ["NOTHING", "UNIT_INDEX", "AmountTuple", "Amounts", "LearntMeans"]


class Amounts(NamedTuple):
    """Tokens of prompt and completion, money in the ledger's currency, and GPU-seconds."""

    tokens: float = 0.0
    money: float = 0.0
    gpu_s: float = 0.0


AmountTuple: TypeAlias = tuple[float, float, float]
"""`Amounts`, or a plain tuple of the same, which is made in a tenth of the time."""

NOTHING = Amounts()
UNIT_INDEX: dict[BudgetUnit, int] = {"tokens": 0, "money": 1, "gpu-seconds": 2}
"""Where in `Amounts` each unit of a budget is."""

FIRST_TOKENS = 100.0  # of the first answers of a model, before any has ended
_SAMPLES = 32  # the mean follows about this many of the last answers
_FIRST = [0.0, FIRST_TOKENS, 0.0]


class LearntMeans(dict[str, list[float]]):
    """The mean completion tokens and GPU-seconds of each model's last answers: the reservation of the next one.

    By model: answers, at most 32; tokens; GPU-seconds. Bounded by the models that have answered.
    """

    __slots__ = ()

    def __missing__(self, model: str) -> list[float]:
        return _FIRST

    def learn(self, model: str, completion_tokens: float, gpu_s: float) -> None:
        """An answer has ended."""
        mean = self.get(model)
        if mean is None:
            self[model] = [1.0, completion_tokens, gpu_s]
            return
        count, tokens, mean_gpu_s = mean
        if count < _SAMPLES:
            mean[0] = count = count + 1.0
        mean[1] = tokens + (completion_tokens - tokens) / count
        mean[2] = mean_gpu_s + (gpu_s - mean_gpu_s) / count
