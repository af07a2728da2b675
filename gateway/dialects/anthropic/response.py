"""A whole chat completion as a Messages response, and the response of `count_tokens`. `stream` translates streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.dialects.anthropic.message_object import (
    MessagesContext,
    arguments_object,
    message,
    stop_of,
    tool_id,
    usage_of,
)
from gateway.dialects.anthropic.signature import sign
from gateway.dialects.chat_chunks import Delta, read_whole
from gateway.dialects.token_estimate import BYTES_PER_TOKEN
from gateway.dialects.tool_calls import whole_calls
from gateway.dialects.usage_fields import read_usage

__all__ = ["token_count_body", "translate"]


def translate(body: bytes, context: MessagesContext) -> bytes:
    """The client's response body for the body of a neuron's 200.

    Raises:
        GatewayError: The body is not a usable chat completion (see `chat_chunks.read_whole`).
    """
    completion, choice = read_whole(body)
    answer = choice.message or Delta()
    usage = usage_of(read_usage(completion.reported_usage), context.input_tokens, round(len(body) / BYTES_PER_TOKEN))
    fields = message(context, completion.model, usage)
    fields["content"] = list(_blocks(answer, context))
    fields["stop_reason"], fields["stop_sequence"] = stop_of(
        choice.finish_reason, choice.matched, answer.text, context.stop_sequences, called=bool(answer.tool_calls)
    )
    return msgspec.json.encode(fields)


def _blocks(answer: Delta, context: MessagesContext) -> Iterator[dict[str, Any]]:
    if answer.reasoning_text and context.show_thinking:
        yield {"type": "thinking", "thinking": answer.reasoning_text, "signature": sign(answer.reasoning_text)}
    if answer.text.strip():  # Anthropic's API rejects blank text blocks when a client sends them back
        yield {"type": "text", "text": answer.text}
    for position, call in enumerate(whole_calls(answer)):
        yield {
            "type": "tool_use",
            "id": tool_id(call.id, context, position),
            "name": call.name,
            "input": arguments_object(call.arguments),
        }


def token_count_body(input_tokens: int) -> bytes:
    """The response body of `/v1/messages/count_tokens`."""
    return msgspec.json.encode({"input_tokens": input_tokens})
