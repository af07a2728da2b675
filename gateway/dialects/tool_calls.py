"""Tool calls of an answer, assembled from the pieces in its chunks. No dialect's own format."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec

from gateway.dialects import loose_json
from gateway.dialects.chat_chunks import Function, ToolCall

__all__ = ["AssembledCall", "ToolCalls", "decode_arguments"]

CALLS_LIMIT = 64
ARGUMENTS_LIMIT_CHARACTERS = 1024 * 1024


class AssembledCall:
    """One tool call, as far as its pieces have arrived."""

    __slots__ = ("_first_character", "_pieces", "id", "index", "name")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: str | None = None
        self.name = ""
        self._pieces: list[str] = []
        self._first_character = ""

    def add(self, part: ToolCall) -> str:
        """Add what a chunk has of the call. Returns its piece of the arguments. The first id and name count."""
        if self.id is None and isinstance(part.id, str) and part.id:
            self.id = part.id
        if part.function is None:
            return ""
        if not self.name and isinstance(part.function.name, str):
            self.name = part.function.name
        piece = part.function.text
        if piece:
            self._pieces.append(piece)
            self._first_character = self._first_character or piece.lstrip()[:1]
        return piece

    @property
    def arguments(self) -> str:
        """The arguments that have arrived."""
        return "".join(self._pieces)

    @property
    def can_be_streamed(self) -> bool:
        """Whether it has a name, and arguments that begin like a JSON object."""
        return bool(self.name) and self._first_character == "{"

    @property
    def is_valid(self) -> bool:
        """Whether it has a name, and a JSON object as arguments. Some engines send no text for a tool without any."""
        text = self.arguments
        if not self.name or not text.strip():
            return bool(self.name)
        try:
            msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


class ToolCalls:
    """All tool calls of one answer."""

    __slots__ = ("_by_index", "_calls", "_characters", "is_over_limit")

    def __init__(self) -> None:
        self._calls: list[AssembledCall] = []  # in order of arrival
        self._by_index: dict[int, AssembledCall] = {}
        self._characters = 0
        self.is_over_limit = False
        """Whether `collect` has dropped anything."""

    def __len__(self) -> int:
        """How many calls there are."""
        return len(self._calls)

    @property
    def first(self) -> AssembledCall | None:
        """The call that arrived first: the only one that can be streamed before the others are complete."""
        return self._calls[0] if self._calls else None

    @property
    def all_named(self) -> bool:
        """Whether every call names a tool."""
        return all(call.name for call in self._calls)

    @property
    def valid(self) -> bool | None:
        """Whether a client can use every call. None if there is no call, or more than is kept."""
        if not self._calls or self.is_over_limit:
            return None
        return all(call.is_valid for call in self._calls)

    def in_order(self) -> list[AssembledCall]:
        """The first to arrive, then the others by index; calls with the same index in order of arrival."""
        return self._calls[:1] + sorted(self._calls[1:], key=_index_of)

    def by_index(self) -> list[AssembledCall]:
        """All calls by index; calls with the same index in order of arrival."""
        return sorted(self._calls, key=_index_of)

    def find(self, part: ToolCall) -> AssembledCall:
        """The call that a part of a chunk belongs to, perhaps a new one.

        Some engines omit the index, or send 0 for all calls. Then another id together with a name starts a new call.
        Another id alone does not: some engines invent one for each chunk.
        """
        index = part.index
        if index is None:
            index = self._calls[-1].index if self._calls else 0
        known = self._by_index.get(index)
        if known is None or _starts_another_call(known, part):
            known = self._by_index[index] = AssembledCall(index)
            self._calls.append(known)
        return known

    def collect(self, parts: Sequence[ToolCall]) -> None:
        """Add the `tool_calls` of a delta or a message, within limits: for judging and comparing, not for a client."""
        for position, part in enumerate(parts):
            if part.index is None:
                part.index = position  # of a whole message's calls only the order is known
            self._characters += 0 if part.function is None else len(part.function.text)
            is_new = part.index not in self._by_index
            if self._characters > ARGUMENTS_LIMIT_CHARACTERS or (is_new and len(self._calls) >= CALLS_LIMIT):
                self.is_over_limit = True
                return
            self.find(part).add(part)

    def collect_item(self, item: object) -> None:
        """As `collect`, for an item of OpenAI's Responses; only a finished `function_call` has an effect."""
        if isinstance(item, dict) and item.get("type") == "function_call":
            function = Function(item.get("name"), item.get("arguments"))
            self.collect([ToolCall(len(self), item.get("call_id", item.get("id")), function)])


_index_of = attrgetter("index")


def _starts_another_call(known: AssembledCall, part: ToolCall) -> bool:
    named = part.function is not None and bool(part.function.name)
    return named and bool(part.id) and known.id is not None and part.id != known.id


def decode_arguments(text: str) -> Any:
    """The value of a call's arguments. Empty text is an empty object, JSON in a JSON string is decoded too.

    Text that is not JSON is returned as it is.
    """
    try:
        value = _decode(text)
        if isinstance(value, str):  # encoded twice
            value = _decode(value)
    except msgspec.DecodeError:
        return text
    return {} if value is None else value


def _decode(text: str) -> Any:
    return loose_json.decode(_any_decoder, text.strip().encode() or b"{}")


_any_decoder = msgspec.json.Decoder()
