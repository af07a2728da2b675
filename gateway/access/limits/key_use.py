"""What one key uses of its limits at this moment: buckets, running requests, reservations, budgets. Synchronous.

Every request of a key takes a reservation before it is routed, and gives it back however it ends. That counts the
request against rpm and concurrency, and its estimated tokens, money and GPU-seconds against tpm and budgets. When it
ends, the true amounts take the place of the estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, TypeAlias

from gateway import errors
from gateway.access.limits.amounts import NOTHING, AmountTuple
from gateway.access.limits.budget_use import BudgetUse
from gateway.access.limits.limit import Budget, Limits
from gateway.access.limits.token_bucket import LATEST_FULL_S, MINUTE_S, ROUNDING_S, TokenBucket
from gateway.access.limits.windows import Windows

__all__ = ["KeyUse", "Taken", "TooMuch"]

CONCURRENCY_RETRY_S = 1  # when another request of the key ends is not known
_BUDGET_TEXT = {"tokens": "{:,.0f} tokens", "money": "{:g} {currency}", "gpu-seconds": "{:g} GPU-seconds"}


Taken: TypeAlias = tuple[float | None, AmountTuple | None]
"""What a reservation took: tokens of the bucket, None for none, and what it counts in `KeyUse.reserved`, if it does."""

_NOTHING_RESERVED = (0.0, 0.0, 0.0)


class TooMuch:
    """A limit that a request exceeds.

    Args:
        limit: "rpm", "tpm", "concurrency" or "budget".
        enforced: Whether the request is refused.
        error: What its client gets then.
    """

    __slots__ = ("enforced", "error", "limit")

    def __init__(self, limit: str, error: errors.GatewayError, *, enforced: bool) -> None:
        self.limit = limit
        self.error = error
        self.enforced = enforced


class KeyUse:
    """One key's use of its limits.

    Args:
        key_id: The key's id.
        name: Its name, for error texts.
        windows: The windows of budgets.
        currency: Of money, for error texts.
        count_exceeded: Called with each limit that a request exceeds, and whether it is enforced.
        clock: Monotonic seconds.
        unix_time: Seconds since 1970.

    Attributes:
        running: The requests that run now.
        reserved: What they have reserved of budgets: tokens, money and GPU-seconds. Requests that began before the key
            had a budget are not in it.
        elsewhere: What requests at other gateways have reserved, as last read from the store.
        counts_tokens: A limit depends on how much a request uses, so that an estimate is needed.
        is_limited_by_rate: Answers carry rate-limit headers.
        exceeded: How often each limit was exceeded since the start: "rpm", "tpm", "concurrency", "budget".
    """

    __slots__ = (
        "_clock",
        "_count_exceeded",
        "_currency",
        "_has_reserved",
        "_most_running",
        "_unix_time",
        "_windows",
        "budgets",
        "counts_tokens",
        "elsewhere",
        "exceeded",
        "is_limited_by_rate",
        "key_id",
        "limits",
        "name",
        "requests",
        "reserved",
        "running",
        "tokens",
    )

    def __init__(
        self,
        key_id: str,
        name: str,
        windows: Windows,
        currency: str,
        *,
        count_exceeded: Callable[[str, bool], object],
        clock: Callable[[], float],
        unix_time: Callable[[], float],
    ) -> None:
        self.key_id = key_id
        self.name = name
        self.limits = Limits()
        self._most_running = inf
        self.running = 0
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self.budgets: tuple[BudgetUse, ...] = ()
        self.reserved = [0.0, 0.0, 0.0]
        self._has_reserved = False
        self.elsewhere = [0.0, 0.0, 0.0]
        self.exceeded: dict[str, int] = {}
        self.counts_tokens = self.is_limited_by_rate = False
        self._windows = windows
        self._currency = currency
        self._count_exceeded = count_exceeded
        self._clock = clock
        self._unix_time = unix_time

    def change(self, limits: Limits, now: float, unix_now: float) -> None:
        """Put other limits in force. What was used stays used."""
        self.requests = _resized(self.requests, limits.rpm, now)
        self.tokens = _resized(self.tokens, limits.tpm, now)
        known: dict[tuple[str, str], BudgetUse] = {(use.budget.unit, use.budget.window): use for use in self.budgets}
        self.budgets = tuple(self._budget_use(known, budget, unix_now) for budget in limits.budgets)
        self.limits = limits
        self._most_running = inf if limits.concurrency is None else limits.concurrency
        self.counts_tokens = self.tokens is not None or bool(self.budgets)
        self.is_limited_by_rate = self.requests is not None or self.tokens is not None

    def _budget_use(self, known: dict[tuple[str, str], BudgetUse], budget: Budget, unix_now: float) -> BudgetUse:
        use = known.get((budget.unit, budget.window))
        if use is None:
            return BudgetUse(budget, self._windows, unix_now)
        use.budget = budget
        return use

    def reserve(self, estimate: AmountTuple = NOTHING) -> Taken:
        """Reserve for one request. `settle` what this returns, once, however the request ends.

        Args:
            estimate: What the request will use at most, or on average where that is unknown.

        Raises:
            RateLimited: A rate limit is exceeded.
            InsufficientQuota: A budget is.
        """
        now, requests, tokens = self._clock(), self.requests, self.tokens
        if self.running >= self._most_running or (self.budgets and self._are_spent(estimate)):
            return self._reserve_beyond(estimate, now)
        # As `TokenBucket.wait_s` and `take`, without calls.
        latest = now + LATEST_FULL_S
        if requests is not None:
            full_at = requests.full_at
            full_at = full_at + requests.each_s if full_at > now else now + requests.each_s  # `max` takes twice as long
            if full_at > latest:
                return self._reserve_beyond(estimate, now)
        taken = None
        if tokens is not None:
            taken = estimate[0]
            full, needed_s = tokens.full_at, taken * tokens.each_s
            then = full + needed_s if full > now else now + needed_s
            if then > latest and (needed_s <= MINUTE_S or full > now + ROUNDING_S):
                return self._reserve_beyond(estimate, now)
            tokens.full_at = then
        if requests is not None:
            requests.full_at = full_at
        self.running += 1
        return taken, self._count(estimate) if self.budgets else None

    def _are_spent(self, estimate: AmountTuple) -> bool:
        unix_now = self._unix_time()
        return any(self._is_spent(use, estimate, unix_now) for use in self.budgets)

    def _count(self, estimate: AmountTuple) -> AmountTuple:
        self._has_reserved = True
        for index, amount in enumerate(estimate):
            self.reserved[index] += amount
        return estimate

    def _reserve_beyond(self, estimate: AmountTuple, now: float) -> Taken:
        """As `reserve`, for a request that exceeds limits. It passes if these only observe.

        The bucket of such a limit gives nothing, as if it had refused the request.
        """
        exceeded = self._exceeded(estimate, now)
        refusal = next((found for found in exceeded if found.enforced), None)
        for found in exceeded if refusal is None else (refusal,):
            self.exceeded[found.limit] = self.exceeded.get(found.limit, 0) + 1
            self._count_exceeded(found.limit, found.enforced)
        if refusal is not None:
            raise refusal.error
        observed = {found.limit for found in exceeded}
        taken: float | None = None
        if self.requests is not None and "rpm" not in observed:
            self.requests.take(1.0, now)
        if self.tokens is not None and "tpm" not in observed:
            self.tokens.take(estimate[0], now)
            taken = estimate[0]
        self.running += 1
        return taken, self._count(estimate) if self.budgets else None

    def settle(self, taken: Taken, used: AmountTuple, started_at: float) -> None:
        """The request has ended: give back what it reserved, and count what it used.

        Args:
            taken: What `reserve` returned.
            used: What the request used in the end.
            started_at: When it started, in unix seconds: it counts in the windows of that time.
        """
        tokens, counted = taken
        self.running -= 1
        if tokens is not None and self.tokens is not None:
            bucket, rest = self.tokens, tokens - used[0]
            if rest >= 0:
                bucket.full_at -= rest * bucket.each_s
            else:
                bucket.take(-rest, self._clock())
        if self.budgets or self._has_reserved:
            self._settle_budgets(counted, used, started_at)

    def _settle_budgets(self, counted: AmountTuple | None, used: AmountTuple, started_at: float) -> None:
        if counted is not None:
            for index, amount in enumerate(counted):
                self.reserved[index] -= amount
        if not self.running:
            self.reserved[:] = _NOTHING_RESERVED  # exactly: sums of floats drift
            self._has_reserved = False
        for budget in self.budgets:
            budget.add(used, started_at)

    def _is_spent(self, use: BudgetUse, estimate: AmountTuple, unix_now: float) -> bool:
        """Whether the request would exceed the budget. An estimate larger than the whole budget passes once, as a
        large request does at a full bucket.
        """
        index = use.index
        taken = use.spent(unix_now) + self.reserved[index] + self.elsewhere[index]
        return taken > 0 and taken + estimate[index] > use.budget.amount

    def _exceeded(self, estimate: AmountTuple, now: float) -> list[TooMuch]:
        """The limits that one more request would exceed; nothing is taken."""
        found: list[TooMuch] = []
        limits = self.limits
        if limits.concurrency is not None and self.running >= limits.concurrency:
            error = errors.RateLimited(
                f"key '{self.name}' may have {limits.concurrency} requests at the same time (concurrency): "
                "wait until one of them has ended",
                retry_after_s=CONCURRENCY_RETRY_S,
            )
            found.append(TooMuch("concurrency", error, enforced="concurrency" not in limits.observe))
        bucket = self.requests
        if bucket is not None and (wait_s := bucket.wait_s(1.0, now)):
            found.append(self._too_fast("rpm", "requests", bucket.per_minute, wait_s))
        bucket = self.tokens
        if bucket is not None and (wait_s := bucket.wait_s(estimate[0], now)):
            found.append(self._too_fast("tpm", "tokens", bucket.per_minute, wait_s))
        unix_now = self._unix_time() if self.budgets else 0.0
        found += [
            TooMuch("budget", self._spent(use.budget), enforced=use.budget.enforce)
            for use in self.budgets
            if self._is_spent(use, estimate, unix_now)
        ]
        return found

    def _too_fast(self, limit: str, noun: str, per_minute: int, wait_s: float) -> TooMuch:
        retry_s = errors.whole_s(wait_s)
        error = errors.RateLimited(
            f"key '{self.name}' may use {per_minute} {noun} per minute ({limit}): try again in {retry_s} s",
            retry_after_s=retry_s,
        )
        return TooMuch(limit, error, enforced=limit not in self.limits.observe)

    def _spent(self, budget: Budget) -> errors.GatewayError:
        amount = _BUDGET_TEXT[budget.unit].format(budget.amount, currency=self._currency)
        return errors.InsufficientQuota(
            f"key '{self.name}' may use {amount} per {budget.window}, and this request could exceed what is left"
        )

    def as_json(self, now: float, unix_now: float) -> dict[str, Any]:
        """How near each limit is, for operators."""
        limits = self.limits
        shown: dict[str, Any] = {}
        for limit, bucket in (("rpm", self.requests), ("tpm", self.tokens)):
            if bucket is not None:
                used = bucket.per_minute - max(0.0, bucket.level(now))
                shown[limit] = _reading(bucket.per_minute, round(used), enforce=limit not in limits.observe)
        if limits.concurrency is not None:
            enforce = "concurrency" not in limits.observe
            shown["concurrency"] = _reading(limits.concurrency, self.running, enforce=enforce)
        shown["budgets"] = [
            {"unit": use.budget.unit, "window": use.budget.window}
            | _reading(use.budget.amount, use.spent(unix_now), enforce=use.budget.enforce)
            | {"reserved": self.reserved[use.index] + self.elsewhere[use.index], "resets_at": use.end}
            for use in self.budgets
        ]
        return {"running": self.running, "limits": shown, "exceeded": self.exceeded}


def _reading(limit: float, used: float, *, enforce: bool) -> dict[str, Any]:
    return {"limit": limit, "used": used, "enforce": enforce}


def _resized(bucket: TokenBucket | None, per_minute: int | None, now: float) -> TokenBucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return TokenBucket(per_minute, now)
    if bucket.per_minute != per_minute:
        bucket.resize(per_minute, now)
    return bucket
