"""What a finished request says of the model it went to: what rollouts compare. Pure; made of a `Record` as it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import errors
from gateway.asgi import Headers

if TYPE_CHECKING:
    from gateway.telemetry.request_record import Record

__all__ = ["Observation", "Observer", "is_retry", "observe"]

_NOT_THE_TARGETS = (errors.ShuttingDown, errors.Overloaded)  # the gateway's own doing, whichever target it was
_RETRY_COUNT = b"x-stainless-retry-count"  # OpenAI's and Anthropic's SDKs say which try this is
_REASON_LIMIT = 32


@dataclass(frozen=True, slots=True)
class Observation:
    """One request, seen from its end. None is "does not apply" or "nobody knows".

    Args:
        alias: What the client asked for.
        target: The model that the alias stood for.
        failed: Whether the target failed it: an error status or a stream that broke off. None if nobody can tell, the
            client having left.
        error: Which error, if it failed.
        first_token_s: From the request's beginning to its first generated token.
        waited_s: How long a client that left had waited for it in vain.
        tokens_per_s: Over the window between first and last token; of an answer in one piece, over the whole request.
        finish_reason: The neuron's word for why it stopped.
        tool_calls_valid: Whether a client can use the tool calls in it.
    """

    alias: str
    target: str
    failed: bool | None = None
    error: str | None = None
    first_token_s: float | None = None
    waited_s: float | None = None
    tokens_per_s: float | None = None
    finish_reason: str | None = None
    tool_calls_valid: bool | None = None


Observer = Callable[[Observation], None]


def is_retry(headers: Headers) -> bool:
    """Whether an SDK sends the request again. It went to the same target for the same reason: no news of it."""
    return any(name == _RETRY_COUNT and value != b"0" for name, value in headers)


def observe(record: Record, now: float) -> Observation | None:
    """What the record says, at the end of its request; None if it says nothing of a target.

    A client's own mistake that we caught says nothing; what a neuron refuses does, for another model may not.
    """
    if record.alias is None or record.target is None or isinstance(record.error, _NOT_THE_TARGETS):
        return None
    failed, error = _failure(record)
    if failed is None and record.outcome != "client_disconnected":
        return None
    meter = record.meter
    first_at = None if meter is None else meter.first_at
    return Observation(
        record.alias,
        record.target,
        failed,
        error,
        first_token_s=None if first_at is None else first_at - record.started_at,
        waited_s=now - record.started_at if failed is None and first_at is None else None,
        tokens_per_s=record.tokens_per_s(now),
        finish_reason=None if record.finish_reason is None else record.finish_reason[:_REASON_LIMIT],
        tool_calls_valid=record.tool_calls_valid,
    )


def _failure(record: Record) -> tuple[bool | None, str | None]:
    if record.outcome == "ok":
        fell_back = record.model != record.target
        return fell_back, "fell back" if fell_back else None
    if record.outcome == "upstream_error":
        return True, f"upstream {record.upstream_status}"
    if record.error is not None and (record.error.status >= 500 or isinstance(record.error, errors.ModelNotFound)):
        return True, record.error.code
    return None, None
