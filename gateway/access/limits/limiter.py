"""Reservations: every request of a key takes one before it is routed, and gives it back however it ends. Synchronous.

A reservation counts the request against rpm and concurrency, and its estimated tokens, money and GPU-seconds against
tpm and budgets. When it ends, the true amounts take the place of the estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import trio

from gateway.access.keys.key import Key
from gateway.access.limits.amounts import NOTHING, Amounts, LearntMeans
from gateway.access.limits.budget_use import BudgetUse
from gateway.access.limits.key_use import KeyUse, TooMuch
from gateway.access.limits.limit import Limits
from gateway.access.limits.windows import Windows

__all__ = ["Limiter", "Reservation"]


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
        live: The number of reservations now.
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
        self.live = 0
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
        use = KeyUse(key.id, key.name, self.windows, self._currency) if known is None else known[1]
        if known is None or known[0] != key:
            use.name = key.name
            use.change(self._effective(key.limits), self.clock(), self.unix_time())
        self._uses[key.id] = (key, use)
        return use

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

    def forget_all_but(self, key_ids: Collection[str]) -> None:
        """Drop the use of every other key that has no running request: those keys were revoked, or have expired."""
        gone = [key_id for key_id, (_, use) in self._uses.items() if key_id not in key_ids and not use.running]
        for key_id in gone:
            del self._uses[key_id]

    def view(self, key: Key) -> dict[str, Any]:
        """How near the key is to each of its limits, for operators."""
        return self.use_of(key).as_json(self.clock(), self.unix_time())

    def written(self, key_id: str, used: Amounts, at: float) -> None:
        """The store counts now what a request of this key used."""
        for budget in self.budgets_of(key_id):
            budget.written(used, at)

    def budgets_of(self, key_id: str) -> tuple[BudgetUse, ...]:
        """The budgets of a key that made a request since the start; none for another."""
        known = self._uses.get(key_id)
        return () if known is None else known[1].budgets

    def reserve(self, use: KeyUse, estimate: Amounts = NOTHING, *, started_at: float | None = None) -> Reservation:
        """Reserve for one request; use the result as a context manager at once.

        Args:
            use: The key's.
            estimate: What the request will use at most, or on average where that is unknown.
            started_at: When the request started, in unix seconds: it counts in the windows of that time. Default: now.

        Raises:
            RateLimited: A rate limit is exceeded.
            InsufficientQuota: A budget is.
        """
        now = self.clock()
        unix_now = self.unix_time() if started_at is None or use.budgets else started_at
        observed = _NO_LIMITS
        if not use.take(estimate, now, unix_now):
            exceeded = use.exceeds(estimate, now, unix_now)
            self._count_or_refuse(use, exceeded)
            observed = frozenset(each.limit for each in exceeded)
            use.take_except(observed, estimate)
        at = unix_now if started_at is None else started_at
        return Reservation(self, use, estimate, at, takes_tokens=use.tokens is not None and "tpm" not in observed)

    def _count_or_refuse(self, use: KeyUse, exceeded: list[TooMuch]) -> None:
        """Raises the error of the first limit that is enforced."""
        refusal = next((found for found in exceeded if found.enforced), None)
        for found in exceeded if refusal is None else (refusal,):
            use.exceeded[found.limit] = use.exceeded.get(found.limit, 0) + 1
            self.count_exceeded(found.limit, found.enforced)
        if refusal is not None:
            raise refusal.error


_NOTHING_RESERVED = (0.0, 0.0, 0.0)
_NO_LIMITS: frozenset[str] = frozenset()


class Reservation:
    """What one live request has reserved: a context manager around it. Leaving it gives everything back.

    Attributes:
        used: What the request used in the end. Set it before the reservation is left.
    """

    __slots__ = ("_at", "_estimate", "_limiter", "_takes_tokens", "_use", "used")

    def __init__(self, limiter: Limiter, use: KeyUse, estimate: Amounts, at: float, *, takes_tokens: bool) -> None:
        self._limiter = limiter
        self._use = use
        self._estimate = estimate
        self._at = at
        self._takes_tokens = takes_tokens
        self.used = NOTHING
        limiter.live += 1
        use.running += 1
        tokens, money, gpu_s = estimate
        reserved = use.reserved
        reserved[0] += tokens
        reserved[1] += money
        reserved[2] += gpu_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.settle(self.used)

    def settle(self, used: Amounts) -> None:
        """Give everything back, once: the request has ended and used this."""
        limiter, use, estimate = self._limiter, self._use, self._estimate
        limiter.live -= 1
        use.running = running = use.running - 1
        if running:
            tokens, money, gpu_s = estimate
            reserved = use.reserved
            reserved[0] -= tokens
            reserved[1] -= money
            reserved[2] -= gpu_s
        else:
            use.reserved[:] = _NOTHING_RESERVED  # exactly: sums of floats drift
        if self._takes_tokens and use.tokens is not None:
            use.tokens.give_back(estimate[0] - used[0], limiter.clock())
        if use.budgets:
            for budget in use.budgets:
                budget.add(used, self._at)
