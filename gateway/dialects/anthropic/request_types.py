"""The fields of a Messages request that the gateway reads, as msgspec types. Translates nothing.

Shapes as in https://docs.anthropic.com/en/api/messages. The types are loose on purpose: unknown fields are ignored, a
field whose meaning depends on the block's type stays `Any` or `Raw` until it is used, and wherever the API allows a
string or a list of blocks, both are accepted. `gateway.dialects.json_splice` reads `model` and `stream`.

Class names and docstrings become names and descriptions in `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.dialects.fields import decode_field
from gateway.dialects.translation.bounds import ITEMS_LIMIT, PARTS_LIMIT, TOOLS_LIMIT, check_count
from gateway.dialects.translation.slices import RequestReader, decode_list, is_sliced

__all__ = [
    "MessagesBlock",
    "MessagesContent",
    "MessagesOutputConfig",
    "MessagesRequest",
    "MessagesSource",
    "MessagesTool",
    "MessagesToolChange",
    "MessagesToolChoice",
    "MessagesTurn",
    "UsualMessagesRequest",
    "blocks_of",
    "nested_blocks",
    "reader",
]

ABSENT: Any = msgspec.field(default_factory=msgspec.Raw)  # a shared default would not go into a JSON schema


class MessagesBlock(msgspec.Struct):
    """A content block of any type."""

    type: str = "text"
    text: Any = None
    thinking: Any = None
    signature: Any = None
    source: msgspec.Raw = ABSENT
    id: Any = None
    name: Any = None
    input: msgspec.Raw = ABSENT
    tool: msgspec.Raw = ABSENT
    tool_use_id: Any = None
    tool_name: Any = None
    is_error: Any = None
    content: msgspec.Raw = ABSENT
    title: Any = None
    context: Any = None
    input_audio: Any = None


MessagesContent = str | list[str | MessagesBlock | None] | MessagesBlock | None


class MessagesTurn(msgspec.Struct):
    """One of `messages`."""

    role: str
    content: MessagesContent = None


class MessagesTool(msgspec.Struct):
    """One of `tools`. Without `input_schema` it is Anthropic's own, and run by the client or by Anthropic's servers."""

    name: str | None = None
    type: str | None = None
    description: Any = None
    input_schema: msgspec.Raw = ABSENT
    input_examples: Any = None
    strict: Any = None
    defer_loading: Any = None
    max_characters: Any = None
    display_width_px: Any = None
    display_height_px: Any = None
    display_number: Any = None
    enable_zoom: Any = None


class MessagesToolChange(msgspec.Struct):
    """The `tool` of a `tool_addition` or `tool_removal` block: a name, or the definition of a new tool."""

    name: str | None = None
    definition: MessagesTool | None = None


class MessagesToolChoice(msgspec.Struct):
    """`tool_choice`."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: Any = None


class MessagesThinking(msgspec.Struct):
    """`thinking`."""

    type: str
    budget_tokens: int | None = None
    display: Any = None


class MessagesOutputFormat(msgspec.Struct):
    """`output_config.format`, and `output_format` in its older place: a JSON schema that the answer must match."""

    type: str
    schema: msgspec.Raw = ABSENT


class MessagesOutputConfig(msgspec.Struct):
    """`output_config`."""

    effort: str | None = None
    format: MessagesOutputFormat | None = None
    task_budget: Any = None


class MessagesRequest(msgspec.Struct):
    """The fields that change the answer, besides `model` and `stream`."""

    messages: list[MessagesTurn]
    system: MessagesContent = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: str | list[str] | None = None
    metadata: Any = None
    tools: list[MessagesTool] | None = None
    tool_choice: str | MessagesToolChoice | None = None
    thinking: MessagesThinking | None = None
    output_config: MessagesOutputConfig | None = None
    output_format: MessagesOutputFormat | None = None


class MessagesSource(msgspec.Struct):
    """The `source` of an image or document block."""

    type: str = ""
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: msgspec.Raw = ABSENT


class UsualMessagesRequest(MessagesRequest, forbid_unknown_fields=True):
    """With the fields that clients usually send although they have no effect, and no others."""

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    cache_control: msgspec.Raw = ABSENT
    container: msgspec.Raw = ABSENT
    context_management: msgspec.Raw = ABSENT
    diagnostics: msgspec.Raw = ABSENT
    inference_geo: msgspec.Raw = ABSENT
    mcp_servers: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    speed: msgspec.Raw = ABSENT


source_decoder = msgspec.json.Decoder(MessagesSource)
tool_change_decoder = msgspec.json.Decoder(MessagesToolChange)
_content_decoder: msgspec.json.Decoder[MessagesContent] = msgspec.json.Decoder(MessagesContent)
_block_decoder: msgspec.json.Decoder[str | MessagesBlock | None] = msgspec.json.Decoder(str | MessagesBlock | None)
_turn_decoder = msgspec.json.Decoder(MessagesTurn)
_turns_decoder = msgspec.json.Decoder(list[MessagesTurn])
_tool_decoder = msgspec.json.Decoder(MessagesTool)
_tools_decoder: msgspec.json.Decoder[list[MessagesTool] | None] = msgspec.json.Decoder(list[MessagesTool] | None)


class _TurnFrame(msgspec.Struct):
    """A turn whose content is not decoded."""

    role: str
    content: msgspec.Raw = ABSENT


_turn_frame_decoder = msgspec.json.Decoder(_TurnFrame)


def _content(text: msgspec.Raw, path: str) -> MessagesContent:
    if not is_sliced(text):
        return decode_field(_content_decoder, text, path)
    return decode_list(text, path, PARTS_LIMIT, lambda raw, at: decode_field(_block_decoder, raw, at))


def _turn(text: msgspec.Raw, path: str) -> MessagesTurn:
    frame = decode_field(_turn_frame_decoder, text, path)
    if not is_sliced(frame.content):
        return decode_field(_turn_decoder, text, path)
    return MessagesTurn(frame.role, _content(frame.content, f"{path}.content"))


def _turns(text: msgspec.Raw, path: str) -> list[MessagesTurn]:
    return decode_list(text, path, ITEMS_LIMIT, _turn) if is_sliced(text) else decode_field(_turns_decoder, text, path)


def _tools(text: msgspec.Raw, path: str) -> list[MessagesTool] | None:
    if not is_sliced(text):
        return decode_field(_tools_decoder, text, path)
    return decode_list(text, path, TOOLS_LIMIT, lambda raw, at: decode_field(_tool_decoder, raw, at))


reader: RequestReader[MessagesRequest] = RequestReader(
    UsualMessagesRequest, MessagesRequest, {"messages": _turns, "system": _content, "tools": _tools}
)


def blocks_of(content: MessagesContent, path: str) -> Iterator[tuple[str, MessagesBlock]]:
    """Each block of a content with its path. A string counts as a text block; null items are skipped.

    Raises:
        BadRequest: There are too many.
    """
    if isinstance(content, list):
        check_count(content, path, PARTS_LIMIT)
        for index, item in enumerate(content):
            if item is not None:
                yield f"{path}.{index}", _block(item)
    elif content is not None:
        yield path, _block(content)


def _block(item: str | MessagesBlock) -> MessagesBlock:
    return MessagesBlock(text=item) if isinstance(item, str) else item


def nested_blocks(content: msgspec.Raw, path: str) -> Iterator[tuple[str, MessagesBlock]]:
    """`blocks_of` for the content inside a block. Raises BadRequest if the content has another shape."""
    return blocks_of(_content(content, path), path) if content else iter(())
