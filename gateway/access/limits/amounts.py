"""What a request uses, in the three units of budgets, and what a model's requests use on average. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from gateway.access.limits.limit import BudgetUnit

__all__ = ["NOTHING", "UNIT_INDEX", "AmountTuple", "Amounts", "LearntMean", "LearntMeans"]


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
_LEAST_SHARE = 1 / 32  # the mean follows about this many of the last answers


class LearntMean:
    """The mean of what one model's last answers took.

    Attributes:
        tokens: Completion tokens.
        gpu_s: GPU-seconds.
        share: Of the next answer in the mean.
    """

    __slots__ = ("gpu_s", "share", "tokens")

    def __init__(self) -> None:
        self.tokens = FIRST_TOKENS
        self.gpu_s = 0.0
        self.share = 1.0


class LearntMeans(dict[str, LearntMean]):
    """By model: the reservation of its next answer. Bounded by the models that have answered; another is not kept."""

    __slots__ = ()

    def __missing__(self, model: str) -> LearntMean:
        return LearntMean()

    def learn(self, model: str, tokens: float, gpu_s: float) -> None:
        """An answer of the model has ended."""
        mean = self.get(model)
        if mean is None:
            mean = self[model] = LearntMean()
        share = mean.share
        mean.tokens += (tokens - mean.tokens) * share
        mean.gpu_s += (gpu_s - mean.gpu_s) * share
        if share > _LEAST_SHARE:
            mean.share = share / (1.0 + share)  # 1, 1/2, 1/3 and so on
