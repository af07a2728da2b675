"""A whole chat completion from the events of its stream, and the events of a stream from a whole one. No I/O.

For a neuron that answers in the other form than it was asked for, and for requests whose stream the gateway asked for
on its own account. Knows chat completions and the older text completions. Fields that OpenAI's API does not have are
kept: texts are joined, lists are joined, and of anything else the last value counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.dialects import upstream_errors
from gateway.dialects.chat import finish_reasons
from gateway.dialects.chat.answer_id import new_answer_id
from gateway.dialects.chat.chunk_reader import decode_with_halves, join_halves
from gateway.dialects.chat_chunks import ToolCall
from gateway.dialects.loose_json import JsonObject
from gateway.dialects.tool_calls import AssembledCall, ToolCalls
from gateway.dialects.translation.bounds import excess_of
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http import sse

__all__ = ["CompletionAssembler", "stream_datas"]

ASSEMBLED_LIMIT = 1_000_000  # values of an answer in all: they are encoded in one step of 40 ms

_NOT_A_COMPLETION = "the neuron answered a streaming request with neither an event stream nor a chat completion"


class CompletionAssembler:
    """Assembles one answer. A `dialects.AnswerAssembler`."""

    __slots__ = ("_choices", "_done", "_fields", "_has_halves", "_values")

    def __init__(self) -> None:
        self._values = 0
        self._fields: JsonObject = {}
        self._choices: dict[int, _AssembledChoice] = {}
        self._done = False
        self._has_halves = False

    def feed(self, events: Sequence[sse.Event]) -> None:
        """Take in events of the stream.

        Raises:
            UpstreamMalformedResponse: One is not a chunk of a completion.
            GatewayError: The upstream reports an error in one.
        """
        for event in events:
            if event.data is None:
                if not event.is_whole:
                    limit = sse.EVENT_LIMIT_BYTES
                    raise UpstreamMalformedResponse(f"the neuron sent an event of more than {limit} bytes")
            elif event.data == b"[DONE]":
                self._done = True
            elif event.type == b"error":
                raise upstream_errors.from_stream(upstream_errors.error_in_event(event.data))
            elif event.data:
                self._values += event.data.count(b",")
                if self._values > ASSEMBLED_LIMIT or excess_of(event.data) is not None:
                    raise UpstreamMalformedResponse("the neuron's answer is too large to be put together")
                self._take(self._decode(event.data))

    def body(self) -> bytes:
        """The whole answer.

        Raises:
            UpstreamConnectionError: The stream ended before the answer did.
            GatewayError: The engine gave up, or the stream had no answer.
        """
        choices = [choice.whole() for _, choice in sorted(self._choices.items())]
        if not choices:
            raise UpstreamMalformedResponse("the neuron's stream has no choice")
        if not self._done and any(choice["finish_reason"] is None for choice in choices):
            raise UpstreamConnectionError("the neuron's stream broke off without an end")
        kind = self._fields.get("object")
        if isinstance(kind, str):
            self._fields["object"] = kind.removesuffix(".chunk")
        answer = {**self._fields, "choices": choices}
        if answer.get("usage") is None:
            answer.pop("usage", None)
        return msgspec.json.encode(_without_halves(answer) if self._has_halves else answer)

    def _decode(self, data: bytes) -> JsonObject:
        try:
            value, has_halves = _decode(data)
        except ValueError as error:
            raise UpstreamMalformedResponse(f"the neuron sent an invalid chat completion chunk: {error}") from None
        self._has_halves = self._has_halves or has_halves
        return value

    def _take(self, chunk: JsonObject) -> None:
        if (reported := upstream_errors.error_in(chunk)) is not None:
            raise upstream_errors.from_stream(reported)
        choices = chunk.pop("choices", None)
        for name, value in chunk.items():
            if value is not None or name not in self._fields:
                self._fields[name] = value
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                index = choice.get("index")
                index = index if isinstance(index, int) else 0
                self._choices.setdefault(index, _AssembledChoice(index)).take(choice)
                if self._fields.get("usage") is None and isinstance(choice.get("usage"), dict):
                    self._fields["usage"] = choice["usage"]  # Kimi's place for it


def _decode(data: bytes) -> tuple[JsonObject, bool]:
    """A JSON object, and whether its strings may have half surrogate pairs. Raises ValueError for anything else."""
    has_halves = False
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value, has_halves = decode_with_halves(data), True
    if not isinstance(value, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - as for anything else that is no JSON object
    return value, has_halves


class _AssembledChoice:
    __slots__ = ("_calls", "_extras", "_fields", "_finish_reason", "_index", "_is_chat", "_message")

    def __init__(self, index: int) -> None:
        self._index = index
        self._fields: JsonObject = {}
        self._message: JsonObject = {"role": "assistant", "content": None}
        self._calls = ToolCalls()
        self._extras: dict[AssembledCall, JsonObject] = {}
        self._finish_reason: str | None = None
        self._is_chat = False

    def take(self, choice: JsonObject) -> None:
        reason = finish_reasons.reason_in(choice.pop("finish_reason", None))
        self._finish_reason = reason or self._finish_reason
        for name in ("delta", "message"):
            part = choice.pop(name, None)
            if isinstance(part, dict):
                self._is_chat = True
                self._take_delta(part)
        choice.pop("index", None)
        _merge(self._fields, choice)

    def _take_delta(self, delta: JsonObject) -> None:
        parts = delta.pop("tool_calls", None)
        if isinstance(parts, list) and parts:
            try:
                added = self._calls.add(msgspec.convert(parts, list[ToolCall]))
            except msgspec.ValidationError as error:
                raise UpstreamMalformedResponse(f"the neuron sent an invalid tool call: {error}") from None
            for part, (call, _) in zip(parts, added, strict=True):
                others = {name: value for name, value in part.items() if name not in _CALL_FIELDS}
                self._extras.setdefault(call, {}).update(others)
        role = delta.pop("role", None)
        if isinstance(role, str) and role:
            self._message["role"] = role
        _merge(self._message, delta)

    def whole(self) -> JsonObject:
        if (failure := finish_reasons.failure_of(self._finish_reason)) is not None:
            raise failure
        choice: JsonObject = {"index": self._index}
        if self._is_chat:
            choice["message"] = self._whole_message()
        return {**choice, **self._fields, "finish_reason": self._finish_reason}

    def _whole_message(self) -> JsonObject:
        message = self._message
        if not len(self._calls):
            return message
        if not message["content"]:
            message["content"] = None
        answer_id = new_answer_id()
        message["tool_calls"] = [
            {
                "id": call.id or f"call_{answer_id}_{position}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
                **self._extras.get(call, {}),
            }
            for position, call in enumerate(self._calls.in_order())
        ]
        return message


_CALL_FIELDS = frozenset({"index", "id", "type", "function"})


_LABELS = frozenset({"name", "id", "type", "status", "format", "stop_reason", "matched_stop"})  # not texts


def _merge(fields: JsonObject, more: JsonObject) -> None:
    """Join texts and lists, also those inside objects; of anything else the last value counts."""
    for name, value in more.items():
        known = fields.get(name)
        if known is None:
            fields[name] = value
        elif value is None or value == "":
            continue
        elif isinstance(known, str) and isinstance(value, str) and name not in _LABELS:
            fields[name] = known + value
        elif isinstance(known, list) and isinstance(value, list):
            known += value
        elif isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        else:
            fields[name] = value


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return join_halves(value)
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    if isinstance(value, dict):
        return {_without_halves(name): _without_halves(item) for name, item in value.items()}
    return value


def stream_datas(body: bytes) -> list[bytes]:
    """The data of the events of a stream with the content of a whole answer, `[DONE]` included.

    Raises:
        UpstreamMalformedResponse: `body` is not a completion.
        GatewayError: The upstream reports an error in it, or gave up in the middle of it.
    """
    if (excess := excess_of(body)) is not None:
        raise UpstreamMalformedResponse(f"the neuron's answer has {excess}")
    try:
        answer, has_halves = _decode(body)
    except ValueError:
        raise UpstreamMalformedResponse(_NOT_A_COMPLETION) from None
    if has_halves:
        answer = _without_halves(answer)
    choices = answer.get("choices")
    if (reported := upstream_errors.error_in(answer)) is not None:
        raise upstream_errors.from_stream(reported)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamMalformedResponse(_NOT_A_COMPLETION)
    kind = answer.get("object")
    usage = answer.pop("usage", None)
    head = {**answer, "object": "chat.completion.chunk" if kind in {None, "chat.completion"} else kind}
    contents, ends = [], []
    for position, choice in enumerate(choices):
        if (failure := finish_reasons.failure_of(finish_reasons.reason_in(choice.get("finish_reason")))) is not None:
            raise failure
        index = choice.get("index", position)
        contents.append({**_as_delta(choice), "index": index, "finish_reason": None})
        end: JsonObject = {} if "text" not in choice else {"text": ""}
        ends.append({"index": index, "delta": {}, **end, "finish_reason": choice.get("finish_reason") or "stop"})
    last: JsonObject = {**head, "choices": ends}
    if isinstance(usage, dict):
        last["usage"] = usage
    return [msgspec.json.encode({**head, "choices": contents}), msgspec.json.encode(last), b"[DONE]"]


def _as_delta(choice: JsonObject) -> JsonObject:
    """A choice of a whole answer as one of a chunk. Every tool call gets the index of its place."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return choice
    fields = {name: value for name, value in choice.items() if name != "message"}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        numbered = [{**call, "index": at} for at, call in enumerate(calls) if isinstance(call, dict)]
        message = {**message, "tool_calls": numbered}
    return {**fields, "delta": message}
