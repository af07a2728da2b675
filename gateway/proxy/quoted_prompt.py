"""Whether an error's text quotes the prompt: records of requests keep errors, but no prompts. No I/O.

Engines that validate a body repeat parts of it in their message (FastAPI's 422 has the whole `input`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["quotes_prompt"]

BODY_LIMIT_BYTES = 64 * 1024  # of a longer body every message counts as a quote: looking would take milliseconds
MESSAGE_LIMIT_CHARACTERS = 1000  # no record keeps more
WINDOW_CHARACTERS, STEP_CHARACTERS = 16, 8  # so a quote of 24 characters is found, whatever is around it
SHORTEST_TEXT_CHARACTERS = 4

_PROMPT_FIELDS = frozenset(
    {
        "messages",
        "input",
        "prompt",
        "system",
        "instructions",
        "suffix",
        "tools",
        "query",
        "documents",
        "texts",
        "content",
    }
)
_NAMES = frozenset({"role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "name", "media_type", "detail"})


def quotes_prompt(message: str, body: bytes) -> bool:
    """Whether the message contains a text of the request, or part of a longer one.

    Args:
        message: What a neuron said about the request.
        body: The client's JSON; empty for a form.
    """
    if not body or not message:
        return False
    if len(body) > BODY_LIMIT_BYTES:
        return True
    message = message[:MESSAGE_LIMIT_CHARACTERS]
    texts = _texts_in(body)
    if any(len(text) >= SHORTEST_TEXT_CHARACTERS and text in message for text in texts):
        return True
    prompt = "\n".join(text for text in texts if len(text) >= WINDOW_CHARACTERS)
    last = len(message) - WINDOW_CHARACTERS
    return any(message[at : at + WINDOW_CHARACTERS] in prompt for at in range(0, last + 1, STEP_CHARACTERS))


def _texts_in(body: bytes) -> list[str]:
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [body.decode("utf-8", "replace")]
    return [text.strip() for name in _PROMPT_FIELDS & fields.keys() for text in _strings_in(fields[name])]


def _strings_in(value: object) -> Iterator[str]:
    """Without recursion: a body may be nested as deeply as its decoder allows."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [inner for name, inner in item.items() if name not in _NAMES]
        elif isinstance(item, list):
            waiting += item
