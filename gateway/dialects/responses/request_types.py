"""The fields of a Responses request that the gateway reads, as msgspec types. Translates nothing.

Shapes as in https://platform.openai.com/docs/api-reference/responses/create. The types are loose on purpose: unknown
fields and items are ignored, a field whose meaning depends on the item's type stays `Any` or `Raw` until it is used,
and forms of OpenAI's other APIs (a nested `function`, an image as `{"url"}`) are accepted.
`gateway.dialects.json_splice` reads `model` and `stream`.

Class names and docstrings become names and descriptions in `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from gateway.dialects.fields import decode_field
from gateway.dialects.translation.bounds import ITEMS_LIMIT, PARTS_LIMIT, TOOLS_LIMIT, check_count
from gateway.dialects.translation.slices import RequestReader, decode_list, is_sliced

__all__ = [
    "ResponsesFunction",
    "ResponsesItem",
    "ResponsesPart",
    "ResponsesRequest",
    "ResponsesTextFormat",
    "ResponsesTool",
    "ResponsesToolChoice",
    "UsualResponsesRequest",
    "items_of",
    "parts_of",
    "reader",
    "tools_in",
]

ABSENT: Any = msgspec.field(default_factory=msgspec.Raw)  # a shared default would not go into a JSON schema


class ResponsesItem(msgspec.Struct):
    """One of `input`, of any type."""

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
    action: msgspec.Raw = ABSENT
    operation: msgspec.Raw = ABSENT
    status: Any = None
    encrypted_content: Any = None


class ResponsesPart(msgspec.Struct):
    """One part of the content of a message or of a tool's output."""

    type: Any = None
    text: Any = None
    refusal: Any = None
    image_url: Any = None
    detail: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    input_audio: Any = None


class ResponsesFunction(msgspec.Struct):
    """The `function` of a tool or of a tool choice, if the client nests it as chat completions does."""

    name: str | None = None
    description: Any = None
    parameters: msgspec.Raw = ABSENT
    strict: Any = None


class ResponsesTool(ResponsesFunction):
    """One of `tools`: a function, a custom tool, a namespace of both, or a tool that OpenAI runs on its servers."""

    type: str = "function"
    function: ResponsesFunction | None = None
    format: Any = None
    tools: msgspec.Raw = ABSENT
    environment: Any = None


class ResponsesToolChoice(msgspec.Struct):
    """`tool_choice`, if it is an object."""

    type: str
    name: str | None = None
    function: ResponsesFunction | None = None
    mode: str | None = None
    tools: msgspec.Raw = ABSENT


class ResponsesTextFormat(msgspec.Struct):
    """`text.format`: what the answer's text must look like."""

    type: str
    name: str | None = None
    description: Any = None
    schema: msgspec.Raw = ABSENT
    strict: Any = None


class ResponsesText(msgspec.Struct):
    """`text`."""

    format: ResponsesTextFormat | None = None
    verbosity: str | None = None


class ResponsesReasoning(msgspec.Struct):
    """`reasoning`."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(msgspec.Struct):
    """The fields that change the answer or are repeated in it, besides `model` and `stream`."""

    input: str | list[str | ResponsesItem | None] | None = None
    instructions: str | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: str | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: ResponsesText | None = None
    reasoning: ResponsesReasoning | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None
    include: Any = None


class UsualResponsesRequest(ResponsesRequest, forbid_unknown_fields=True):
    """With the fields that clients usually send although they have no effect, and no others."""

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    client_metadata: msgspec.Raw = ABSENT
    prompt_cache_retention: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    store: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT
    top_logprobs: msgspec.Raw = ABSENT
    truncation: msgspec.Raw = ABSENT


text_decoder = msgspec.json.Decoder(str)
object_decoder = msgspec.json.Decoder(dict[str, Any])
any_decoder = msgspec.json.Decoder()
_content_decoder: msgspec.json.Decoder[str | list[str | ResponsesPart | None] | ResponsesPart | None] = (
    msgspec.json.Decoder(str | list[str | ResponsesPart | None] | ResponsesPart | None)
)


_Part: TypeAlias = str | ResponsesPart | None
_Item: TypeAlias = str | ResponsesItem | None
_part_decoder: msgspec.json.Decoder[_Part] = msgspec.json.Decoder(_Part)
_item_decoder: msgspec.json.Decoder[_Item] = msgspec.json.Decoder(_Item)
_input_decoder: msgspec.json.Decoder[str | list[_Item] | None] = msgspec.json.Decoder(str | list[_Item] | None)
_tool_decoder = msgspec.json.Decoder(ResponsesTool)
_tools_decoder = msgspec.json.Decoder(list[ResponsesTool] | None)


def _input(text: msgspec.Raw, path: str) -> str | list[_Item] | None:
    if not is_sliced(text):
        return decode_field(_input_decoder, text, path)
    return decode_list(text, path, ITEMS_LIMIT, lambda raw, at: decode_field(_item_decoder, raw, at))


def tools_in(text: msgspec.Raw, path: str) -> list[ResponsesTool]:
    """The tools at a path. Raises BadRequest if they have another shape, or are too many."""
    if not text:
        return []
    if not is_sliced(text):
        tools = decode_field(_tools_decoder, text, path) or []
        check_count(tools, path, TOOLS_LIMIT)
        return tools
    return decode_list(text, path, TOOLS_LIMIT, lambda raw, at: decode_field(_tool_decoder, raw, at))


reader: RequestReader[ResponsesRequest] = RequestReader(
    UsualResponsesRequest, ResponsesRequest, {"input": _input, "tools": tools_in}
)


def items_of(request: ResponsesRequest) -> Iterator[tuple[str, ResponsesItem | str]]:
    """Each item of `input` with its path. A string is a message of the user; null items are skipped."""
    if isinstance(request.input, str):
        yield "input", request.input
    for index, item in enumerate(request.input or () if isinstance(request.input, list) else ()):
        if item is not None:
            yield f"input.{index}", item


def parts_of(content: msgspec.Raw, path: str) -> Iterator[tuple[str, ResponsesPart]]:
    """Each part of a content with its path. A string is a text part. Raises BadRequest for any other shape."""
    value = _content(content, path) if content else None
    if isinstance(value, list):
        check_count(value, path, PARTS_LIMIT)
        for index, part in enumerate(value):
            if part is not None:
                yield f"{path}.{index}", _part(part)
    elif value is not None:
        yield path, _part(value)


def _content(text: msgspec.Raw, path: str) -> list[_Part] | _Part:
    if not is_sliced(text):
        return decode_field(_content_decoder, text, path)
    return decode_list(text, path, PARTS_LIMIT, lambda raw, at: decode_field(_part_decoder, raw, at))


def _part(part: str | ResponsesPart) -> ResponsesPart:
    return ResponsesPart("input_text", part) if isinstance(part, str) else part
