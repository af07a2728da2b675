"""Refusals because prompt and `max_tokens` together exceed a model's context: what the engine counted, and the room.

Engines refuse these with the status of a prompt that is too long, but a client must react in another way: shorten the
answer, not the conversation. The texts are those of the engines named beside each pattern. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.dialects.json_splice import edit
from gateway.dialects.large_bodies.spliced_body import SplicedBody, in_one_piece
from gateway.errors import BadRequest

__all__ = ["TokenRefusal", "read_token_refusal", "with_room"]

TEXT_LIMIT = 4096  # characters of a refusal that are searched; the texts have a few hundred

# Named groups: p prompt, m the answer asked for, t both, c the context, r the largest answer; `below`: the limit itself
# is too much. "at least" before a count of the prompt means that the engine has not counted all of it.
_DIGITS = r"(?:\d{1,3}(?:[,_\u00a0\u202f]\d{3})+(?!\d)|\d{1,12})"
_NUMBER = f"(?P<{{}}>{_DIGITS.replace('{', '{{').replace('}', '}}')})"
_MAX_TOKENS = r"max[_ ]?(?:\w{1,12}?[_ ]?)?tokens"
_P, _M, _T, _C, _R = (_NUMBER.format(name) for name in "pmtcr")
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        # Anthropic's API, and this gateway
        rf"input length and `?max_(?:output_)?tokens`? exceed context limit: {_P} \+ {_M} > {_C}",
        # vLLM
        rf"is too large: {_M}\..{{0,80}}?context length is {_C} tokens and your request has {_P} input tokens",
        rf"context length is {_C} tokens.{{0,80}}?requested {_M} output tokens.{{0,40}}? (?P<least>least )?{_P} input",
        rf"passed {_P} input tokens and requested {_M} output tokens.{{0,80}}?context length is only {_C} tokens",
        # OpenAI, older vLLM, llama-cpp-python, OpenRouter: "(13000 in the messages, 32000 in the completion)"
        rf"context length is {_C} tokens.{{0,80}}?requested (?:about )?{_T} tokens \((?P<parts>[^)]{{1,200}})\)",
        # SGLang, which wants the sum to be below the limit
        rf"(?P<below>context length of) {_C} tokens.{{0,120}}?{_P} tokens from the input messages and {_M} tokens",
        # TGI
        rf"must be <= {_C}\. Given: {_P} `inputs` tokens and {_M} `max_new_tokens`",
        # DeepInfra
        rf"generation length {_M} is not.{{0,60}}?prompt is {_P} tokens.{{0,200}}?sequence length is just {_C}",
        # TensorRT-LLM
        rf"sum of prompt length \({_P}(?:\.0)?\).{{0,80}}?max_tokens \({_M}\) should not exceed \w+ \({_C}\)",
        # "Prompt P + max_tokens M too large ... C" (Mistral), "input (P tokens) plus max_new_tokens (M) exceeds ... C"
        (
            rf"(?:input|prompt|messages)\D{{0,40}}{_P}[^\d+]{{0,20}}(?:\+|plus|and)\D{{0,20}}max\D{{0,30}}{_M}\D{{0,20}}"
            rf"(?:exceed|>|too large|greater|larger|longer)(?:\D{{0,80}}{_C})?"
        ),
        # Cerebras, Cohere
        rf"length of the messages or completion.{{0,40}}?current length is {_T} while limit is {_C}",
        rf"number of tokens \(prompt and prediction\) cannot exceed {_C}\D{{0,20}}received {_T}",
        # Limits of the answer alone: OpenAI, Anthropic, vLLM, Gemini, Bedrock
        rf"too large: {_M}\. This model supports at most {_R} completion tokens",
        rf"max_tokens: {_M} > {_R}, which is the maximum allowed number of output tokens",
        (
            rf"{_MAX_TOKENS}`?\W{{1,3}}{_M}\W{{1,2}}(?:cannot|must not|should not) be (?:greater|larger) than "
            rf"(?:\w{{1,40}} ?= ?){{0,3}}{_R}"
        ),
        (
            rf"{_MAX_TOKENS} value of {_M} but the supported range is from \d+ \(inclusive\) to {_R} "
            rf"(?:(?P<below>\(excl)|\()"
        ),
        rf"maximum tokens you requested exceeds the model limit of {_R}",
        rf"#/[\w/]{{0,40}}max\w{{1,20}}: {_M} is not less or equal to {_R}",
        # DeepSeek, Qwen, Zhipu and other hosts: "max_tokens should be [1, R]", in any language
        rf"{_MAX_TOKENS}[^\d.\[]{{0,40}}[\[\uff08\u3010(]\d+ ?[,\uff0c~-] ?{_R} ?[\]\uff09\u3011)]",
        # Groq, Cohere and others
        (
            rf"{_MAX_TOKENS}\W[^.]{{0,40}}?(?:at most|less than or equal to|<=|not exceed|between 1 and|no more than)"
            rf"\W{{0,3}}{_R}"
        ),
    )
)
_PART = re.compile(rf"({_DIGITS}) (?:in|of|for|from) ", re.IGNORECASE)


class TokenRefusal(NamedTuple):
    """What an engine counted, in tokens; None for what it does not say.

    Attributes:
        room: The longest answer that the engine allows for this prompt.
        prompt: The prompt.
        answer: What the request asked for.
        context: The limit for prompt and answer together.
        total: Prompt and `answer` together, if that is all it says.
    """

    room: int | None = None
    prompt: int | None = None
    answer: int | None = None
    context: int | None = None
    total: int | None = None

    @property
    def message(self) -> str | None:
        """The error in the words of Anthropic's API, by which clients lower `max_tokens`; None for want of a number."""
        if self.answer is None or (self.context is None and self.room is None):
            return None
        if self.prompt is None or self.context is None:
            return f"max_tokens: {self.answer} > {self.room}, which is the maximum allowed number of output tokens"
        return (
            f"input length and `max_tokens` exceed context limit: {self.prompt} + {self.answer} > {self.context}, "
            "decrease input length or `max_tokens` and try again"
        )


def read_token_refusal(message: str) -> TokenRefusal | None:
    """What an error text says about `max_tokens`; None if it is about something else, a too long prompt included."""
    text = message[:TEXT_LIMIT]
    for pattern in _PATTERNS:
        match = pattern.search(text)
        if match is not None:
            return _refusal({name: found for name, found in match.groupdict().items() if found is not None})
    return None


def _refusal(found: Mapping[str, str]) -> TokenRefusal | None:
    count = {name: _number(text) for name, text in found.items() if name in _COUNTS}
    if "r" in count:
        room = count["r"] - ("below" in found)
        return TokenRefusal(room, answer=count.get("m")) if room > 0 else None
    prompt, answer, context = count.get("p"), count.get("m"), count.get("c")
    if context is None:
        return TokenRefusal(prompt=prompt, answer=answer)
    if "parts" in found:
        prompt, answer = _prompt_and_answer(found["parts"])
    if prompt is None:
        return TokenRefusal(context=context, total=count["t"]) if "t" in count and "parts" not in found else None
    room = context - prompt - ("below" in found)
    if room < 1:
        return None  # the prompt alone is too long
    return TokenRefusal(None if "least" in found else room, prompt, answer, context)


def _prompt_and_answer(parts: str) -> tuple[int | None, int | None]:
    """The counts in "13000 of text input, 500 of tool input, 32000 in the output"; the last one is the answer's."""
    counts = [_number(count) for count in _PART.findall(parts)]
    return (sum(counts[:-1]), counts[-1]) if len(counts) > 1 else (None, None)


_COUNTS = frozenset("pmtcr")


def _number(text: str) -> int:
    return int("".join(filter(str.isdecimal, text)))


def with_room(body: bytes | SplicedBody, refusal: TokenRefusal) -> bytes | SplicedBody | None:
    """The request's body with the answer's length lowered to the room; None if there is no room or nothing to lower."""
    body = in_one_piece(body)  # what an alias has put into it counts
    try:
        fields = msgspec.json.decode(body, type=_AnswerLimits)
    except (msgspec.DecodeError, RecursionError):
        return None
    limits = {key: getattr(fields, key) for key in _AnswerLimits.__struct_fields__}
    asked = {key: limit for key, limit in limits.items() if isinstance(limit, int) and not isinstance(limit, bool)}
    room = refusal.room
    if room is None and refusal.total is not None and refusal.context is not None and asked:
        room = max(asked.values()) - (refusal.total - refusal.context)
    if room is None or room < 1:
        return None
    lowered = {key: str(room) for key, limit in asked.items() if limit > room}
    try:
        return edit(body, {}, lowered) if lowered else None
    except BadRequest:  # a key twice: the engine's own refusal is the better answer
        return None


class _AnswerLimits(msgspec.Struct):
    """Every name that the APIs have for the longest answer."""

    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
