"""A whole chat completion as a Response object. `stream` translates streams."""

from __future__ import annotations

import msgspec

from gateway.dialects.chat_chunks import Delta, read_whole
from gateway.dialects.loose_json import JsonObject
from gateway.dialects.responses.response_object import (
    ResponsesContext,
    Status,
    add_encrypted_content,
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
from gateway.dialects.tool_calls import whole_calls
from gateway.dialects.usage_fields import read_usage

__all__ = ["translate"]


def translate(body: bytes, context: ResponsesContext) -> bytes:
    """The client's response body for the body of a neuron's 200.

    Raises:
        GatewayError: The body is not a usable chat completion (see `chat_chunks.read_whole`).
    """
    completion, choice = read_whole(body)
    answer = choice.message or Delta()
    fields = response(context, completion.created, completion.model)
    fields["status"], fields["incomplete_details"] = end_of(choice.finish_reason)
    fields["output"] = _items(answer, context, fields["status"])
    fields["usage"] = usage_of(
        read_usage(completion.reported_usage),
        context.input_tokens,
        round(len(body) / BYTES_PER_TOKEN),
        round(len(answer.reasoning_text.encode()) / BYTES_PER_TOKEN),
    )
    return msgspec.json.encode(fields)


def _items(answer: Delta, context: ResponsesContext, last_status: Status) -> list[JsonObject]:
    """Reasoning, text, calls. All are complete but the last, which has the answer's status."""
    items: list[JsonObject] = []
    if reasoning := answer.reasoning_text:
        items.append(reasoning_item(context, 0, [part("reasoning_text", reasoning)], "completed"))
        add_encrypted_content(context, items[0])
    content = [part("output_text", answer.content_text)] if answer.content_text.strip() else []
    if answer.refusal_text:
        content.append(part("refusal", answer.refusal_text))
    if content:
        items.append(message_item(context, len(items), content, "completed"))
    for position, call in enumerate(whole_calls(answer)):
        tool, id_ = context.client_tool(call.name, call.arguments), call_id(call.id, context, position)
        items.append(call_item(context, len(items), tool, id_, call.arguments))
    if items:
        items[-1]["status"] = last_status
    return items
