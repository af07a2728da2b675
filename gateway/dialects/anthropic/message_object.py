"""Parts of an answer that whole answers and streams share: the empty message, usage, stop reason, tool arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.dialects.chat import finish_reasons
from gateway.dialects.chat.answer_id import new_answer_id
from gateway.dialects.tool_calls import decode_arguments
from gateway.dialects.usage_fields import Usage

__all__ = [
    "MALFORMED_ARGUMENTS",
    "MessagesContext",
    "arguments_object",
    "message",
    "stop_of",
    "tool_id",
    "usage_of",
]


@dataclass(frozen=True, slots=True)
class MessagesContext:
    """What an answer's translation needs from its request. `request.MessagesAsChat.context` makes it.

    Args:
        request_id: Is repeated in errors.
        model: The model's name if the neuron's answer has none.
        input_tokens: An estimate, for `message_start` and for a neuron that reports no usage.
        stop_sequences: The request's `stop_sequences`.
        show_thinking: Whether reasoning becomes thinking blocks or is left out.
        answer_id: The base of the ids of the message and of calls to which the neuron gives none.
    """

    request_id: str
    model: str
    input_tokens: int = 1
    stop_sequences: tuple[str, ...] = ()
    show_thinking: bool = True
    answer_id: str = field(default_factory=new_answer_id)


def message(context: MessagesContext, model: object, usage: dict[str, Any]) -> dict[str, Any]:
    """A message without content: the start of `message_start` and of a whole answer. `model` is the neuron's."""
    return {
        "id": f"msg_{context.answer_id}",
        "type": "message",
        "role": "assistant",
        "model": model if isinstance(model, str) and model else context.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def usage_of(usage: Usage | None, input_estimate: int, output_estimate: int) -> dict[str, Any]:
    """The `usage` object. The estimates, in tokens, replace counts that the neuron does not report.

    Anthropic's `input_tokens` excludes cached tokens; OpenAI's `prompt_tokens` includes them.
    """
    usage = usage or Usage()
    prompt = input_estimate if usage.prompt_tokens is None else usage.prompt_tokens
    cached = min(usage.cached_tokens or 0, prompt)
    fields: dict[str, Any] = {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output_estimate if usage.completion_tokens is None else usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields


def stop_of(
    finish_reason: str | None, matched: object, text_end: str, stop_sequences: Sequence[str], *, called: bool
) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`.

    A stop sequence is reported if the engine names it in `matched`, or if the text ends with it; an engine that cuts
    the sequence off the text and does not name it gives no way to know. `called` is true if the answer has a tool call:
    some engines finish such an answer with `stop`.
    """
    kind = finish_reasons.kind_of(finish_reason)
    if kind == "length":
        return "max_tokens", None
    if kind == "filtered":
        return "refusal", None
    if called:
        return "tool_use", None
    if isinstance(matched, str) and matched in stop_sequences:
        return "stop_sequence", matched
    found = next((stop for stop in stop_sequences if text_end.endswith(stop)), None)
    return ("end_turn", None) if found is None else ("stop_sequence", found)


def tool_id(engine_id: str | None, context: MessagesContext, position: int) -> str:
    """The id of a tool call. If the engine gives none, an id that is unique in the conversation."""
    return engine_id or f"toolu_{context.answer_id}_{position}"


def arguments_object(text: str) -> dict[str, Any]:
    """A tool call's arguments as an object, since `input` must be one.

    No arguments are an empty object. Broken JSON is passed on under a key that no tool has: the client's validation
    then fails and the model sees why. An empty object instead could be a valid call that the model did not mean.
    """
    value = decode_arguments(text)
    return value if isinstance(value, dict) else {MALFORMED_ARGUMENTS: text}


MALFORMED_ARGUMENTS = "_malformed_arguments"
