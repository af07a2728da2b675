"""Chat completions as neurons send them, whole or in chunks: the shapes we read. No translation.

Loose types, because engines disagree: thoughts are `reasoning_content` (DeepSeek, llama.cpp, SGLang) or `reasoning`
(vLLM, OpenRouter), a matched stop sequence is `stop_reason` (vLLM) or `matched_stop` (SGLang).
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects import loose_json, upstream_errors
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse

__all__ = ["BROKEN_OFF", "Choice", "Chunk", "Said", "ToolCall", "read_chunk", "read_whole"]

BROKEN_OFF = frozenset({"abort", "error", "cancelled"})
"""Finish reasons that are none: the engine gave up (SGLang, OpenRouter). What came before is not an answer."""


class Function(msgspec.Struct):
    """The function of a call, or what a chunk adds to it."""

    name: Any = None
    arguments: Any = None

    @property
    def text(self) -> str:
        """The arguments' JSON, or a piece of it; some engines send the object itself."""
        if isinstance(self.arguments, str):
            return self.arguments
        return "" if self.arguments is None else msgspec.json.encode(self.arguments).decode()


class ToolCall(msgspec.Struct):
    """A call, or what a chunk adds to it."""

    index: int | None = None
    id: Any = None
    function: Function | None = None


class Said(msgspec.Struct):
    """A `message` or a `delta`."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[ToolCall] | None = None

    @property
    def thought(self) -> str:
        """The thoughts; engines that fill both fields say the same in both."""
        return _text(self.reasoning_content) or _text(self.reasoning)

    @property
    def text(self) -> str:
        """The text; a refusal is one."""
        return self.words or self.refused

    @property
    def words(self) -> str:
        """The text, if it is no refusal."""
        return _text(self.content)

    @property
    def refused(self) -> str:
        """The words of a refusal, which only some engines tell from text."""
        return _text(self.refusal)


class Choice(msgspec.Struct):
    """One of `choices`; only the first is ever asked for."""

    index: int | None = 0
    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    matched_stop: Any = None

    @property
    def matched(self) -> object:
        """What the engine says stopped it: a string, a token id, or nothing."""
        return self.matched_stop if self.stop_reason is None else self.stop_reason


class Chunk(msgspec.Struct):
    """A chunk of a stream, or a whole answer."""

    choices: list[Choice] | None = None
    created: Any = None
    model: Any = None
    usage: Any = None
    error: Any = None


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # Mistral's parts
        return "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def read_chunk(data: bytes) -> Chunk:
    """The data of one event of a stream.

    Raises:
        UpstreamMalformedResponse: No chunk of a chat completion.
        GatewayError: The neuron says in it that something went wrong.
    """
    try:
        chunk = loose_json.decode(_decoder, data)
    except msgspec.DecodeError as error:
        raise UpstreamMalformedResponse(f"the neuron sent a chunk that is none: {error}") from None
    if chunk.error:
        raise upstream_errors.from_stream(chunk.error)
    return chunk


def read_whole(body: bytes) -> tuple[Chunk, Choice]:
    """A whole answer, and the one choice of it that was asked for.

    Raises:
        UpstreamMalformedResponse: No chat completion.
        UpstreamConnectionError: The neuron gave up in the middle of it.
        GatewayError: It says that something else went wrong.
    """
    try:
        answer = loose_json.decode(_decoder, body)
    except msgspec.DecodeError as error:
        raise UpstreamMalformedResponse(f"the neuron's answer is no chat completion: {error}") from None
    if answer.error:
        raise upstream_errors.from_stream(answer.error)
    choice = next((choice for choice in answer.choices or () if not choice.index), None)
    if choice is None:
        raise UpstreamMalformedResponse("the neuron's answer is no chat completion: it has no choice")
    if choice.finish_reason in BROKEN_OFF:
        raise UpstreamConnectionError(f"the neuron broke off its answer: {choice.finish_reason}")
    return answer, choice


_decoder = msgspec.json.Decoder(Chunk)
