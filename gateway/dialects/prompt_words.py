"""How many words of a body become prompt, at least. A word is what stands between white space. Pure.

Only what a model is certainly shown is counted, whoever puts the prompt together: texts of the kinds that every API
has, at the places where it has them. What our translations drop counts for nothing, and neither does a part or item of
a kind that is not known here. The parts of one turn are counted as one text, since many templates leave no gap between
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

__all__ = ["PROMPTS", "words"]

PROMPTS = {
    b"/v1/chat/completions": ("messages",),
    b"/v1/completions": ("prompt",),
    b"/v1/messages": ("messages", "system"),
    b"/v1/responses": ("input", "instructions"),
}
"""Where a body has one prompt, and in which fields. Elsewhere are many (embeddings), or limits of another kind."""


def words(body: bytes, fields: tuple[str, ...], enough: int) -> int:
    """How many words of these fields become prompt, at least, in any of the dialects; counts no further than needed.

    0 where a neuron was told to cut the prompt, or where the body cannot be read here: that is for the neuron to say.
    """
    counted = 0
    try:
        value = msgspec.json.decode(body)
        if value.get("truncate_prompt_tokens") or value.get("truncation") == "auto":
            return 0
        if isinstance(value.get("prompt"), list):  # several prompts, each with the limit for itself
            return 0
        for text in chain.from_iterable(_texts(field, value.get(field)) for field in fields):
            counted += len(text.split(None, enough - counted))  # the rest of a text stays in one piece
            if counted >= enough:
                break
    except (msgspec.DecodeError, RecursionError):
        return 0
    return counted


def _texts(field: str, value: Any) -> Iterator[str]:
    """One for each turn or item."""
    if field in _OF_TURNS and isinstance(value, list):
        for turn in value:
            yield turn if isinstance(turn, str) else _of_turn(turn) if isinstance(turn, dict) else ""
    else:
        yield _joined(value)


_OF_TURNS = frozenset({"messages", "input"})


def _of_turn(turn: dict[str, Any]) -> str:
    kind = turn.get("type")
    if kind in _OUTPUTS:
        return _joined(turn.get("output"))
    if kind in _TURNS and isinstance(turn.get("role"), str):
        return _joined(turn.get("content"), results=_IN_USERS_TURN if turn["role"] == "user" else ())
    return ""


_TURNS = (None, "message")  # tuples, because what a client sends as a type may be anything, a list too
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def _joined(content: Any, results: tuple[str, ...] = ()) -> str:
    """Thoughts of earlier turns are left out, as dialects and chat templates leave them out."""
    return "".join(_parts(content, results)).rpartition("</think>")[2]


def _parts(content: Any, results: tuple[str, ...]) -> Iterator[str]:
    """The texts of a content, and of the results of tools and searches in it where they are allowed to be."""
    for part in content if isinstance(content, list) else (content,):
        text = part
        if isinstance(part, dict):
            kind = part.get("type")
            if kind in results:
                yield from _parts(part.get("content"), _IN_RESULT if kind == "tool_result" else ())
            text = part.get("text") if kind in _KINDS_OF_TEXT else None
        if isinstance(text, str) and not text.startswith(_TELEMETRY):
            yield text


_KINDS_OF_TEXT = (None, "text", "input_text", "output_text")
_IN_RESULT = ("search_result",)
_IN_USERS_TURN = ("tool_result", *_IN_RESULT)
_TELEMETRY = "x-anthropic-billing-header:"  # which `dialects.anthropic` does not pass on
