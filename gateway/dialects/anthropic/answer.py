"""What whole answers and streams have in common: the message they begin with, usage, stop reasons and arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.dialects.calls import decoded
from gateway.dialects.usage_fields import Usage

__all__ = [
    "MALFORMED_ARGUMENTS",
    "Asked",
    "arguments_object",
    "message",
    "stop_of",
    "tool_id",
    "usage_of",
]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the translation of an answer has to know of its request; made by `request.Translated.asked`.

    Args:
        request_id: Becomes the message's id, and stands in errors.
        model: What to call the model if the neuron does not say.
        input_tokens: An estimate, for `message_start` and for where the neuron counts nothing.
        stop_sequences: The request's.
        show_thinking: Whether thoughts become thinking blocks or are left out.
    """

    request_id: str
    model: str
    input_tokens: int = 1
    stop_sequences: tuple[str, ...] = ()
    show_thinking: bool = True


def message(asked: Asked, model: object, usage: dict[str, Any]) -> dict[str, Any]:
    """A message without content, as `message_start` has it and a whole answer begins; `model` is the neuron's word."""
    return {
        "id": f"msg_{asked.request_id}",
        "type": "message",
        "role": "assistant",
        "model": model if isinstance(model, str) and model else asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def usage_of(usage: Usage | None, input_estimate: int, output_estimate: int) -> dict[str, Any]:
    """Anthropic's usage; estimates stand in for what the neuron does not say.

    `input_tokens` is what had to be computed: Anthropic counts cached tokens apart, OpenAI within.
    """
    usage = usage or Usage()
    prompt = input_estimate if usage.prompt_tokens is None else usage.prompt_tokens
    cached = min(usage.cached_tokens or 0, prompt)
    told: dict[str, Any] = {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output_estimate if usage.completion_tokens is None else usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return told


def stop_of(
    finish_reason: str | None, matched: object, text_end: str, stop_sequences: Sequence[str], *, called: bool
) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`.

    A stop sequence is reported where the engine names it, or left it at the end of the text (one that is cut off
    cannot stand there). `called` says whether a tool was: some engines finish with `stop` all the same.
    """
    if finish_reason == "length":
        return "max_tokens", None
    if finish_reason == "content_filter":
        return "refusal", None
    if called:
        return "tool_use", None
    if isinstance(matched, str) and matched in stop_sequences:
        return "stop_sequence", matched
    met = next((stop for stop in stop_sequences if text_end.endswith(stop)), None)
    return ("end_turn", None) if met is None else ("stop_sequence", met)


def tool_id(given: object, request_id: str, position: int) -> str:
    """A call's id; for an engine that gives none, one that is unique in the conversation."""
    return given if isinstance(given, str) and given else f"toolu_{request_id}_{position}"


def arguments_object(text: str) -> dict[str, Any]:
    """A call's arguments as the object that `input` has to be.

    No arguments is an empty object. Broken JSON is handed on under a name no tool has, so that the client's check of
    the input fails and the model hears of it; an empty object could be a valid call, to something else than meant.
    """
    value = decoded(text)
    return value if isinstance(value, dict) else {MALFORMED_ARGUMENTS: text}


MALFORMED_ARGUMENTS = "_malformed_arguments"
