"""How many tokens a request may use, read from its body: what is reserved of a key's limits before it is routed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.dialects.large_bodies.outline import Outline
from gateway.dialects.token_estimate import estimate

__all__ = ["GENERATING_PATHS", "TOKEN_PATHS", "expected_tokens"]

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
_BASE64 = re.compile(rb"[A-Za-z0-9+/=]{1024,}")  # no text has so long a word
_BASE64_SEARCH_BYTES = 2048


def expected_tokens(path: str, body: bytes | Outline) -> tuple[int, int | None]:
    """An estimate of the prompt's tokens, and the most that all answers together may have; None for no limit.

    Costs 1 us for a small body and 18 us for 20 KB, so it is for keys with a limit that depends on it.

    Args:
        path: The endpoint's. One that is not of `TOKEN_PATHS` has no prompt.
        body: A JSON object; empty for no prompt.
    """
    if isinstance(body, bytes):
        text, removed_bytes = body, 0
    else:
        text, removed_bytes = body.text, body.removed_bytes
    decode = _decode.get(path)
    if decode is None or not text:
        return 0, None
    try:
        fields = decode(text)
    except (msgspec.DecodeError, RecursionError):
        return estimate(len(text) + removed_bytes), None
    first, second, third = fields.first, fields.second, fields.third
    length, media = len(first), 0
    if second is not None:
        length += len(second)
    if third is not None:
        length += len(third)
    if len(text) > _BASE64_SEARCH_BYTES:
        runs = [run for part in (first, second, third) if part is not None for run in _base64_runs(bytes(part))]
        length, media = length - sum(runs), len(runs)  # one picture or sound counts as an image, whatever its size
    if not media:
        length += removed_bytes  # not of pictures
    if fields.max_completion_tokens is fields.max_output_tokens is fields.max_tokens is None:
        return estimate(length, media), None
    return estimate(length, media), _answers(fields)


def _base64_runs(part: bytes) -> list[int]:
    """The lengths of pictures and sounds."""
    if len(part) <= _BASE64_SEARCH_BYTES or (b"base64" not in part and b"input_audio" not in part):
        return []
    return [match.end() - match.start() for match in _BASE64.finditer(part)]


def _answers(fields: Any) -> int | None:
    number = fields.n
    for limit in (fields.max_completion_tokens, fields.max_output_tokens, fields.max_tokens):
        if type(limit) is int and limit >= 0:  # not `isinstance`: true is no number
            return limit * (min(number, MOST_ANSWERS) if type(number) is int and number >= 0 else 1)
    return None


_PARTS = ("first", "second", "third")
_ABSENT = msgspec.Raw()


def _decoder(names: tuple[str, ...]) -> Callable[[bytes], Any]:
    """Of what decides about tokens: the prompt's parts, and every name that the APIs have for the answer's limit."""
    parts = [(part, msgspec.Raw, _ABSENT if part == "first" else None) for part in _PARTS]
    # A part that the path does not have gets a name that no client uses.
    rename = {part: f" {part}" for part in _PARTS} | dict(zip(_PARTS, names, strict=False))
    limits = [(name, Any, None) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens", "n")]
    return msgspec.json.Decoder(msgspec.defstruct("TokenFields", [*parts, *limits], rename=rename)).decode


_decode = {path: _decoder(names) for path, names in _PROMPT_FIELDS.items()}
