"""A chat completion as a Messages answer, whole. Streams are `stream`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.dialects.anthropic import errors, loose_json
from gateway.dialects.anthropic.answer import (
    BROKEN_OFF,
    Asked,
    Choice,
    Chunk,
    Said,
    arguments_object,
    message,
    stop_of,
    tool_id,
    usage_of,
)
from gateway.dialects.anthropic.count_tokens import BYTES_PER_TOKEN
from gateway.dialects.anthropic.signature import sign
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.metering import read_usage

__all__ = ["translate"]


def translate(body: bytes, asked: Asked) -> bytes:
    """The body for the client, of a neuron's 2xx body.

    Raises:
        UpstreamMalformedResponse: No chat completion.
        UpstreamConnectionError: The neuron gave up in the middle of it.
        GatewayError: It says that something else went wrong.
    """
    answer = _read(body)
    choice = _choice(answer)
    said = choice.message or Said()
    usage = usage_of(read_usage(answer.usage), asked.input_tokens, round(len(body) / BYTES_PER_TOKEN))
    told = message(asked, answer.model, usage)
    told["content"] = list(_blocks(said, asked))
    told["stop_reason"], told["stop_sequence"] = stop_of(
        choice.finish_reason, choice.matched, said.text, asked.stop_sequences, called=bool(said.tool_calls)
    )
    return msgspec.json.encode(told)


_decoder = msgspec.json.Decoder(Chunk)


def _read(body: bytes) -> Chunk:
    try:
        return loose_json.decode(_decoder, body)
    except msgspec.DecodeError as error:
        raise UpstreamMalformedResponse(f"the neuron's answer is no chat completion: {error}") from None


def _choice(answer: Chunk) -> Choice:
    if answer.error:
        raise errors.from_stream(answer.error)
    choice = next((choice for choice in answer.choices or () if not choice.index), None)
    if choice is None:
        raise UpstreamMalformedResponse("the neuron's answer is no chat completion: it has no choice")
    if choice.finish_reason in BROKEN_OFF:
        raise UpstreamConnectionError(f"the neuron broke off its answer: {choice.finish_reason}")
    return choice


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
