"""What a chat completion's `finish_reason` means: complete, cut at a limit, filtered, or failed. One table.

OpenAI documents `stop`, `length`, `tool_calls`, `content_filter` and `function_call`. Engines and providers send more:
`abort` (SGLang, vLLM), `error` (OpenRouter), `insufficient_system_resource` (DeepSeek), `sensitive`, `network_error`
and `model_context_window_exceeded` (Zhipu), `model_length` (Mistral), the upper-case names of Gemini. A reason that the
table does not have and that does not name a failure is a complete answer.
"""

from __future__ import annotations

from typing import Literal

from gateway.errors import GatewayError, ServiceUnavailable, UpstreamConnectionError

__all__ = ["FinishKind", "failure_of", "kind_of", "reason_in"]

FinishKind = Literal["complete", "length", "filtered", "failed", "overloaded"]

_NO_REASON = frozenset({"", "null", "none"})  # what some engines send in place of JSON's null

_KINDS: dict[str, FinishKind] = {
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded",
         "context_window_exceeded", "context_length_exceeded", "contextlengthreached", "maxpredictedtokensreached"),
        "length",
    ),
    **dict.fromkeys(
        ("content_filter", "content_filtered", "sensitive", "safety", "image_safety", "recitation",
         "prohibited_content", "blocklist", "spii", "refusal", "guardrail_intervened", "moderation"),
        "filtered",
    ),
    **dict.fromkeys(
        ("insufficient_system_resource", "overloaded", "engine_overloaded", "rate_limit", "rate_limited",
         "too_many_requests", "quota", "quota_exceeded", "insufficient_quota", "unavailable", "service_unavailable",
         "busy", "server_busy", "throttled", "resource_exhausted", "no_capacity", "out_of_memory", "oom"),
        "overloaded",
    ),
    **dict.fromkeys(
        ("abort", "aborted", "error", "cancelled", "canceled", "network_error", "failed", "failure", "timeout",
         "malformed_function_call", "unexpected_tool_call", "interrupted", "unload", "modelunloaded", "userstopped",
         "killed", "preempted", "evicted", "shutdown", "disconnected", "connection_closed", "deadline_exceeded"),
        "failed",
    ),
}  # fmt: skip
# Parts of names that are not in the table, tried in this order.
_LENGTH_WORDS = ("max_token", "token_limit", "length_limit", "max_length", "context_length", "context_window")
_OVERLOAD_WORDS = ("overload", "insufficient", "rate_limit", "ratelimit", "too_many_requests", "quota", "unavailable",
                   "throttl", "exhausted", "capacity", "out_of_memory", "busy")  # fmt: skip
_FAILURE_WORDS = ("error", "abort", "cancel", "fail", "timeout", "timed_out", "interrupt", "crash", "exception",
                  "malformed", "disconnect", "preempt", "shutdown")  # fmt: skip
_BY_WORD: tuple[tuple[tuple[str, ...], FinishKind], ...] = (
    (_LENGTH_WORDS, "length"), (_OVERLOAD_WORDS, "overloaded"), (_FAILURE_WORDS, "failed")
)  # fmt: skip


def reason_in(value: object) -> str | None:
    """The reason in a `finish_reason` member; None if the answer goes on. SGLang's own API sends `{"type": ...}`."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = value.get("type")
    if not isinstance(value, str) or value.strip().lower() in _NO_REASON:
        return None
    return value


def kind_of(reason: str | None) -> FinishKind:
    """What a reason means. None, of an engine that sends none, is a complete answer."""
    if reason is None or reason == "stop":
        return "complete"
    name = reason.strip().lower().replace("-", "_").replace(" ", "_")
    kind = _KINDS.get(name)
    if kind is not None:
        return kind
    return next((kind for words, kind in _BY_WORD if any(word in name for word in words)), "complete")


def failure_of(reason: str | None) -> GatewayError | None:
    """The error if an answer with this reason is none; else None."""
    kind = kind_of(reason)
    error: GatewayError
    if kind == "overloaded":
        error = ServiceUnavailable(f"the neuron gave up its answer for lack of resources: finish_reason is {reason!r}")
    elif kind == "failed":
        error = UpstreamConnectionError(f"the neuron aborted its answer: finish_reason is {reason!r}")
    else:
        return None
    error.is_neurons_text = True  # reported, like an error event: this request may be the cause
    return error
