"""What we read of a Messages request: msgspec types. No translation.

Shapes as in https://docs.anthropic.com/en/api/messages. Loose on purpose: unknown fields are ignored, a field that
means different things in different blocks stays `Raw` until somebody needs it, and whatever the API allows in two
forms (a string or a list of blocks) is allowed in both, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.dialects.validate import read

__all__ = [
    "Block",
    "ChangedTool",
    "Content",
    "Message",
    "Request",
    "Source",
    "Thinking",
    "Tool",
    "ToolChoice",
    "blocks",
    "nested",
]

ABSENT: Any = msgspec.field(default_factory=msgspec.Raw)  # a shared default would not go into a JSON schema


class Block(msgspec.Struct):
    """One content block of any type. `Any` where only its user can say what it has to be."""

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


Content = str | list[str | Block | None] | Block | None


class Message(msgspec.Struct):
    """One turn."""

    role: str
    content: Content = None


class Tool(msgspec.Struct):
    """One of `tools`; those without `input_schema` are Anthropic's own and run on its servers.

    One with `defer_loading` is for later: see `tools`.
    """

    name: str
    type: str | None = None
    description: Any = None
    input_schema: msgspec.Raw = ABSENT
    strict: Any = None
    defer_loading: Any = None


class ChangedTool(msgspec.Struct):
    """What a `tool_addition` or a `tool_removal` is about: a tool by its name, or a new one in full."""

    name: str | None = None
    definition: Tool | None = None


class ToolChoice(msgspec.Struct):
    """`tool_choice`."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: Any = None


class Thinking(msgspec.Struct):
    """`thinking`."""

    type: str
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct):
    """A JSON schema the answer has to follow."""

    type: str
    schema: msgspec.Raw = ABSENT


class OutputConfig(msgspec.Struct):
    """`output_config`."""

    effort: str | None = None
    format: OutputFormat | None = None


class Request(msgspec.Struct):
    """A request as far as it changes the answer. `model` and `stream` are read by `dialects.json_splice`."""

    messages: list[Message]
    system: Content = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: str | list[str] | None = None
    metadata: Any = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class Source(msgspec.Struct):
    """Where an image or a document comes from."""

    type: str = ""
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: msgspec.Raw = ABSENT


request_decoder = msgspec.json.Decoder(Request)
source_decoder = msgspec.json.Decoder(Source)
changed_tool_decoder = msgspec.json.Decoder(ChangedTool)
_content_decoder: msgspec.json.Decoder[Content] = msgspec.json.Decoder(Content)


def blocks(content: Content, path: str) -> Iterator[tuple[str, Block]]:
    """Every block of a content with its own path, a bare string being a text block."""
    if isinstance(content, list):
        for index, item in enumerate(content):
            if item is not None:
                yield f"{path}.{index}", _block(item)
    elif content is not None:
        yield path, _block(content)


def _block(item: str | Block) -> Block:
    return Block(text=item) if isinstance(item, str) else item


def nested(content: msgspec.Raw, path: str) -> Iterator[tuple[str, Block]]:
    """The same for content inside a block."""
    return blocks(read(_content_decoder, content, path), path) if content else iter(())
