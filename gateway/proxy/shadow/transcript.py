"""What an answer said, put together from a neuron's bytes, so that two answers can be compared. No I/O, no clock.

For requests that somebody compares only: it decodes every event. Chat completions and completions, whole or streamed;
of anything else it knows when it came and how long it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from gateway.dialects import loose_json
from gateway.dialects.usage_fields import Usage, read_usage
from gateway.http import sse

__all__ = ["AnswerSummary", "Transcript"]

TEXT_LIMIT_BYTES = 1024 * 1024  # of an answer that is kept for comparing; a longer one is compared by its length only
CALLS_LIMIT = 64


@dataclass(frozen=True, slots=True)
class AnswerSummary:
    """One of two answers to the same request. Times in ms from when it was asked; None is "did not happen" or unknown.

    `said` is a digest of text and tool calls: equal digests are equal answers. `calls_valid` says whether every tool
    call has a name and a JSON object for arguments; None if there was none.
    """

    model: str
    node: str
    ok: bool
    first_token_ms: float | None
    duration_ms: float
    completion_tokens: int | None
    finish_reason: str | None
    said: bytes
    calls: int
    calls_valid: bool | None

    @property
    def tokens_per_s(self) -> float | None:
        """Completion tokens over the time from the first one to the end; None for an answer in one piece."""
        if self.first_token_ms is None or not self.completion_tokens:
            return None
        window_ms = self.duration_ms - self.first_token_ms
        return self.completion_tokens / window_ms * 1000 if window_ms > 0 else None


class Transcript:
    """Feed it the body's bytes as they come, with the time; then ask for its `side`."""

    __slots__ = ("_asked_at", "_calls", "_finish_reason", "_first_at", "_reader", "_size", "_text", "_usage", "_whole")

    def __init__(self, asked_at: float, *, stream: bool) -> None:
        self._asked_at = asked_at
        self._reader = sse.Reader() if stream else None
        self._whole: list[bytes] = []
        self._text: list[str] = []
        self._size = 0
        self._calls: dict[int, list[str]] = {}
        self._finish_reason: str | None = None
        self._first_at: float | None = None
        self._usage: Usage | None = None

    def feed(self, chunk: bytes, now: float) -> None:
        """The next bytes. Raises nothing: what cannot be read is not compared."""
        if self._reader is None:
            if self._size <= TEXT_LIMIT_BYTES:
                self._whole.append(chunk)
                self._size += len(chunk)
            return
        try:
            events = self._reader.feed(chunk)
        except sse.EventTooLong:
            self._reader = sse.Reader()
            return
        for event in events:
            if event.data != b"[DONE]":
                self._read(event.data, now)

    def side(self, model: str, node: str, now: float, *, ok: bool) -> AnswerSummary:
        """Everything heard until now."""
        if self._whole:
            self._read(b"".join(self._whole), now, whole=True)
            self._whole = []
        usage = self._usage or Usage()
        return AnswerSummary(
            model=model,
            node=node,
            ok=ok,
            first_token_ms=None if self._first_at is None else _ms(self._first_at - self._asked_at),
            duration_ms=_ms(now - self._asked_at),
            completion_tokens=usage.completion_tokens,
            finish_reason=self._finish_reason,
            said=self._digest(),
            calls=len(self._calls),
            calls_valid=all(map(_is_valid, self._calls.values())) if self._calls else None,
        )

    def _read(self, data: bytes, now: float, *, whole: bool = False) -> None:
        try:
            event = loose_json.decode(_decoder, data)
        except msgspec.DecodeError:
            return
        self._usage = read_usage(event.usage) or self._usage
        for choice in event.choices or ():
            said = choice.message or choice.delta or _Said()
            spoken = [text for text in (said.content, choice.text) if isinstance(text, str) and text]
            thought = said.reasoning_content or said.reasoning
            if not whole and self._first_at is None and (spoken or thought or said.tool_calls):
                self._first_at = now
            if choice.index == 0:
                self._keep("".join(spoken), said.tool_calls or ())
                if isinstance(choice.finish_reason, str):
                    self._finish_reason = choice.finish_reason[:32]

    def _keep(self, text: str, calls: list[_Call] | tuple[()]) -> None:
        self._size += len(text)
        if self._size <= TEXT_LIMIT_BYTES:
            self._text.append(text)
        for position, call in enumerate(calls):
            key = position if call.index is None else call.index
            if key not in self._calls and len(self._calls) >= CALLS_LIMIT:
                return
            kept = self._calls.setdefault(key, [""])
            kept[0] = kept[0] or (call.function.name if isinstance(call.function.name, str) else "")
            if isinstance(call.function.arguments, str) and self._size <= TEXT_LIMIT_BYTES:
                self._size += len(call.function.arguments)
                kept.append(call.function.arguments)

    def _digest(self) -> bytes:
        """Of the text and of what the calls mean: two engines may write the same arguments with other spaces."""
        digest = hashlib.blake2b("".join(self._text).encode("utf-8", "replace"), digest_size=16)
        for index in sorted(self._calls):
            name, *pieces = self._calls[index]
            digest.update(b"\0%b\0" % name.encode() + _canonical("".join(pieces)))
        return digest.digest()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _is_valid(call: list[str]) -> bool:
    name, *pieces = call
    return bool(name) and isinstance(_value("".join(pieces)), dict)


def _value(arguments: str) -> object:
    try:
        return msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return None


def _canonical(arguments: str) -> bytes:
    value = _value(arguments)
    return arguments.encode() if value is None else msgspec.json.encode(value, order="sorted")


# What is read of an answer; loose, as in `metering`...


class _Function(msgspec.Struct):
    name: object = None
    arguments: object = None


class _Call(msgspec.Struct):
    index: int | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Said(msgspec.Struct):
    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    text: object = None
    finish_reason: object = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: object = None


_decoder = msgspec.json.Decoder(_Event)
