"""Tool calls in the making: put together from the chunks of a chat completion, and told apart. No translation."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects import loose_json
from gateway.dialects.chat_chunks import ToolCall

__all__ = ["Call", "Calls", "decoded"]


class Call:
    """A tool call in the making."""

    __slots__ = ("_begins_with", "_pieces", "id", "index", "name")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: str | None = None
        self.name = ""
        self._pieces: list[str] = []
        self._begins_with = ""

    def add(self, part: ToolCall) -> str:
        """Take in what a chunk says of it; returns the piece of arguments in it. Id and name count once."""
        if self.id is None and isinstance(part.id, str) and part.id:
            self.id = part.id
        if part.function is None:
            return ""
        if not self.name and isinstance(part.function.name, str):
            self.name = part.function.name
        piece = part.function.text
        if piece:
            self._pieces.append(piece)
            self._begins_with = self._begins_with or piece.lstrip()[:1]
        return piece

    @property
    def arguments(self) -> str:
        """As far as they have come."""
        return "".join(self._pieces)

    @property
    def is_well_begun(self) -> bool:
        """Whether it can be streamed: it has a name, and its arguments begin as an object does."""
        return bool(self.name) and self._begins_with == "{"


class Calls:
    """The calls of one answer, told apart as well as the engine lets us."""

    __slots__ = ("_by_index", "_in_coming")

    def __init__(self) -> None:
        self._in_coming: list[Call] = []
        self._by_index: dict[int, Call] = {}

    @property
    def any(self) -> bool:
        """Whether a tool was called."""
        return bool(self._in_coming)

    @property
    def first(self) -> Call | None:
        """The one that came first; the only one that can be told before the end."""
        return self._in_coming[0] if self._in_coming else None

    @property
    def all_named(self) -> bool:
        """Whether somebody could run them."""
        return all(call.name for call in self._in_coming)

    def in_order(self) -> list[Call]:
        """The first to come, then by index; those that share one (see `find`) as they came."""
        return self._in_coming[:1] + sorted(self._in_coming[1:], key=lambda call: call.index)

    def find(self, part: ToolCall) -> Call:
        """The call a chunk speaks of, perhaps a new one.

        Some engines leave out the index, or number all calls 0: then another id with a name begins another call.
        A new id alone does not: there are engines that make one up for every chunk.
        """
        index = part.index
        if index is None:
            index = self._in_coming[-1].index if self._in_coming else 0
        known = self._by_index.get(index)
        if known is None or _begins_another(known, part):
            known = self._by_index[index] = Call(index)
            self._in_coming.append(known)
        return known


def _begins_another(known: Call, part: ToolCall) -> bool:
    named = part.function is not None and bool(part.function.name)
    return named and bool(part.id) and known.id is not None and part.id != known.id


def decoded(arguments: str) -> Any:
    """What a call's arguments say: nothing is an empty object, JSON in JSON is undone, and no JSON is its text."""
    try:
        value = _decode(arguments)
        if isinstance(value, str):  # encoded twice
            value = _decode(value)
    except msgspec.DecodeError:
        return arguments
    return {} if value is None else value


def _decode(text: str) -> Any:
    return loose_json.decode(_any_decoder, text.strip().encode() or b"{}")


_any_decoder = msgspec.json.Decoder()
