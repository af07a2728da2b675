"""Merges consecutive messages of one role.

Anthropic's API combines consecutive turns of one role itself. The chat templates of Mistral and Gemma, among others,
refuse them ("conversation roles must alternate"). Mistral's also refuse a user message right after a tool's result,
which is usual elsewhere; where the operator says that roles must alternate, a short answer is put between the two.

A merged message depends on no message after the next one of another role. So if a conversation is continued by a
message of another role, as it is after every answer, the outgoing messages of the longer conversation begin with the
bytes of the shorter one's, and the neuron's prefix cache stays valid.
"""

from __future__ import annotations

from itertools import groupby, islice, pairwise
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from gateway.dialects.chat_request import text_part
from gateway.dialects.json_splice import find
from gateway.dialects.loose_json import JsonObject, decode
from gateway.dialects.translation.bounds import excess_of

__all__ = ["merge_roles", "merged_messages"]

_MERGED = frozenset({"user", "assistant"})  # `tool` messages answer one call each; templates take several


_ACKNOWLEDGED: JsonObject = {"role": "assistant", "content": "OK."}


def merge_roles(messages: list[JsonObject], *, strictly: bool = False) -> list[JsonObject]:
    """The messages with each run of `user` or `assistant` messages as one. The given messages are not changed.

    `strictly`: A user message after a tool's result gets an assistant message before it.
    """
    merged: list[JsonObject] = []
    for role, run in groupby(messages, itemgetter("role")):
        same = list(run)
        if strictly and role == "user" and merged and merged[-1]["role"] == "tool":
            merged.append(_ACKNOWLEDGED)
        merged += [_joined(same)] if len(same) > 1 and role in _MERGED else same
    return merged


class _Speaker(msgspec.Struct):
    """Whose message one of `messages` is. Messages of several people in one role have a `name` each."""

    role: str
    name: str | None = None
    content: str | list[Any] | None = None


_speakers_decoder = msgspec.json.Decoder(list[_Speaker])
_raw_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_message_decoder = msgspec.json.Decoder(dict[str, Any])


def merged_messages(body: bytes) -> tuple[int, int, bytes] | None:
    """The strictly merged `messages` of a chat completions body: the place of the client's, and the bytes to put there.

    Messages that are not merged keep their bytes. None if there is nothing to merge, if they are too large to be read,
    or if they are not what chat completions defines: the engine then judges them.
    """
    try:
        span = find(body, ("messages",)).get("messages")
        if span is None:
            return None
        text = body[span.start : span.end]
        if excess_of(text) is not None:
            return None
        speakers = decode(_speakers_decoder, text)
        runs = [(role, len(list(run))) for (role, _), run in groupby(speakers, attrgetter("role", "name"))]
        is_merged = any(length > 1 and role in _MERGED for role, length in runs)
        if not is_merged and not any(first == "tool" and then == "user" for (first, _), (then, _) in pairwise(runs)):
            return None
        every: list[msgspec.Raw] = decode(_raw_decoder, text)
        raws = iter(every)
        pieces: list[bytes] = []
        previous = ""
        for role, length in runs:
            same = list(islice(raws, length))
            if previous == "tool" and role == "user":
                pieces.append(msgspec.json.encode(_ACKNOWLEDGED))
            previous = role
            if length > 1 and role in _MERGED:
                pieces.append(msgspec.json.encode(_joined([decode(_message_decoder, raw) for raw in same])))
            else:
                pieces += map(bytes, same)
    except (msgspec.DecodeError, ValueError):
        return None
    return span.start, span.end, b"[%b]" % b",".join(pieces)


def _joined(messages: list[JsonObject]) -> JsonObject:
    joined: JsonObject = {**messages[0], "content": _joined_content([message.get("content") for message in messages])}
    if thoughts := [message["reasoning_content"] for message in messages if message.get("reasoning_content")]:
        joined["reasoning_content"] = "\n\n".join(thoughts)
    if calls := [call for message in messages for call in message.get("tool_calls") or ()]:
        joined["tool_calls"] = calls
    return joined


def _joined_content(contents: list[str | list[JsonObject] | None]) -> str | list[JsonObject] | None:
    """Texts with a blank line between them; one list if any content is a list. Empty contents are left out."""
    said = [content for content in contents if content]
    texts = [content for content in said if isinstance(content, str)]
    if not said:
        return next((content for content in contents if content is not None), None)
    if len(texts) == len(said):
        return "\n\n".join(texts)
    return [part for content in said for part in (content if isinstance(content, list) else [text_part(content)])]
