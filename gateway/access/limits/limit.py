"""The limits of one key, as plain values."""

from dataclasses import dataclass, field
from typing import Literal

BudgetUnit = Literal["money", "tokens", "gpu-seconds"]
Window = Literal["minute", "hour", "day", "week", "month"]


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `amount` of `unit` per fixed window of the operator's time zone; money is in the ledger's currency."""

    unit: BudgetUnit
    amount: float
    window: Window
    enforce: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None: no limit. A limit named in `observe` is counted and shown, but refuses no request."""

    rpm: int | None = None  # requests per minute
    tpm: int | None = None  # tokens per minute, prompt and completion
    concurrency: int | None = None  # requests at the same time
    budgets: tuple[Budget, ...] = ()
    observe: frozenset[str] = field(default_factory=frozenset)  # of "rpm", "tpm", "concurrency"
