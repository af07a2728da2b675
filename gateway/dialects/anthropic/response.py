"""A chat completion as a Messages answer, whole. Streams are `stream`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.dialects.anthropic.answer import Asked, arguments_object, message, stop_of, tool_id, usage_of
from gateway.dialects.anthropic.signature import sign
from gateway.dialects.chat_chunks import Said, read_whole
from gateway.dialects.token_estimate import BYTES_PER_TOKEN
from gateway.dialects.usage_fields import read_usage
from gateway.errors import UpstreamMalformedResponse

__all__ = ["token_count_body", "translate"]


def translate(body: bytes, asked: Asked) -> bytes:
    """The body for the client, of a neuron's 2xx body.

    Raises:
        GatewayError: It is no answer (see `chat.read_whole`).
    """
    answer, choice = read_whole(body)
    said = choice.message or Said()
    usage = usage_of(read_usage(answer.usage), asked.input_tokens, round(len(body) / BYTES_PER_TOKEN))
    told = message(asked, answer.model, usage)
    told["content"] = list(_blocks(said, asked))
    told["stop_reason"], told["stop_sequence"] = stop_of(
        choice.finish_reason, choice.matched, said.text, asked.stop_sequences, called=bool(said.tool_calls)
    )
    return msgspec.json.encode(told)


def _blocks(said: Said, asked: Asked) -> Iterator[dict[str, Any]]:
    if said.thought and asked.show_thinking:
        yield {"type": "thinking", "thinking": said.thought, "signature": sign(said.thought)}
    if said.text.strip():  # Anthropic's API has no blank text blocks, and refuses them when they come back
        yield {"type": "text", "text": said.text}
    for position, call in enumerate(said.tool_calls or ()):
        if call.function is None or not isinstance(call.function.name, str) or not call.function.name:
            raise UpstreamMalformedResponse("the neuron called a tool without naming it")
        yield {
            "type": "tool_use",
            "id": tool_id(call.id, asked.request_id, position),
            "name": call.function.name,
            "input": arguments_object(call.function.text),
        }


def token_count_body(input_tokens: int) -> bytes:
    """The response body of `/v1/messages/count_tokens`."""
    return msgspec.json.encode({"input_tokens": input_tokens})
