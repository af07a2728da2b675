"""How many tokens a request may use, read from its body: what is reserved of a key's limits before it is routed."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from gateway.dialects.token_estimate import estimate

__all__ = ["GENERATING_PATHS", "TOKEN_PATHS", "ExpectedTokens", "expected_tokens"]

GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
"""The paths whose answers are tokens."""

TOKEN_PATHS = GENERATING_PATHS | {"/v1/embeddings", "/v1/rerank"}
"""The paths whose prompts are tokens."""

MOST_ANSWERS = 128  # the most that OpenAI's `n` allows
_BASE64 = re.compile(rb"[A-Za-z0-9+/=]{1024,}")  # no text has so long a word


class ExpectedTokens(NamedTuple):
    """An estimate of the prompt, and the most that all answers together may have; None for no limit."""

    prompt: int
    answers: int | None


def expected_tokens(body: bytes) -> ExpectedTokens:
    """Read a JSON body. 18 us for 20 KB, so only for keys with a limit that depends on it."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ExpectedTokens(estimate(len(body)), None)
    return ExpectedTokens(_prompt(fields), _answers(fields))


def _prompt(fields: _TokenFields) -> int:
    """One picture or sound counts as an image, whatever its size."""
    parts = [memoryview(getattr(fields, name)) for name in _PROMPT_FIELDS]
    length, media = sum(map(len, parts)), 0
    if length > _BASE64_SEARCH_BYTES:
        for part in parts:
            text = bytes(part)
            if b"base64" in text or b"input_audio" in text:
                runs = [match.end() - match.start() for match in _BASE64.finditer(text)]
                length, media = length - sum(runs), media + len(runs)
    return estimate(length, media)


def _answers(fields: _TokenFields) -> int | None:
    limits = (fields.max_completion_tokens, fields.max_output_tokens, fields.max_tokens)
    limit: int | None = next(filter(_is_count, limits), None)
    if limit is None:
        return None
    return limit * (min(fields.n, MOST_ANSWERS) if _is_count(fields.n) else 1)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class _TokenFields(msgspec.Struct):
    """What decides about tokens, by every name that the APIs have for it."""

    messages: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    query: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None


_PROMPT_FIELDS = _TokenFields.__struct_fields__[:8]
_BASE64_SEARCH_BYTES = 2048
_decoder = msgspec.json.Decoder(_TokenFields)
