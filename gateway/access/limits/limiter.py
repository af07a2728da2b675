"""The use of every key of one gateway: what requests reserve from, see `key_use.py`. Synchronous."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import trio

from gateway.access.keys.key import Key
from gateway.access.limits.amounts import AmountTuple, LearntMeans
from gateway.access.limits.budget_use import BudgetUse
from gateway.access.limits.key_use import KeyUse
from gateway.access.limits.limit import Limits
from gateway.access.limits.windows import Windows

__all__ = ["Limiter"]


class Limiter:
    """The use of every key of this gateway. Bounded by the keys that there are.

    Args:
        defaults: `[access.limits]`, for what a key leaves out.
        windows: The windows of budgets.
        currency: `[ledger] currency`.
        count_exceeded: Called with the limit ("rpm", "tpm", "concurrency", "budget") and whether it is enforced.
        clock: Monotonic seconds.
        unix_time: Seconds since 1970.

    Attributes:
        means: What each model's answers take.
    """

    def __init__(
        self,
        *,
        defaults: Limits | None = None,
        windows: Windows | None = None,
        currency: str = "USD",
        count_exceeded: Callable[[str, bool], object] = lambda _limit, _enforced: None,
        clock: Callable[[], float] = trio.current_time,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self.means = LearntMeans()
        self.windows = windows or Windows()
        self.clock = clock
        self.unix_time = unix_time
        self.count_exceeded = count_exceeded
        self._defaults = defaults or Limits()
        self._currency = currency
        self._uses: dict[str, tuple[Key, KeyUse]] = {}

    def use_of(self, key: Key) -> KeyUse:
        """The key's use of its limits, which are those of `key` from now on."""
        known = self._uses.get(key.id)
        if known is not None and known[0] is key:
            return known[1]
        use = self._new_use(key) if known is None else known[1]
        if known is None or known[0] != key:
            use.name = key.name
            use.change(self._effective(key.limits), self.clock(), self.unix_time())
        self._uses[key.id] = (key, use)
        return use

    def _new_use(self, key: Key) -> KeyUse:
        return KeyUse(
            key.id,
            key.name,
            self.windows,
            self._currency,
            count_exceeded=self.count_exceeded,
            clock=self.clock,
            unix_time=self.unix_time,
        )

    def _effective(self, limits: Limits) -> Limits:
        """The key's limits, with the defaults for those that it leaves out."""
        defaults = self._defaults
        return replace(
            limits,
            rpm=defaults.rpm if limits.rpm is None else limits.rpm,
            tpm=defaults.tpm if limits.tpm is None else limits.tpm,
            concurrency=defaults.concurrency if limits.concurrency is None else limits.concurrency,
        )

    def uses(self) -> Iterable[KeyUse]:
        """The use of every key that made a request since the start."""
        return [use for _, use in self._uses.values()]

    @property
    def live(self) -> int:
        """The number of reservations now."""
        return sum(use.running for _, use in self._uses.values())

    def forget_all_but(self, key_ids: Collection[str]) -> None:
        """Drop the use of every other key that has no running request: those keys were revoked, or have expired."""
        gone = [key_id for key_id, (_, use) in self._uses.items() if key_id not in key_ids and not use.running]
        for key_id in gone:
            del self._uses[key_id]

    def view(self, key: Key) -> dict[str, Any]:
        """How near the key is to each of its limits, for operators."""
        return self.use_of(key).as_json(self.clock(), self.unix_time())

    def written(self, key_id: str, used: AmountTuple, at: float) -> None:
        """The store counts now what a request of this key used."""
        for budget in self.budgets_of(key_id):
            budget.written(used, at)

    def budgets_of(self, key_id: str) -> tuple[BudgetUse, ...]:
        """The budgets of a key that made a request since the start; none for another."""
        known = self._uses.get(key_id)
        return () if known is None else known[1].budgets
