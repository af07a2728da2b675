"""How many tokens a request may use, by its body: what is reserved of a key's limits before it is routed.

The members of the body that decide about this are found in the pass that finds its `model` (`json_splice.locate`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from gateway.dialects.token_estimate import BYTES_PER_TOKEN, TOKENS_PER_IMAGE, estimate

__all__ = [
    "ABSENT",
    "DECODERS",
    "GENERATING_PATHS",
    "NO_PROMPT",
    "NO_TOKENS",
    "TOKEN_PATHS",
    "BodyMembers",
    "ExpectedTokens",
    "expected_tokens",
]

ExpectedTokens: TypeAlias = tuple[int, int | None]
"""An estimate of the prompt's tokens, and the most that all answers together may have; None for no limit."""

NO_TOKENS: ExpectedTokens = (0, None)
"""Of a request without a prompt."""

_PROMPT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("messages", "tools"),
    "/v1/completions": ("prompt",),
    "/v1/messages": ("system", "messages", "tools"),
    "/v1/responses": ("instructions", "input", "tools"),
    "/v1/embeddings": ("input",),
    "/v1/rerank": ("query", "documents"),
}
GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
"""The paths whose answers are tokens."""

TOKEN_PATHS = frozenset(_PROMPT_FIELDS)
"""The paths whose prompts are tokens."""

MOST_ANSWERS = 128  # the most that OpenAI's `n` allows
_MOST_DIGITS = 18  # of a number that counts; a longer one is as good as no limit
MEDIA_BYTES = int(TOKENS_PER_IMAGE * BYTES_PER_TOKEN)  # a shorter picture counts by its bytes, which is less
_DELIMITERS = (b'"', b"\\", b" ")  # base64 has none
_DATA = re.compile(rb"[\w+/=:;,.-]+")  # base64, and the beginning of a data URL
_NEAR_BYTES = 256  # to the words by which the APIs name base64

ABSENT: Final = msgspec.Raw()
"""The value of a member that the body does not have."""


class BodyMembers(msgspec.Struct):
    """The members of a body that routing and limits need, as views of it. For a repeated key, the last value.

    Attributes:
        model: The model's name.
        stream: Whether the client wants a stream.
        first, second, third: The prompt's parts, by the path.
        max_completion_tokens, max_output_tokens, max_tokens: The names that the APIs have for the answer's limit.
        n: The number of answers.
    """

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    first: msgspec.Raw = ABSENT
    second: msgspec.Raw = ABSENT
    third: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT


def expected_tokens(members: BodyMembers, removed_bytes: int = 0) -> ExpectedTokens:
    """What a request may use. Costs 1 us for a short body and 5 us for 20 KB.

    Args:
        members: Those of the body, or of its outline.
        removed_bytes: How much shorter the outline is.
    """
    second, third = members.second, members.third
    length = len(members.first)
    if second is not ABSENT:
        length += len(second)
    if third is not ABSENT:
        length += len(third)
    if length >= MEDIA_BYTES:
        prompt = _with_media(members, length, removed_bytes)
    else:
        prompt = estimate(length + removed_bytes) if length else 0
    has_limit = not (members.max_tokens is members.max_completion_tokens is members.max_output_tokens)
    return prompt, _answers(members) if has_limit else None


def _with_media(members: BodyMembers, length: int, removed_bytes: int) -> int:
    """The tokens of a prompt of this length, in which one picture or sound counts as an image, whatever its size."""
    parts = (members.first, members.second, members.third)
    runs = [run for part in parts if len(part) >= MEDIA_BYTES for run in _media(bytes(part))]
    return estimate(length - sum(runs) + (0 if runs else removed_bytes), len(runs))


def _media(text: bytes) -> Iterator[int]:
    """The lengths of pictures and sounds: long runs of base64 in strings. Linear, whatever the text contains."""
    at = 0
    while at + MEDIA_BYTES <= len(text):
        end = at + MEDIA_BYTES
        delimiter = text.rfind(b" ", end - _NEAR_BYTES, end)  # nearly always, in text
        if delimiter < 0:
            delimiter = _last_delimiter(text, at, end)
        if delimiter >= 0:
            at = delimiter + 1
            continue
        while end < len(text) and _last_delimiter(text, end, end + MEDIA_BYTES) < 0:
            end += MEDIA_BYTES
        found = [place for mark in _DELIMITERS if (place := text.find(mark, end, end + MEDIA_BYTES)) >= 0]
        end = min(found, default=len(text))
        if _is_media(text, at, end):
            yield end - at
        at = end + 1


def _last_delimiter(text: bytes, start: int, end: int) -> int:
    """The offset of the last one, or -1."""
    return max(text.rfind(b'"', start, end), text.rfind(b" ", start, end), text.rfind(b"\\", start, end))


def _is_media(text: bytes, start: int, end: int) -> bool:
    around = text[max(0, start - _NEAR_BYTES) : start + _NEAR_BYTES] + text[end : end + _NEAR_BYTES]
    is_named = b"base64" in around or b"input_audio" in around
    return is_named and _DATA.fullmatch(text, start, min(end, start + MEDIA_BYTES)) is not None


def _answers(members: BodyMembers) -> int | None:
    for member in (members.max_completion_tokens, members.max_output_tokens, members.max_tokens):
        limit = _number(member)
        if limit is not None:
            count = _number(members.n)
            return limit * (1 if count is None else min(count, MOST_ANSWERS))
    return None


def _number(member: msgspec.Raw) -> int | None:
    """A whole number that is not negative; None for anything else."""
    digits = bytes(member) if len(member) <= _MOST_DIGITS else b""
    return int(digits) if digits.isdigit() else None


_PARTS = ("first", "second", "third")


def _decoder(names: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    # A part that the path does not have gets a name that no client uses.
    rename = {part: f" {part}" for part in _PARTS} | dict(zip(_PARTS, names, strict=False))
    parts = [(part, msgspec.Raw, ABSENT) for part in _PARTS]  # anew: those of a base class keep their names
    return msgspec.json.Decoder(msgspec.defstruct("Members", parts, bases=(BodyMembers,), rename=rename))


NO_PROMPT: msgspec.json.Decoder[BodyMembers] = _decoder(())
"""Of bodies without a prompt."""

DECODERS: Mapping[str, msgspec.json.Decoder[BodyMembers]] = {
    path: _decoder(names) for path, names in _PROMPT_FIELDS.items()
}
"""Of bodies with a prompt, by the endpoint's path: those of `TOKEN_PATHS`."""
