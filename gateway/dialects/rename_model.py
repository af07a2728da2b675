"""`echo = "alias"`: an answer whose `model` is the alias the client asked for, and not the model that answered. No I/O.

A stage between the neuron's answer and whatever else translates it. Of a stream every line is looked at, and only one
that names a model is taken apart; an answer without the word costs one search. The name stands at the top (OpenAI), or
in the object that an event is about (`response`, `message`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from gateway.dialects import Translation
from gateway.dialects.json_splice import Span, find
from gateway.errors import GatewayError
from gateway.http import sse

__all__ = ["Echo", "renamed"]

LINE_LIMIT_BYTES = sse.EVENT_LIMIT_BYTES  # of a line that is held until it is whole; the rest of a longer one passes

_KEY = b'"model"'  # as every engine spells it; in a text its quotes are escaped, so texts are not looked into
# The name at the top with nothing but strings and scalars before it, as in nearly every chunk there is: strings are
# taken whole and no bracket is passed over, so it is that key and no other. `find` takes 10 us longer. Possessive, so
# linear in whatever it is given.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PLAIN = re.compile(
    rb"[ \t]*+\{(?:[^\"{}\[\]]++|(?!\"model\"[ \t]*:)" + _STRING + rb')*+"model"[ \t]*+:[ \t]*+(' + _STRING + rb")",
    re.DOTALL,
)
_DATA = b"data:"
_PLACES = ("model", "response", "message")


def renamed(body: bytes, name: bytes) -> bytes:
    """A JSON object's bytes with another model's name; as they were if it names none, or is none.

    Args:
        body: Without anything before it.
        name: A JSON string.
    """
    if _KEY not in body:
        return body
    if (plain := _PLAIN.match(body)) is not None:
        return b"".join((body[: plain.start(1)], name, body[plain.end(1) :]))
    try:
        span = _find(body)
    except ValueError:  # somebody else will say so
        return body
    return body if span is None else b"".join((body[: span.start], name, body[span.end :]))


def _find(body: bytes) -> Span | None:
    """At the top, or else in the object that the event is about."""
    found = find(body, _PLACES)
    if "model" in found:
        return found["model"] if _begins(body, found["model"], b'"') else None
    for about in found.values():
        if _begins(body, about, b"{"):
            inner = find(body[about.start : about.end], _PLACES[:1]).get("model")
            if inner is not None and _begins(
                body, there := Span(about.start + inner.start, about.start + inner.end), b'"'
            ):
                return there
    return None


def _begins(body: bytes, span: Span, first: bytes) -> bool:
    return body.startswith(first, span.start)


class Echo:
    """A `Translation` that renames, and hands what it has renamed to another one if there is one.

    Args:
        alias: What the client asked for.
        then: What stands between the neuron's dialect and the client's; None if they are the same.
        error_event: How a stream of the client's dialect ends in an error, should there be no other translation.
    """

    __slots__ = ("_error_event", "_held", "_in_long_line", "_name", "then")

    def __init__(self, alias: str, then: Translation | None, error_event: Callable[[GatewayError], bytes]) -> None:
        self._name = msgspec.json.encode(alias)
        self.then = then
        self._error_event = error_event
        self._held = bytearray()  # of a line that is not whole yet
        self._in_long_line = False

    @property
    def error(self) -> GatewayError | None:
        """Only another translation finds fault with a stream."""
        return None if self.then is None else self.then.error

    @property
    def keep_alive(self) -> bytes:
        """As the client's dialect has it."""
        return sse.KEEP_ALIVE if self.then is None else self.then.keep_alive

    def feed(self, chunk: bytes) -> bytes:
        """Whole lines, renamed."""
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1  # there is none in what is held
        told = b""
        if end:
            self._held += chunk[:end]
            told = self._lines(self._take_held())
        self._held += chunk[end:]
        if len(self._held) > LINE_LIMIT_BYTES:
            told, self._in_long_line = told + self._take_held(), True
        return told if self.then is None else self.then.feed(told)

    def finish(self) -> bytes:
        """A last line need not be ended (`sse.Reader` says why)."""
        told = self._lines(self._take_held())
        return told if self.then is None else self.then.feed(told) + self.then.finish()

    def fail(self, error: GatewayError) -> bytes:
        """The client's form of an error; what was held of a line is worth nothing any more."""
        return self._error_event(error) if self.then is None else self.then.fail(error)

    def whole(self, body: bytes) -> bytes:
        """An answer that is no stream."""
        told = renamed(body, self._name)
        return told if self.then is None else self.then.whole(told)

    def _take_held(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held

    def _lines(self, data: bytes) -> bytes:
        if _KEY not in data:
            self._in_long_line = self._in_long_line and not data
            return data
        lines = data.splitlines(keepends=True)  # of bytes: at LF, CR and CRLF, as the format has it
        first = 1 if self._in_long_line else 0
        self._in_long_line = False
        return b"".join((*lines[:first], *map(self._line, lines[first:])))

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(_DATA):
            return line
        return _DATA + renamed(line[len(_DATA) :], self._name)
