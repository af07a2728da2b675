"""Answers as upstreams send them: the one set of types for chat completions, and for what is metered of other streams.

The types are loose, because engines disagree: reasoning is `reasoning_content` (DeepSeek, llama.cpp, SGLang) or
`reasoning` (vLLM, OpenRouter); a matched stop sequence is `stop_reason` (vLLM) or `matched_stop` (SGLang).
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects import loose_json, upstream_errors
from gateway.dialects.chat import finish_reasons
from gateway.dialects.translation.bounds import excess_of
from gateway.errors import UpstreamMalformedResponse

__all__ = [
    "SMALL_EVENT_BYTES",
    "WHOLE_CALLS_LIMIT",
    "Choice",
    "Chunk",
    "Delta",
    "StreamEvent",
    "ToolCall",
    "decode_event",
    "read_whole",
    "text_of",
]

WHOLE_CALLS_LIMIT = 10_000  # before it is decoded: 600,000 would block other requests for two seconds
SMALL_EVENT_BYTES = 64 * 1024  # what is smaller can be decoded within some milliseconds, whatever it contains
_TERMINAL_TYPES = frozenset({"response.completed", "response.incomplete", "response.failed"})
_CONTENTLESS_TYPES = frozenset({"message_start", "content_block_start", "ping"})


class Function(msgspec.Struct):
    """The function of a tool call, or what a chunk adds to it."""

    name: Any = None
    arguments: Any = None

    @property
    def text(self) -> str:
        """The arguments as JSON text, or a piece of it. Some engines send an object instead of text."""
        if isinstance(self.arguments, str):
            return self.arguments
        return "" if self.arguments is None else msgspec.json.encode(self.arguments).decode()


class ToolCall(msgspec.Struct):
    """A tool call, or what a chunk adds to it."""

    index: Any = None
    id: Any = None
    function: Function | None = None


class Delta(msgspec.Struct):
    """The `delta` of a chunk, or the `message` of a whole answer."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[ToolCall] | None = None
    function_call: Any = None

    @property
    def reasoning_text(self) -> str:
        """The reasoning. Engines that fill both fields put the same text in both."""
        return text_of(self.reasoning_content) or text_of(self.reasoning)

    @property
    def text(self) -> str:
        """The content, or else the refusal."""
        return self.content_text or self.refusal_text

    @property
    def content_text(self) -> str:
        """The content as text."""
        return text_of(self.content)

    @property
    def refusal_text(self) -> str:
        """The refusal, which few engines separate from the content."""
        return text_of(self.refusal)

    @property
    def is_generated(self) -> bool:
        """Whether the model generated anything in it, of any kind."""
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.function_call
            or self.refusal
        )


class Choice(msgspec.Struct):
    """One of `choices`. The gateway's own requests ask for one."""

    index: int | None = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: Any = None
    finish_reason_member: Any = msgspec.field(default=None, name="finish_reason")
    stop_reason: Any = None
    matched_stop: Any = None
    usage: Any = None  # Kimi's place for it

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, as the engine spells it; None if it goes on."""
        member = self.finish_reason_member
        return None if member is None else finish_reasons.reason_in(member)

    @property
    def matched(self) -> object:
        """What made the engine stop: a string, a token id, or None."""
        return self.matched_stop if self.stop_reason is None else self.stop_reason


class Chunk(msgspec.Struct):
    """A chunk of a stream, or a whole answer."""

    choices: list[Choice] | None = None
    created: Any = None
    model: Any = None
    usage: Any = None
    error: Any = None
    object: Any = None
    type: Any = None
    message: Any = None
    detail: Any = None
    code: Any = None
    status: Any = None
    status_code: Any = None
    http_code: Any = None
    http_status: Any = None

    @property
    def reported_error(self) -> Any:
        """The error that the upstream reports in it, in any of the forms that engines have; None if there is none."""
        return None if self.choices and not self.error else upstream_errors.error_in(msgspec.structs.asdict(self))

    @property
    def reported_usage(self) -> object:
        """The `usage` object, wherever the engine puts it."""
        if self.usage is None and self.choices:
            return self.choices[0].usage
        return self.usage


class StreamEvent(Chunk):
    """An event of a stream in any dialect: a chat chunk, or an event of Responses or Messages, which have a `type`."""

    delta: Any = None
    response: Any = None
    item: Any = None

    @property
    def reported_error(self) -> Any:
        """As in a chunk, or the error of a Responses stream that has failed."""
        if self.type == "response.failed" and isinstance(self.response, dict):
            return self.response.get("error") or {"message": "the response failed"}
        return None if self.choices and not self.error else super().reported_error

    @property
    def finish_reason(self) -> str | None:
        """Chat's `finish_reason`, Messages' `stop_reason`; for Responses, the status it ended with."""
        for choice in self.choices or ():
            if choice.finish_reason_member is not None and (reason := choice.finish_reason):
                return reason
        if self.type in _TERMINAL_TYPES:
            return str(self.type).removeprefix("response.")
        if self.type == "message_delta" and isinstance(self.delta, dict):
            reason = self.delta.get("stop_reason")
            return None if reason is None else str(reason)
        return None

    @property
    def is_preamble(self) -> bool:
        """Whether it is a known kind of event. Only of interest for one without generated content."""
        if self.choices is not None or self.type in _CONTENTLESS_TYPES:
            return True
        return isinstance(self.type, str) and self.type.startswith("response.")

    @property
    def is_generated(self) -> bool:
        """Whether it has generated content: a delta of a chat choice, of Responses or of Messages."""
        if self.choices is None:
            return self.type == "content_block_delta" or (isinstance(self.delta, str) and bool(self.delta))
        for choice in self.choices:  # noqa: SIM110 - `any` with a generator is two calls more
            if choice.text or (choice.delta is not None and choice.delta.is_generated):
                return True
        return False

    @property
    def has_usage(self) -> bool:
        """Whether usage may be in it, at any place."""
        if self.usage is not None or self.response is not None or self.message is not None:
            return True
        return bool(self.choices and self.choices[0].usage is not None)


def text_of(value: object) -> str:
    """The text in a member that is a string or a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # Mistral's content parts
        return "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def decode_event(data: bytes) -> StreamEvent:
    """Decode the data of one event in any dialect.

    Raises:
        msgspec.DecodeError: It is not JSON, or not an object of these types, or has more values than can be decoded.
    """
    if len(data) > SMALL_EVENT_BYTES and (excess := excess_of(data)) is not None:
        raise msgspec.DecodeError(f"it has {excess}")
    return loose_json.decode(_event_decoder, data)


def read_whole(body: bytes) -> tuple[Chunk, Choice]:
    """Decode a whole answer. Returns it and its first choice.

    Raises:
        UpstreamMalformedResponse: It is not a chat completion.
        GatewayError: The upstream reports an error in it, or gave up in the middle of it.
    """
    if body.count(b'"function"') > 2 * WHOLE_CALLS_LIMIT:  # a call has the word twice: as its type, and as a key
        raise UpstreamMalformedResponse(f"the neuron's answer has more than {WHOLE_CALLS_LIMIT} tool calls")
    if (excess := excess_of(body)) is not None:
        raise UpstreamMalformedResponse(f"the neuron's answer has {excess}")
    try:
        body.decode()
        answer = loose_json.decode(_decoder, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamMalformedResponse(f"the neuron's answer is not a chat completion: {error}") from None
    if (reported := answer.reported_error) is not None:
        raise upstream_errors.from_stream(reported)
    choice = next((choice for choice in answer.choices or () if not choice.index), None)
    if choice is None:
        raise UpstreamMalformedResponse("the neuron's answer is not a chat completion: it has no choice")
    if (failure := finish_reasons.failure_of(choice.finish_reason)) is not None:
        raise failure
    return answer, choice


_decoder = msgspec.json.Decoder(Chunk)
_event_decoder = msgspec.json.Decoder(StreamEvent)
