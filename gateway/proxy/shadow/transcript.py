"""A record of one answer, for comparing it with another one. No I/O, no clock.

Only for requests with a shadow: it decodes every event. It knows chat completions and completions, whole or streamed;
of any other answer it knows the times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from gateway.dialects.chat_chunks import Choice, Delta, decode_event
from gateway.dialects.tool_calls import ToolCalls
from gateway.dialects.usage_fields import Usage, read_usage
from gateway.http.sse import Event

__all__ = ["AnswerSummary", "Transcript"]

TEXT_LIMIT_CHARACTERS = 1024 * 1024  # of text or of a whole body; what is longer is not kept
_FINISH_REASON_LIMIT_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class AnswerSummary:
    """One of two answers to the same request. None means that it did not happen, or that it is unknown.

    Attributes:
        model: The model that answered.
        node: Its neuron.
        ok: Whether the status was 200.
        first_token_ms: From the request to the first generated delta of a stream.
        duration_ms: From the request to the end of the answer.
        completion_tokens: As the upstream counted them.
        finish_reason: As the upstream spells it.
        content_digest: Of text and tool calls: equal digests are equal answers.
        calls: How many tool calls there are.
        calls_valid: Whether every tool call has a name and a JSON object for arguments; None if there is no call.
    """

    model: str
    node: str
    ok: bool
    first_token_ms: float | None
    duration_ms: float
    completion_tokens: int | None
    finish_reason: str | None
    content_digest: bytes
    calls: int
    calls_valid: bool | None

    @property
    def tokens_per_s(self) -> float | None:
        """Completion tokens over the time from the first one to the end; None for an answer that is not a stream."""
        if self.first_token_ms is None or not self.completion_tokens:
            return None
        window_ms = self.duration_ms - self.first_token_ms
        return self.completion_tokens / window_ms * 1000 if window_ms > 0 else None


class Transcript:
    """Collects one answer: `read` the events of a stream, or `add_body` the pieces of another body; then `summary`.

    Args:
        requested_at: When the upstream was asked, by the caller's clock.
    """

    __slots__ = ("_body", "_calls", "_characters", "_finish_reason", "_first_at", "_requested_at", "_text", "_usage")

    def __init__(self, requested_at: float) -> None:
        self._requested_at = requested_at
        self._body: list[bytes] = []
        self._text: list[str] = []
        self._characters = 0
        self._calls = ToolCalls()
        self._finish_reason: str | None = None
        self._first_at: float | None = None
        self._usage: Usage | None = None

    def read(self, events: Iterable[Event], now: float) -> None:
        """Add events that arrived at `now`. Ignores what it cannot decode."""
        for event in events:
            if event.data is not None and event.data != b"[DONE]":
                self._decode(event.data, now)

    def add_body(self, chunk: bytes) -> None:
        """Add a piece of a body that is not an event stream."""
        if self._characters <= TEXT_LIMIT_CHARACTERS:
            self._body.append(chunk)
            self._characters += len(chunk)

    def summary(self, model: str, node: str, now: float, *, ok: bool) -> AnswerSummary:
        """The answer as it is at `now`."""
        if self._body:
            body, self._body, self._characters = b"".join(self._body), [], 0
            self._decode(body, None)
        usage = self._usage or Usage()
        return AnswerSummary(
            model=model,
            node=node,
            ok=ok,
            first_token_ms=None if self._first_at is None else _ms(self._first_at - self._requested_at),
            duration_ms=_ms(now - self._requested_at),
            completion_tokens=usage.completion_tokens,
            finish_reason=self._finish_reason,
            content_digest=self._digest(),
            calls=len(self._calls),
            calls_valid=self._calls.valid,
        )

    def _decode(self, data: bytes, now: float | None) -> None:
        """Read an event or a whole answer. `now` is None for the latter, which has no time of a first token."""
        try:
            event = decode_event(data)
        except msgspec.DecodeError:
            return
        self._usage = read_usage(event.usage) or self._usage
        if self._first_at is None and event.choices and event.is_generated:
            self._first_at = now
        for choice in event.choices or ():
            if not choice.index:
                self._add(choice)

    def _add(self, choice: Choice) -> None:
        content = choice.message or choice.delta or Delta()
        text = content.content_text + (choice.text if isinstance(choice.text, str) else "")
        self._characters += len(text)
        if self._characters <= TEXT_LIMIT_CHARACTERS:
            self._text.append(text)
        if choice.message is None:
            self._calls.collect(content.tool_calls or ())
        else:
            self._calls.collect_message(content.tool_calls or ())
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason[:_FINISH_REASON_LIMIT_CHARACTERS]

    def _digest(self) -> bytes:
        """Of the text and of the calls' decoded arguments: engines write the same arguments with different spaces."""
        digest = hashlib.blake2b("".join(self._text).encode("utf-8", "replace"), digest_size=16)
        for call in self._calls.by_index():
            digest.update(b"\0%b\0" % call.name.encode("utf-8", "replace") + _canonical(call.arguments))
        return digest.digest()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _canonical(arguments: str) -> bytes:
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments or "{}"), order="sorted")
    except (msgspec.DecodeError, RecursionError):
        return arguments.encode("utf-8", "replace")
