"""What a request may use and what it used: reserved before it is routed, settled and entered in the ledger at its end.

Synchronous throughout, so that no cancellation comes between two steps.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeAlias

import trio

from catalogue.models import ModelProfile
from gateway.access.keys.key import Key
from gateway.access.ledger.entry import LedgerEntry
from gateway.access.ledger.prices import token_cost
from gateway.access.limits.amounts import NOTHING, Amounts
from gateway.access.limits.limiter import Reservation
from gateway.access.limits.rate_limit_headers import anthropic_headers, openai_headers
from gateway.asgi import Headers
from gateway.dialects.large_bodies.outline import Outline
from gateway.dialects.token_reservation import GENERATING_PATHS, TOKEN_PATHS, expected_tokens
from gateway.errors import GatewayError
from gateway.fleet.lease import GpuUse
from gateway.proxy.accounts.accounting import Accounting
from gateway.telemetry.request_record import RequestRecord

__all__ = ["RequestAccount"]

_J_PER_WH = 3600


_Tokens: TypeAlias = tuple[int, int, int, int, bool]
"""Prompt, completion, cached and reasoning tokens, and whether any of them are an estimate."""

_NO_TOKENS: _Tokens = (0, 0, 0, 0, False)
_NO_BODY = Outline(b"")


class RequestAccount:
    """One request's account, and the context manager around its routing; see `reserve`.

    Args:
        accounting: Shared by all.
        record: The record of a request that has just begun. `close` the account when it has its status and outcome.
        key: The client's; None without one.
        dialect: The API of the request, by its name in the ledger.
    """

    __slots__ = ("_accounting", "_body", "_cost", "_dialect", "_entry_id", "_record", "_reservation", "_tokens", "_use")

    def __init__(self, accounting: Accounting, record: RequestRecord, key: Key | None, dialect: str) -> None:
        self._accounting = accounting
        self._record = record
        self._dialect = dialect
        self._entry_id = accounting.new_row_id()
        self._use = None if key is None else accounting.limiter.use_of(key)
        self._reservation: Reservation | None = None
        self._body = _NO_BODY
        self._tokens = _NO_TOKENS
        self._cost: float | None = None
        record.gpu_use = GpuUse()
        if self._use is not None and self._use.is_limited_by_rate:
            record.limit_headers = self._limit_headers

    def _limit_headers(self) -> Headers:
        """What is left of the key's limits per minute, when a response begins."""
        limiter, use = self._accounting.limiter, self._use
        if use is None:
            return []
        now = limiter.clock()
        if self._dialect == "anthropic":
            return anthropic_headers(use, now, limiter.unix_time())
        return openai_headers(use, now)

    # Reserving...

    def reserve(self, model: str | None = None, body: Outline = _NO_BODY) -> Self:
        """Reserve what the request will use. Use the result as a context manager at once: leaving it settles.

        Args:
            model: The concrete model; None for a request that generates nothing.
            body: The request's body for parsers; empty for a form.

        Raises:
            RateLimited, InsufficientQuota: The key has no more.
        """
        self._body = body
        use = self._use
        if use is not None:
            estimate = NOTHING if model is None or not use.counts_tokens else self._estimate(model, body)
            started_at = self._record.timings.started_unix
            self._reservation = self._accounting.limiter.reserve(use, estimate, started_at=started_at)
        return self

    def _estimate(self, model: str, body: Outline) -> Amounts:
        path, (mean_tokens, mean_gpu_s) = self._record.path, self._accounting.limiter.means.of(model)
        prompt, answers = expected_tokens(path, body) if body.text and path in TOKEN_PATHS else (0, None)
        profile = self._profile(model)
        completion = 0.0
        if path in GENERATING_PATHS:
            completion = mean_tokens if answers is None else answers
            if profile is not None and profile.limit is not None:
                completion = min(completion, profile.limit.output or profile.limit.context or completion)
        money = 0.0
        if profile is not None and profile.cost is not None:
            money = token_cost(profile.cost, prompt, completion) or 0.0
        return Amounts(prompt + completion, money, mean_gpu_s)

    def _profile(self, model: str | None) -> ModelProfile | None:
        return None if model is None else self._accounting.catalogue.current.models.get(model)

    # Settling...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        record = self._record
        failed = record.outcome == "upstream_error" or (kind is not None and issubclass(kind, GatewayError))
        self._tokens = self._tokens_used(is_answered=bool(record.routing.attempts) and not failed)
        prompt, completion, cached, *_ = self._tokens
        self._body = _NO_BODY
        profile = self._profile(record.routing.model)
        if profile is not None and profile.cost is not None:
            self._cost = token_cost(profile.cost, prompt, completion, cached)
        gpu_s = 0.0 if record.gpu_use is None else record.gpu_use.seconds
        if record.outcome == "ok" and record.routing.model is not None:
            self._accounting.limiter.means.learn(record.routing.model, completion, gpu_s)
        if self._reservation is not None:
            self._reservation.used = Amounts(prompt + completion, self._cost or 0.0, gpu_s)
            self._reservation.__exit__(kind, error, traceback)

    def _tokens_used(self, *, is_answered: bool) -> _Tokens:
        """What the neuron reported. A prompt that it does not report is estimated, if it has worked on it."""
        answer = self._record.answer
        answer.finish()
        usage, estimated = answer.usage, answer.is_estimated
        prompt = completion = cached = reasoning = 0
        if usage is not None:
            prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
            cached, reasoning = usage.cached_tokens or 0, usage.reasoning_tokens or 0
        is_unknown = usage is None or usage.prompt_tokens is None
        if is_unknown and (is_answered or completion) and self._body.text and self._record.path in TOKEN_PATHS:
            prompt, estimated = expected_tokens(self._record.path, self._body)[0], True
        return prompt, completion, cached, reasoning, estimated

    def close(self) -> None:
        """Enter the request in the ledger: its record has its status and outcome now."""
        ledger = self._accounting.ledger
        if ledger is None:
            return
        record = self._record
        prompt, completion, cached, reasoning, estimated = self._tokens
        routing, timings, gpu_use = record.routing, record.timings, record.gpu_use
        started_at, first_at, phases_ms = timings.started_at, record.answer.first_token_at, timings.phases_ms
        joules = None if gpu_use is None or not gpu_use.seconds else gpu_use.joules
        ledger.add(
            LedgerEntry(
                id=self._entry_id,
                at=timings.started_unix,
                key_id=record.key_id,
                alias=routing.alias,
                model=None if routing.is_unknown_model else routing.model,
                node=routing.node,
                endpoint=record.path,
                dialect=self._dialect,
                status=record.status,
                outcome=record.outcome,
                prompt_tokens=prompt,
                completion_tokens=completion,
                cached_tokens=cached,
                reasoning_tokens=reasoning,
                estimated=estimated,
                queue_ms=phases_ms.get("queue"),
                load_ms=phases_ms.get("load"),
                first_token_ms=None if first_at is None else (first_at - started_at) * 1000,
                total_ms=(trio.current_time() - started_at) * 1000,
                gpu_seconds=0.0 if gpu_use is None else gpu_use.seconds,
                energy_wh=None if joules is None else joules / _J_PER_WH,
                cost=self._cost,
            )
        )
