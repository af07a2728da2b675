"""What a request may use and what it used: reserved before it is routed, settled and entered in the ledger at its end.

Synchronous throughout, so that no cancellation comes between two steps.
"""

from __future__ import annotations

from typing import TypeAlias

from gateway.access.keys.key import Key
from gateway.access.ledger.entry import NO_VALUES, LedgerRow
from gateway.access.ledger.prices import token_cost
from gateway.access.limits.amounts import AmountTuple, LearntMean
from gateway.access.limits.key_use import Taken
from gateway.access.limits.rate_limit_headers import anthropic_headers, openai_headers, openai_lines
from gateway.asgi import DirectExchange, Headers
from gateway.dialects.json_splice import ModelField
from gateway.dialects.token_reservation import GENERATING_PATHS, expected_tokens
from gateway.fleet.lease import GpuUse
from gateway.proxy.accounts.accounting import Accounting
from gateway.telemetry.request_record import RequestRecord

__all__ = ["RequestAccount"]

_J_PER_WH = 3600


_NOTHING_TAKEN: Taken = (None, None)

_Used: TypeAlias = tuple[bool, int, int, int | None, int | None, float | None]
"""Whether tokens are estimated; those of prompt and completion; cached and reasoning ones, and the cost, if known."""
_NOTHING_USED: _Used = (False, 0, 0, None, None, None)
_NO_HEADERS: Headers = []


class RequestAccount(GpuUse):
    """One request's account, which also counts what its leases take of devices.

    `reserve` before routing, and `settle` after it; `close` at the end, however the request ended.

    Args:
        accounting: Shared by all.
        record: The record of a request that has just begun.
        key: The client's; None without one.
        dialect: The API of the request, by its name in the ledger.
        exchange: Takes the rate-limit headers as lines; None where the response's own headers have them.
    """

    __slots__ = (
        "_accounting", "_dialect", "_exchange", "_field", "_record", "_taken", "_use", "_used",
    )  # fmt: skip

    def __init__(
        self,
        accounting: Accounting,
        record: RequestRecord,
        key: Key | None,
        dialect: str,
        exchange: DirectExchange | None = None,
    ) -> None:
        self.seconds = self.joules = 0.0  # as `GpuUse` does, without a call
        self._accounting = accounting
        self._record = record
        self._dialect = dialect
        self._exchange = exchange
        self._field: ModelField | None = None
        self._taken: Taken | None = None
        self._used = _NOTHING_USED
        record.gpu_use = self
        if key is None:
            self._use = None
            return
        self._use = use = accounting.limiter.use_of(key)
        if use.is_limited_by_rate:
            has_lines = exchange is not None and dialect != "anthropic"
            record.limit_headers = self._put_limit_lines if has_lines else self._limit_headers

    def _put_limit_lines(self) -> Headers:
        """As `_limit_headers`, but among the lines of the exchange."""
        exchange, use = self._exchange, self._use
        if exchange is not None and use is not None:
            exchange.more_lines = openai_lines(use, self._accounting.limiter.clock())
        return _NO_HEADERS

    def _limit_headers(self) -> Headers:
        """What is left of the key's limits per minute, when a response begins."""
        limiter, use = self._accounting.limiter, self._use
        if use is None:
            return _NO_HEADERS
        if self._dialect == "anthropic":
            return anthropic_headers(use, limiter.clock(), limiter.unix_time())
        return openai_headers(use, limiter.clock())

    def reserve(self, model: str | None = None, field: ModelField | None = None) -> None:
        """Reserve what the request will use.

        Args:
            model: The concrete model; None for a request that generates nothing.
            field: What was read of the request's body; kept until `settle`.

        Raises:
            RateLimited, InsufficientQuota: The key has no more.
        """
        self._field = field
        use = self._use
        if use is None:
            self._taken = _NOTHING_TAKEN
        elif not use.counts_tokens or model is None or field is None:
            self._taken = use.reserve()
        else:
            members = field.members
            prompt, answers = field.expected if members is None else expected_tokens(members)
            mean = self._accounting.limiter.means[model]
            if answers is None and not use.budgets and self._record.path in GENERATING_PATHS:  # the common case
                self._taken = use.reserve((prompt + mean.tokens, 0.0, 0.0))
            else:
                self._taken = use.reserve(self._estimate(model, mean, prompt, answers))

    def _estimate(self, model: str, mean: LearntMean, prompt: int, answers: int | None) -> AmountTuple:
        accounting = self._accounting
        completion = mean.tokens if answers is None else answers
        if self._record.path not in GENERATING_PATHS:
            completion = 0.0
        profile = accounting.catalogue.current.models.get(model)
        if profile is None:
            return prompt + completion, 0.0, mean.gpu_s
        if profile.limit is not None:
            completion = min(completion, profile.limit.output or profile.limit.context or completion)
        return prompt + completion, token_cost(profile.cost, prompt, completion) or 0.0, mean.gpu_s

    def settle(self, *, failed: bool = False) -> None:
        """Count what the request used in place of what it reserved. Call it in the step in which the answer ends, so
        that a client that has all of it may send its next request.

        Args:
            failed: The client gets an error of the gateway.
        """
        taken, self._taken = self._taken, None
        if taken is None:
            return
        accounting, record = self._accounting, self._record
        answer, model, gpu_s, cost = record.answer, record.routing.model, self.seconds, None
        if answer.meter is not None:
            answer.finish()
        usage, prompt, completion, cached, reasoning = answer.usage, None, 0, None, None
        if usage is not None:
            prompt, completion = usage.prompt_tokens, usage.completion_tokens or 0
            cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
        is_estimated = answer.is_estimated
        if prompt is None:
            prompt = self._estimated_prompt(completion, failed=failed)
            is_estimated = is_estimated or prompt > 0
        self._field = None
        if model is not None:
            profile = accounting.catalogue.current.models.get(model)
            if profile is not None:
                cost = token_cost(profile.cost, prompt, completion, cached or 0)
            if record.outcome == "ok":
                accounting.limiter.means.learn(model, completion, gpu_s)
        self._used = (is_estimated, prompt, completion, cached, reasoning, cost)
        if self._use is not None:
            self._use.settle(taken, (prompt + completion, cost or 0.0, gpu_s), record.started_unix)

    def _estimated_prompt(self, completion: int, *, failed: bool) -> int:
        """Tokens of the prompt, if a neuron has worked on it: it was asked, and has not refused."""
        record = self._record
        is_answered = bool(record.routing.attempts) and not failed and record.outcome != "upstream_error"
        field = self._field
        return field.expected_tokens()[0] if field is not None and (completion or is_answered) else 0

    def close(self) -> None:
        """Enter the request in the ledger: its record has its status and outcome now."""
        accounting, record = self._accounting, self._record
        if accounting.ledger is None:
            return
        routing, phases_ms, meter, started_at = record.routing, record.phases_ms, record.answer.meter, record.started_at
        estimated, prompt, completion, cached, reasoning, cost = self._used
        first_at = None if meter is None else meter.first_at
        gpu_s, joules = self.seconds, self.joules
        shared = (
            record.key_id,
            routing.alias,
            None if routing.is_unknown_model else routing.model,
            routing.node,
            record.path,
            self._dialect,
            record.status,
            record.outcome,
            estimated,
        )
        own = (
            accounting.new_row_id(),
            record.started_unix,
            prompt,
            completion,
            (record.now() - started_at) * 1000,
            gpu_s,
        )
        optional = (
            cached,
            reasoning,
            phases_ms.get("queue"),
            phases_ms.get("load"),
            None if first_at is None else (first_at - started_at) * 1000,
            joules / _J_PER_WH if gpu_s and joules is not None else None,
            cost,
        )
        # Rows wait for a quarter of a second and are read by another core, so less memory for each takes less time.
        if shared == accounting.last_shared:
            shared = accounting.last_shared
        else:
            accounting.last_shared = shared
        accounting.ledger.add(LedgerRow(shared, own, NO_VALUES if optional == NO_VALUES else optional))
