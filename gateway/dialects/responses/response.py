"""A chat completion as a Response, whole. Streams are `stream`'s."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects.chat_chunks import Said, read_whole
from gateway.dialects.responses.answer import (
    Asked,
    Status,
    call_id,
    call_item,
    end_of,
    message_item,
    part,
    reasoning_item,
    response,
    usage_of,
)
from gateway.dialects.token_estimate import BYTES_PER_TOKEN
from gateway.dialects.usage_fields import read_usage
from gateway.errors import UpstreamMalformedResponse

__all__ = ["translate"]


def translate(body: bytes, asked: Asked) -> bytes:
    """The body for the client, of a neuron's 2xx body.

    Raises:
        GatewayError: It is no answer (see `chat.read_whole`).
    """
    answer, choice = read_whole(body)
    said = choice.message or Said()
    told = response(asked, answer.created, answer.model)
    told["status"], told["incomplete_details"] = end_of(choice.finish_reason)
    told["output"] = _items(said, asked, told["status"])
    told["usage"] = usage_of(
        read_usage(answer.usage),
        asked.input_tokens,
        round(len(body) / BYTES_PER_TOKEN),
        round(len(said.thought.encode()) / BYTES_PER_TOKEN),
    )
    return msgspec.json.encode(told)


def _items(said: Said, asked: Asked, last: Status) -> list[dict[str, Any]]:
    """Thoughts, text, calls: each complete but the last, which ends as the answer does."""
    items: list[dict[str, Any]] = []
    if thought := said.thought:
        items.append(reasoning_item(asked, 0, [part("reasoning_text", thought)], "completed"))
    content = [part("output_text", said.words)] if said.words.strip() else []
    if said.refused:
        content.append(part("refusal", said.refused))
    if content:
        items.append(message_item(asked, len(items), content, "completed"))
    for position, call in enumerate(said.tool_calls or ()):
        if call.function is None or not isinstance(call.function.name, str) or not call.function.name:
            raise UpstreamMalformedResponse("the neuron called a tool without naming it")
        callee, id_ = asked.callee(call.function.name), call_id(call.id, asked.request_id, position)
        items.append(call_item(asked, len(items), callee, id_, call.function.text))
    if items:
        items[-1]["status"] = last
    return items
