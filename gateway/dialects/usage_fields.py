"""Token counts of an answer, in one vocabulary for all dialects."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec

__all__ = ["Usage", "read_usage", "usage_of_answer"]


class Usage(msgspec.Struct, frozen=True):
    """Token counts. None is unknown; 0 is 0."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None

    def updated_by(self, later: Usage) -> Usage:
        """These counts, replaced by those that `later` has.

        Anthropic reports prompt tokens at the start of a stream, the other APIs report them at the end.
        """
        return Usage(*(old if new is None else new for old, new in zip(_counts(self), _counts(later), strict=True)))


def _counts(usage: Usage) -> tuple[int | None, ...]:
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens


def usage_of_answer(body: bytes) -> Usage | None:
    """What `read_usage` reads of a whole answer. None if that has no `usage`.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: It is no JSON object.
    """
    try:
        usage = _usual_decoder.decode(body).usage
    except msgspec.ValidationError:  # another vocabulary
        return read_usage(_any_decoder.decode(body).usage)
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    return Usage(usage.prompt_tokens, usage.completion_tokens, None if details is None else details.cached_tokens)


def read_usage(value: object) -> Usage | None:
    """Read a `usage` object, or the `usage` member of an answer. None if `value` is not an object.

    It knows OpenAI's two vocabularies (chat and embeddings; Responses, images and audio), Anthropic's, and engines
    that report only `total_tokens` for embeddings and rerankings.
    """
    if not isinstance(value, dict):
        return None
    if "usage" in value:
        return read_usage(value["usage"])
    if value.keys() in _USUAL and (plain := _usual_usage(**value)) is not None:
        return plain
    prompt = _count(value, "prompt_tokens", "input_tokens")
    completion = _count(value, "completion_tokens", "output_tokens")
    cached = _count(_details(value, "prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    if not cached:  # Kimi, DeepSeek. Servers that fill OpenAI's member with a constant 0 send theirs beside it
        elsewhere = _count(value, "cached_tokens", "prompt_cache_hit_tokens")
        cached = cached if elsewhere is None else elsewhere
    if prompt is None and completion is None:
        prompt = _count(value, "total_tokens")
    elif prompt is not None and "prompt_tokens" not in value:
        # Anthropic's `input_tokens` excludes tokens read from or written to the prompt cache.
        read = _count(value, "cache_read_input_tokens")
        prompt += (read or 0) + (_count(value, "cache_creation_input_tokens") or 0)
        cached = read if cached is None else cached
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=_count(
            _details(value, "completion_tokens_details", "output_tokens_details") or value, "reasoning_tokens"
        ),
    )


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=10**15)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _UsualUsage(msgspec.Struct, forbid_unknown_fields=True):
    """As vLLM, SGLang and llama.cpp write it."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _UsualAnswer(msgspec.Struct):
    usage: _UsualUsage | None = None


class _AnyAnswer(msgspec.Struct):
    usage: Any = None


_usual_decoder = msgspec.json.Decoder(_UsualAnswer)
_any_decoder = msgspec.json.Decoder(_AnyAnswer)

_PLAIN = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_USUAL = (_PLAIN, _PLAIN | {"prompt_tokens_details"})  # as vLLM, SGLang and llama.cpp write it


def _usual_usage(
    prompt_tokens: object,
    completion_tokens: object,
    total_tokens: object,  # noqa: ARG001 - a field that engines send
    prompt_tokens_details: object = None,
) -> Usage | None:
    """What most engines send, read without a look at the other vocabularies."""
    if type(prompt_tokens) is not int or type(completion_tokens) is not int:
        return None
    if not (0 <= prompt_tokens < _TOO_MANY and 0 <= completion_tokens < _TOO_MANY):
        return None
    if prompt_tokens_details is None:
        return Usage(prompt_tokens, completion_tokens)
    cached = prompt_tokens_details.get("cached_tokens") if isinstance(prompt_tokens_details, dict) else None
    is_count = type(cached) is int and 0 <= cached < _TOO_MANY
    return Usage(prompt_tokens, completion_tokens, cached) if is_count else None


_TOO_MANY = 1e15


def _details(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return next((value[name] for name in names if isinstance(value.get(name), dict)), {})


def _count(value: dict[str, Any], *names: str) -> int | None:
    """The first member that is a plausible count."""
    for name in names:
        number = value.get(name)
        if isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < _TOO_MANY:
            return int(number)
    return None
