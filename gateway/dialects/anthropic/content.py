"""Content blocks of Messages as parts of a chat completions message."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from gateway.dialects.anthropic import request_types
from gateway.dialects.anthropic.request_types import MessagesBlock, MessagesSource
from gateway.dialects.chat_request import audio_part, text_part
from gateway.dialects.fields import decode_field, invalid
from gateway.dialects.loose_json import JsonObject

__all__ = ["AVAILABLE", "compacted", "parts_of", "records_servers_work"]

AVAILABLE = "[tool {} is available]"
_string_decoder = msgspec.json.Decoder(str)


def parts_of(block: MessagesBlock, path: str) -> list[JsonObject]:
    """The parts that a block becomes. A block of an unknown type becomes its `text`.

    Raises:
        BadRequest: The block cannot be shown to the model.
    """
    write = _WRITERS.get(block.type)
    if write is not None:
        return write(block, path)
    if isinstance(block.text, str):
        return [text_part(block.text)]
    if block.type in _SHOWS_NOTHING:
        return []
    raise invalid(f"{path}.type", _NOT_SHOWN.get(block.type, _UNKNOWN).format(block.type))


_SHOWS_NOTHING = frozenset({"text", "thinking", "redacted_thinking"})
_UNKNOWN = "a block of type `{}` cannot be passed to the model: send it as text, or leave it out"
_NOT_SHOWN = {
    "container_upload": "a `{}` block needs a container on Anthropic's servers: send the file's text instead",
    "tool_use": "a `{}` block belongs into an assistant turn",
}


def compacted(block: MessagesBlock, path: str) -> str:
    """The summary that replaces an earlier part of the conversation."""
    return "\n".join(
        inner.text
        for _, inner in request_types.nested_blocks(block.content, f"{path}.content")
        if isinstance(inner.text, str)
    )


def _source(block: MessagesBlock, path: str) -> MessagesSource:
    if not block.source:
        raise invalid(f"{path}.source", "is missing")
    return decode_field(request_types.source_decoder, block.source, f"{path}.source")


def _image_block(block: MessagesBlock, path: str) -> list[JsonObject]:
    return [_image(_source(block, path), f"{path}.source")]


def _image(source: MessagesSource, path: str) -> JsonObject:
    match source:
        case MessagesSource(type="base64", media_type=str(media_type), data=str(data)):
            url = f"data:{media_type};base64,{data}"
        case MessagesSource(type="url", url=str(url)):
            pass
        case MessagesSource(type="base64"):
            raise invalid(path, "a base64 source must have a string `media_type` and a string `data`")
        case MessagesSource(type="url"):
            raise invalid(path, "a url source must have a string `url`")
        case _:
            raise invalid(path, f"the type of an image's source must be `base64` or `url`, not `{source.type}`")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: MessagesBlock, path: str) -> list[JsonObject]:
    title = [text_part(text) for text in (block.title, block.context) if isinstance(text, str) and text]
    source, source_path = _source(block, path), f"{path}.source"
    if source.type == "content":
        content = request_types.nested_blocks(source.content, f"{source_path}.content")
        return title + [part for inner_path, inner in content for part in parts_of(inner, inner_path)]
    return [*title, text_part(_document_text(source, source_path))]


def _document_text(source: MessagesSource, path: str) -> str:
    """A document's text. Other documents are rejected: leaving one out would change the question."""
    match source:
        case MessagesSource(type="text", data=str(text)):
            return text
        case MessagesSource(type="base64", media_type=str(kind), data=str(data)) if kind.startswith("text/"):
            try:
                return base64.b64decode(data).decode("utf-8", "replace")
            except ValueError as error:
                raise invalid(f"{path}.data", f"is not valid base64: {error}") from None
    kind = source.media_type or source.type
    raise invalid(path, f"a document of type `{kind}` cannot be passed to the model: send its text")


def _search_result(block: MessagesBlock, path: str) -> Iterator[str]:
    if isinstance(block.title, str):
        yield block.title
    if bytes(block.source).startswith(b'"'):
        yield decode_field(_string_decoder, block.source, f"{path}.source")
    for _, inner in request_types.nested_blocks(block.content, f"{path}.content"):
        if isinstance(inner.text, str):
            yield inner.text


_WRITERS: Mapping[str, Callable[[MessagesBlock, str], list[JsonObject]]] = MappingProxyType(
    {
        "image": _image_block,
        "document": _document,
        "search_result": lambda block, path: [text_part("\n".join(_search_result(block, path)))],
        "tool_reference": lambda block, _: [text_part(AVAILABLE.format(block.tool_name))],
        "input_audio": lambda block, path: [audio_part(block.input_audio, path)],
        "compaction": lambda block, path: [text_part(compacted(block, path))],
    }
)


def records_servers_work(block: MessagesBlock) -> bool:
    """Blocks that record the work of a tool on Anthropic's servers: its call, and its result."""
    type_ = block.type
    return type_ in {"server_tool_use", "mcp_tool_use"} or (type_.endswith("_tool_result") and type_ != "tool_result")
