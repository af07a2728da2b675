"""A lower bound for the words in a prompt. A word is a run of characters between white space.

Counts only text that certainly reaches the model, whether a neuron or a translation of this package builds the prompt:
text parts of the types that every API has, at the places where it has them. Text that a translation drops, and parts
and items of unknown types, do not count. The parts of one turn count as one text, since many chat templates put no
space between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

from gateway.dialects.translation.bounds import excess_of

__all__ = ["PROMPT_FIELDS", "count_words"]

PROMPT_FIELDS = {
    b"/v1/chat/completions": ("messages",),
    b"/v1/completions": ("prompt",),
    b"/v1/messages": ("messages", "system"),
    b"/v1/responses": ("input", "instructions"),
}
"""The fields that hold the prompt, by path. Bodies of other paths have several prompts, or limits of another kind."""


def count_words(body: bytes, fields: tuple[str, ...], stop_at: int) -> int:
    """Words of the prompt in these fields of a request body, at least; stops counting at `stop_at`.

    0 if the request lets the neuron truncate the prompt, or if the body cannot be read, or is too large for that: then
    the neuron decides.
    """
    count = 0
    if excess_of(body) is not None:
        return 0
    try:
        value = msgspec.json.decode(body)
        if value.get("truncate_prompt_tokens") or value.get("truncation") == "auto":
            return 0
        if isinstance(value.get("prompt"), list):  # several prompts, each with the whole limit
            return 0
        for text in chain.from_iterable(_texts(field, value.get(field)) for field in fields):
            count += len(text.split(None, stop_at - count))  # a limit for `split` leaves the rest unsplit
            if count >= stop_at:
                break
    except (msgspec.DecodeError, RecursionError):
        return 0
    return count


def _texts(field: str, value: Any) -> Iterator[str]:
    """One text per turn or item."""
    if field in {"messages", "input"} and isinstance(value, list):
        for turn in value:
            if isinstance(turn, dict):
                yield _turn_text(turn, is_item=field == "input")
            else:
                yield turn if isinstance(turn, str) else ""
    else:
        yield _joined(value)


def _turn_text(turn: dict[str, Any], *, is_item: bool) -> str:
    type_ = turn.get("type")
    if is_item and type_ in _OUTPUT_TYPES:
        return _joined(turn.get("output"))
    if type_ in _TURN_TYPES and isinstance(turn.get("role"), str):
        return _joined(turn.get("content"), _USER_RESULT_TYPES if turn["role"] == "user" else ())
    return ""


def _joined(content: Any, result_types: tuple[str, ...] = ()) -> str:
    """Without reasoning of earlier turns, which translations and chat templates drop."""
    return "".join(_part_texts(content, result_types)).rpartition("</think>")[2]


def _part_texts(content: Any, result_types: tuple[str, ...]) -> Iterator[str]:
    """The texts of a content, and those inside its parts of these types."""
    for part in content if isinstance(content, list) else (content,):
        text = part
        if isinstance(part, dict):
            type_ = part.get("type")
            if type_ in result_types:
                yield from _part_texts(part.get("content"), _INNER_RESULT_TYPES if type_ == "tool_result" else ())
            text = part.get("text") if type_ in _TEXT_TYPES else None
        if isinstance(text, str) and not text.startswith(_BILLING_HEADER):
            yield text


# Tuples, because a client's `type` can be anything, even an unhashable list.
_TURN_TYPES = (None, "message")
_OUTPUT_TYPES = ("function_call_output", "custom_tool_call_output")
_TEXT_TYPES = (None, "text", "input_text", "output_text")
_INNER_RESULT_TYPES = ("search_result",)
_USER_RESULT_TYPES = ("tool_result", *_INNER_RESULT_TYPES)
_BILLING_HEADER = "x-anthropic-billing-header:"  # `anthropic.request` drops it
