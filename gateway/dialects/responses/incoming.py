"""What we read of a Responses request: msgspec types. No translation.

Shapes as in https://platform.openai.com/docs/api-reference/responses/create. Loose on purpose: unknown fields and
items are ignored, a field that means different things in different items stays `Any` or `Raw` until somebody needs it,
and what other APIs of OpenAI's write in another way (a nested `function`, an image's `{"url"}`) is understood.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.dialects.validate import read

__all__ = ["Function", "Item", "Part", "Request", "Text", "Tool", "ToolChoice", "items", "parts"]

ABSENT: Any = msgspec.field(default_factory=msgspec.Raw)  # a shared default would not go into a JSON schema


class Item(msgspec.Struct):
    """One of `input`, of any type. A type the API does not have is no reason to refuse the others."""

    type: Any = None
    role: Any = None
    content: msgspec.Raw = ABSENT
    id: Any = None
    call_id: Any = None
    name: Any = None
    namespace: Any = None
    arguments: msgspec.Raw = ABSENT
    input: Any = None
    output: msgspec.Raw = ABSENT


class Part(msgspec.Struct):
    """One part of a message's or a tool output's content."""

    type: Any = None
    text: Any = None
    refusal: Any = None
    image_url: Any = None
    detail: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None


class Function(msgspec.Struct):
    """A function in a tool or a choice, where the client writes it as chat completions has it."""

    name: str | None = None
    description: Any = None
    parameters: msgspec.Raw = ABSENT
    strict: Any = None


class Tool(Function):
    """One of `tools`: a function, a custom tool, a namespace of both, or one that OpenAI runs on its servers."""

    type: str = "function"
    function: Function | None = None
    format: Any = None
    tools: msgspec.Raw = ABSENT


class ToolChoice(msgspec.Struct):
    """`tool_choice`, where it is an object."""

    type: str
    name: str | None = None
    function: Function | None = None
    mode: str | None = None
    tools: list[Tool] | None = None


class Format(msgspec.Struct):
    """What the answer's text has to look like."""

    type: str
    name: str | None = None
    description: Any = None
    schema: msgspec.Raw = ABSENT
    strict: Any = None


class Text(msgspec.Struct):
    """`text`."""

    format: Format | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """`reasoning`."""

    effort: str | None = None
    summary: str | None = None


class Request(msgspec.Struct):
    """A request, as far as it changes the answer or is repeated in it."""

    input: str | list[str | Item | None] | None = None
    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None


request_decoder = msgspec.json.Decoder(Request)
tools_decoder = msgspec.json.Decoder(list[Tool])
text_decoder = msgspec.json.Decoder(str)
_content_decoder: msgspec.json.Decoder[str | list[str | Part | None] | Part | None] = msgspec.json.Decoder(
    str | list[str | Part | None] | Part | None
)


def items(request: Request) -> Iterator[tuple[str, Item | str]]:
    """Every item of the input with its path, a bare string being what the user says."""
    if isinstance(request.input, str):
        yield "input", request.input
    for index, item in enumerate(request.input or () if isinstance(request.input, list) else ()):
        if item is not None:
            yield f"input.{index}", item


def parts(content: msgspec.Raw, path: str) -> Iterator[tuple[str, Part]]:
    """Every part of a content with its path, a bare string being a part of text."""
    value = read(_content_decoder, content, path) if content else None
    if isinstance(value, list):
        for index, part in enumerate(value):
            if part is not None:
                yield f"{path}.{index}", _part(part)
    elif value is not None:
        yield path, _part(value)


def _part(part: str | Part) -> Part:
    return Part("input_text", part) if isinstance(part, str) else part
