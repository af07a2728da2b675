"""`echo = "alias"`: name the alias, and not the model, in the `model` member of an answer. No I/O.

The member is at the top (OpenAI), or in the object that an event is about (`response`, `message`). Every other byte
passes as it came. An event without a `model` costs one search.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from gateway.dialects import AnswerAssembler, Translation
from gateway.dialects.chat.assemble import CompletionAssembler
from gateway.dialects.json_splice import Span, find
from gateway.errors import GatewayError
from gateway.http import sse

__all__ = ["ModelRenamer", "renamed"]

_KEY = b'"model"'  # as every engine spells it; cannot match inside a string, where quotes are escaped
# A `model` member at the top with only strings and scalars before it, as in nearly every chunk: strings are matched
# whole and brackets are not, so it is that member and no other. `find` takes 10 us longer. The possessive quantifiers
# keep it linear for any input.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SIMPLE_OBJECT = re.compile(
    rb"[ \t]*+\{(?:[^\"{}\[\]]++|(?!\"model\"[ \t]*:)" + _STRING + rb')*+"model"[ \t]*+:[ \t]*+(' + _STRING + rb")",
    re.DOTALL,
)
_DATA = b"data:"
_PLAIN_FRAME_BYTES = len(sse.write(b""))
_PARENTS = ("model", "response", "message")


def renamed(body: bytes, name: bytes) -> bytes:
    """The bytes of a JSON object with another value of `model`. Unchanged if it has none, or is not an object.

    Args:
        body: Begins with the object.
        name: A JSON string.
    """
    if _KEY not in body:
        return body
    if (simple := _SIMPLE_OBJECT.match(body)) is not None:
        return b"".join((body[: simple.start(1)], name, body[simple.end(1) :]))
    try:
        span = _find_model(body)
    except ValueError:  # it is not JSON: for the client to judge
        return body
    return body if span is None else b"".join((body[: span.start], name, body[span.end :]))


def _find_model(body: bytes) -> Span | None:
    """The `model` at the top, or else in the object that the event is about."""
    found = find(body, _PARENTS)
    if "model" in found:
        return found["model"] if _starts_with(body, found["model"], b'"') else None
    for parent in found.values():
        if _starts_with(body, parent, b"{"):
            inner = find(body[parent.start : parent.end], _PARENTS[:1]).get("model")
            if inner is not None:
                span = Span(parent.start + inner.start, parent.start + inner.end)
                if _starts_with(body, span, b'"'):
                    return span
    return None


def _starts_with(body: bytes, span: Span, first: bytes) -> bool:
    return body.startswith(first, span.start)


class ModelRenamer:
    """A `Translation` that renames the model, and hands the renamed events to another translation if there is one.

    Args:
        alias: What the client asked for.
        then: The translation between the upstream's dialect and the client's; None if they are the same.
        error_event: Makes an error event of the client's dialect, for a stream without another translation.
    """

    __slots__ = ("_error_event", "_name", "then")

    passes_text = False
    held_limit_bytes = sse.EVENT_LIMIT_BYTES

    def __init__(self, alias: str, then: Translation | None, error_event: Callable[[GatewayError], bytes]) -> None:
        self._name = msgspec.json.encode(alias)
        self.then = then
        self._error_event = error_event

    @property
    def error(self) -> GatewayError | None:
        """The other translation's; renaming cannot fail."""
        return None if self.then is None else self.then.error

    @property
    def keepalive_bytes(self) -> bytes:
        """The other translation's, if there is one."""
        return sse.KEEP_ALIVE if self.then is None else self.then.keepalive_bytes

    @property
    def converts(self) -> bool:
        """The other translation's, if there is one."""
        return self.then is not None and self.then.converts

    @property
    def assembler(self) -> Callable[[], AnswerAssembler]:
        """The other translation's, if there is one."""
        return CompletionAssembler if self.then is None else self.then.assembler

    def feed(self, events: Sequence[sse.Event]) -> bytes:
        """The events, renamed."""
        then = self.then
        if then is None:
            return b"".join([self._rename_raw(event) for event in events])
        if then.passes_text:  # it passes on the raw bytes
            rename = self._rename_raw
            return then.feed([sse.Event(event.data, event.type, rename(event), event.is_whole) for event in events])
        return then.feed([self._rename_data(event) for event in events])

    def finish(self) -> bytes:
        """Nothing, but for the other translation."""
        return b"" if self.then is None else self.then.finish()

    def fail(self, error: GatewayError) -> bytes:
        """The error in the client's dialect."""
        return self._error_event(error) if self.then is None else self.then.fail(error)

    def whole(self, body: bytes) -> bytes:
        """An answer that is not a stream, renamed."""
        body = renamed(body, self._name)
        return body if self.then is None else self.then.whole(body)

    def stream_of(self, body: bytes) -> bytes:
        """The stream of an answer that is none, renamed."""
        body = renamed(body, self._name)
        return body if self.then is None else self.then.stream_of(body)

    def _rename_data(self, event: sse.Event) -> sse.Event:
        if event.data is None or _KEY not in event.data:
            return event
        return sse.Event(renamed(event.data, self._name), event.type, event.raw, event.is_whole)

    def _rename_raw(self, event: sse.Event) -> bytes:
        data, raw = event.data, event.raw
        if data is None:
            return raw
        if len(raw) == len(data) + _PLAIN_FRAME_BYTES and raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
            return sse.write(renamed(data, self._name))  # nothing but one line of data
        lines = raw.splitlines(keepends=True)
        return b"".join(
            [_DATA + renamed(line[len(_DATA) :], self._name) if line.startswith(_DATA) else line for line in lines]
        )
