"""What a rollout learns from one request of its alias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.asgi import Headers

__all__ = ["Observation", "Observer", "is_retry"]

_RETRY_COUNT = b"x-stainless-retry-count"  # set by the SDKs of OpenAI and Anthropic: which try this is


@dataclass(frozen=True, slots=True)
class Observation:
    """One ended request. None is "does not apply" or "unknown".

    Args:
        alias: The alias the client asked for.
        target: The model that the alias stood for.
        failed: The target failed the request: an error status, or a stream that broke off. None if that is unknown,
            because the client left.
        error: Which error, if it failed.
        first_token_s: From the start of the request to its first token.
        waited_s: How long a client that left had waited for the first token in vain.
        tokens_per_s: From the first token to the last; of an answer that is not a stream, over the whole request.
        finish_reason: The neuron's finish reason.
        tool_calls_valid: Whether a client can use the tool calls in the answer.
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
    """Whether an SDK repeats a request. A repeated request has the same target, and teaches nothing new of it."""
    return any(name == _RETRY_COUNT and value != b"0" for name, value in headers)
