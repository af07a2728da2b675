"""Parts of an outgoing chat completions request that the translations of Messages and Responses share."""

from __future__ import annotations

import msgspec

from gateway.dialects import token_estimate
from gateway.dialects.fields import invalid
from gateway.dialects.loose_json import JsonObject

__all__ = ["audio_part", "content_of", "encode_messages", "estimate_tokens", "kind_of", "text_part"]


def text_part(text: str) -> JsonObject:
    """A text as one part of a message's content."""
    return {"type": "text", "text": text}


def audio_part(audio: object, path: str) -> JsonObject:
    """The part for an `input_audio` of any dialect: base64 `data` and its `format`. Raises BadRequest."""
    match audio:
        case {"data": str(data), "format": str(format_)}:
            return {"type": "input_audio", "input_audio": {"data": data, "format": format_}}
    raise invalid(f"{path}.input_audio", "must have a string `data`, base64-encoded, and a string `format`")


def kind_of(part: JsonObject) -> str:
    """What a part shows, for a label beside it."""
    return "audio" if part["type"] == "input_audio" else "image"


def content_of(parts: list[JsonObject]) -> str | list[JsonObject]:
    """A string if all parts are text, since every engine and chat template accepts one; else the list."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def encode_messages(messages: list[JsonObject]) -> bytes:
    """The messages as JSON, each in a step of its own: of many, together they would keep the interpreter's lock."""
    if len(messages) <= _ONE_STEP:
        return msgspec.json.encode(messages)
    return b"[%b]" % b",".join([msgspec.json.encode(message) for message in messages])


_ONE_STEP = 1000


def estimate_tokens(messages: list[JsonObject], encoded_messages: bytes, tools: object) -> int:
    """Tokens of the prompt that these messages and tools become. An image counts the same whatever its size.

    So does audio, whose length in time is unknown.
    """
    media = [
        part["image_url"]["url"] if part["type"] == "image_url" else part["input_audio"]["data"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] != "text"
    ]
    text_bytes = len(encoded_messages) + len(msgspec.json.encode(tools)) - sum(map(len, media))
    return token_estimate.estimate(text_bytes, len(media))
