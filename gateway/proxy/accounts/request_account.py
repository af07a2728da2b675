"""What a request may use and what it used: reserved before it is routed, settled and entered in the ledger at its end.

Synchronous throughout, so that no cancellation comes between two steps.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeAlias

from gateway.access.keys.key import Key
from gateway.access.ledger.entry import LedgerEntry
from gateway.access.ledger.prices import token_cost
from gateway.access.limits.amounts import NOTHING, Amounts, amounts_of
from gateway.access.limits.limiter import Reservation
from gateway.access.limits.rate_limit_headers import anthropic_headers, openai_headers, openai_lines
from gateway.asgi import DirectExchange, Headers
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
        exchange: Takes the rate-limit headers as lines; None where the response's own headers have them.
    """

    __slots__ = (
        "_accounting", "_body", "_cost", "_dialect", "_entry_id", "_exchange", "_record", "_reservation",
        "_tokens", "_use",
    )  # fmt: skip

    def __init__(
        self,
        accounting: Accounting,
        record: RequestRecord,
        key: Key | None,
        dialect: str,
        exchange: DirectExchange | None = None,
    ) -> None:
        self._accounting = accounting
        self._record = record
        self._dialect = dialect
        self._exchange = exchange
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
        if self._exchange is None:
            return openai_headers(use, now)
        self._exchange.more_lines = openai_lines(use, now)
        return []

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
            estimate = self._estimate(model, body) if use.counts_tokens and model is not None else NOTHING
            started_at = self._record.started_unix
            self._reservation = self._accounting.limiter.reserve(use, estimate, started_at=started_at)
        return self

    def _estimate(self, model: str, body: Outline) -> Amounts:
        path, (mean_tokens, mean_gpu_s) = self._record.path, self._accounting.limiter.means.of(model)
        prompt, answers = expected_tokens(path, body) if body.text and path in TOKEN_PATHS else (0, None)
        profile = self._accounting.catalogue.current.models.get(model)
        completion = money = 0.0
        if path in GENERATING_PATHS:
            completion = mean_tokens if answers is None else answers
            if profile is not None and profile.limit is not None:
                completion = min(completion, profile.limit.output or profile.limit.context or completion)
        if profile is not None and profile.cost is not None:
            money = token_cost(profile.cost, prompt, completion) or 0.0
        return amounts_of((prompt + completion, money, mean_gpu_s))

    # Settling...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        record, accounting = self._record, self._accounting
        answer, gpu_use, model = record.answer, record.gpu_use, record.routing.model
        if answer.meter is not None:
            answer.finish()
        usage, estimated = answer.usage, answer.is_estimated
        prompt = completion = cached = reasoning = 0
        if usage is not None:
            prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
            cached, reasoning = usage.cached_tokens or 0, usage.reasoning_tokens or 0
        if (usage is None or usage.prompt_tokens is None) and self._is_prompt_known(completion, kind):
            prompt, estimated = expected_tokens(record.path, self._body)[0], True
        self._tokens = (prompt, completion, cached, reasoning, estimated)
        self._body = _NO_BODY
        gpu_s = 0.0 if gpu_use is None else gpu_use.seconds
        if model is not None:
            profile = accounting.catalogue.current.models.get(model)
            if profile is not None and profile.cost is not None:
                self._cost = token_cost(profile.cost, prompt, completion, cached)
            if record.outcome == "ok":
                accounting.limiter.means.learn(model, completion, gpu_s)
        if self._reservation is not None:
            self._reservation.settle(amounts_of((prompt + completion, self._cost or 0.0, gpu_s)))

    def _is_prompt_known(self, completion: int, raised: type[BaseException] | None) -> bool:
        """Whether there is a prompt, and a neuron has worked on it: it was asked, and has not refused."""
        record = self._record
        failed = record.outcome == "upstream_error" or (raised is not None and issubclass(raised, GatewayError))
        is_answered = bool(record.routing.attempts) and not failed
        return bool((completion or is_answered) and self._body.text and record.path in TOKEN_PATHS)

    def close(self) -> None:
        """Enter the request in the ledger: its record has its status and outcome now."""
        ledger = self._accounting.ledger
        if ledger is None:
            return
        record = self._record
        routing, gpu_use, phases_ms = record.routing, record.gpu_use, record.phases_ms
        started_at, first_at = record.started_at, record.answer.first_token_at
        queue_ms = load_ms = energy_wh = None
        gpu_s = 0.0
        if phases_ms:
            queue_ms, load_ms = phases_ms.get("queue"), phases_ms.get("load")
        if gpu_use is not None and gpu_use.seconds:
            gpu_s = gpu_use.seconds
            energy_wh = None if gpu_use.joules is None else gpu_use.joules / _J_PER_WH
        # By position, in a fifth of the time that 22 names take.
        entry = LedgerEntry(
            self._entry_id,
            record.started_unix,
            record.key_id,
            routing.alias,
            None if routing.is_unknown_model else routing.model,
            routing.node,
            record.path,
            self._dialect,
            record.status,
            record.outcome,
            *self._tokens,
            queue_ms,
            load_ms,
            None if first_at is None else (first_at - started_at) * 1000,
            (record.now() - started_at) * 1000,
            gpu_s,
            energy_wh,
            self._cost,
        )
        ledger.add(entry)
