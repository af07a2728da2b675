"""Parts of an outgoing chat completions request that the translations of Messages and Responses share."""

from __future__ import annotations

import msgspec

from gateway.dialects import token_estimate
from gateway.dialects.loose_json import JsonObject

__all__ = ["content_of", "estimate_tokens", "text_part"]


def text_part(text: str) -> JsonObject:
    """A text as one part of a message's content."""
    return {"type": "text", "text": text}


def content_of(parts: list[JsonObject]) -> str | list[JsonObject]:
    """A string if all parts are text, since every engine and chat template accepts one; else the list."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def estimate_tokens(messages: list[JsonObject], encoded_messages: bytes, tools: object) -> int:
    """Tokens of the prompt that these messages and tools become. An image counts the same whatever its size."""
    image_urls = [
        part["image_url"]["url"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    text_bytes = len(encoded_messages) + len(msgspec.json.encode(tools)) - sum(map(len, image_urls))
    return token_estimate.estimate(text_bytes, len(image_urls))
