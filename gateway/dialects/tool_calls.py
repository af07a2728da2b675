"""Tool calls of an answer, assembled from the pieces in its chunks. No dialect's own format.

Engines disagree about how a piece names its call: some omit `index`, or send 0 for every call; some send no `id`, or
one `id` for every call; some send the name once, some with every piece. `ToolCalls.add` has the one set of rules. Two
calls are never joined: text after complete arguments begins another call if it comes with a name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec

from gateway.dialects import loose_json
from gateway.dialects.chat_chunks import WHOLE_CALLS_LIMIT, Delta, Function, ToolCall
from gateway.errors import UpstreamMalformedResponse

__all__ = ["AssembledCall", "ToolCalls", "decode_arguments", "whole_calls"]

CALLS_LIMIT = 64  # of those that are only judged
ARGUMENTS_LIMIT_CHARACTERS = 1024 * 1024


class AssembledCall:
    """One tool call, as far as its pieces have arrived.

    Attributes:
        index: The engine's index, or that of the call before if the engine gives none.
        engine_id: The first id that the engine gave the call; None if there was none.
        id: The same; None if another call of the answer has that id.
        name: The first name.
        name_repeated: Whether the name came again after complete arguments. A piece that follows is another call's.
    """

    __slots__ = (
        "_closed",
        "_depth",
        "_escaped",
        "_first_character",
        "_in_string",
        "_pieces",
        "_scanned_pieces",
        "engine_id",
        "id",
        "index",
        "name",
        "name_repeated",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.engine_id: str | None = None
        self.id: str | None = None
        self.name = ""
        self.name_repeated = False
        self._pieces: list[str] = []
        self._first_character = ""
        self._scanned_pieces = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._closed = False

    def add(self, part: ToolCall) -> str:
        """Add what a chunk has of the call. Returns its piece of the arguments. The first name counts."""
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
    def is_complete(self) -> bool:
        """Whether the arguments so far are one JSON object, array or string. Each piece is scanned once."""
        for position in range(self._scanned_pieces, len(self._pieces)):
            self._scan(self._pieces[position])
        self._scanned_pieces = len(self._pieces)
        return self._closed

    def _scan(self, piece: str) -> None:
        """Follow strings and brackets through a piece, without judging the JSON."""
        start = 0
        if self._escaped and piece:
            self._escaped, start = False, 1
        for match in _STRUCTURE.finditer(piece, start):
            found = match[0]
            if found[0] == "\\":
                self._escaped = self._in_string and len(found) == 1
            elif found == '"':
                self._in_string = not self._in_string
                self._closed = not (self._in_string or self._depth)
            elif not self._in_string:
                self._depth += 1 if found in "{[" else -1
                self._closed = self._depth <= 0

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


_STRUCTURE = re.compile(r'\\.|\\\Z|["{}\[\]]', re.DOTALL)


class ToolCalls:
    """All tool calls of one answer."""

    __slots__ = ("_by_id", "_by_index", "_calls", "_characters", "_slots", "is_over_limit")

    def __init__(self) -> None:
        self._calls: list[AssembledCall] = []  # in order of arrival
        self._by_index: dict[int, AssembledCall] = {}  # the newest call of each index
        self._by_id: dict[str, AssembledCall] = {}  # the newest call of each engine's id
        self._slots: list[AssembledCall] = []  # the calls of the last array of several pieces without an index
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

    def add(self, parts: Sequence[ToolCall]) -> list[tuple[AssembledCall, str]]:
        """Add the `tool_calls` of a delta. Returns the call and the new piece of its arguments for each entry.

        An entry belongs to the call that has its `id`, else to the one with its `index`, else to the one at its
        position in the array; a single entry with none of these continues the last call. It begins another call if
        there is no such call, or if it brings a name that is not that call's own: another name, a name with another id,
        or a name and text after complete arguments. Another id alone begins none: some engines invent one per chunk.

        Raises:
            UpstreamMalformedResponse: There are more calls than `WHOLE_CALLS_LIMIT`.
        """
        if len(parts) == 1:
            return [self._add(parts[0], self._calls[-1] if self._calls else None)]
        added = []
        for position, part in enumerate(parts):
            added.append(self._add(part, self._at_position(position, part)))
        self._slots = [call for call, _ in added]
        return added

    def _at_position(self, position: int, part: ToolCall) -> AssembledCall | None:
        if position < len(self._slots):
            return self._slots[position]
        return self._calls[-1] if self._calls and (position == 0 or not _name_of(part)) else None

    def _add(self, part: ToolCall, at_position: AssembledCall | None) -> tuple[AssembledCall, str]:
        id_ = _id_of(part)
        index = _index_in(part)
        call = at_position if index is None else self._by_index.get(index)
        if id_ is not None and (named := self._by_id.get(id_)) is not None:
            if call is None or call.engine_id != id_:
                call = named
            if index in {None, call.index} and _repeats(call, part):
                return call, ""
            if _name_of(part) and index not in {None, call.index}:
                call = None  # one id for every call
        if call is None:
            call = self._begin(index)
        elif _begins_another(call, part, id_):
            before, call = call, self._begin(index)
            if not _name_of(part):
                call.name = before.name
        if id_ is not None and call.engine_id is None:
            self._identify(call, id_)
        return call, call.add(part)

    def _identify(self, call: AssembledCall, id_: str | None) -> None:
        if id_ is not None:
            call.engine_id = id_
            call.id = None if id_ in self._by_id else id_
            self._by_id[id_] = call

    def _begin(self, index: int | None) -> AssembledCall:
        if len(self._calls) >= WHOLE_CALLS_LIMIT:
            raise UpstreamMalformedResponse(f"the neuron's answer has more than {WHOLE_CALLS_LIMIT} tool calls")
        if index is None:
            index = self._calls[-1].index if self._calls else 0
        call = self._by_index[index] = AssembledCall(index)
        self._calls.append(call)
        self._slots = []
        return call

    def add_message(self, calls: Sequence[ToolCall]) -> None:
        """Add the `tool_calls` of a whole message: every entry is a call of its own."""
        for call in calls:
            started = self._begin(len(self._calls))
            self._identify(started, _id_of(call))
            started.add(call)

    def collect(self, parts: Sequence[ToolCall]) -> None:
        """Add the `tool_calls` of a delta, within limits: for judging and comparing, not for a client."""
        if not self._exceeds_limits(parts):
            self.add(parts)

    def collect_message(self, calls: Sequence[ToolCall]) -> None:
        """As `collect`, for the `tool_calls` of a whole message: every entry is a call of its own."""
        for call in calls:
            if self._exceeds_limits((call,), starts_call=True):
                return
            self.add_message((call,))

    def collect_item(self, item: object) -> None:
        """As `collect`, for an item of OpenAI's Responses; only a finished `function_call` has an effect."""
        if isinstance(item, dict) and item.get("type") == "function_call":
            function = Function(item.get("name"), item.get("arguments"))
            self.collect_message([ToolCall(None, item.get("call_id", item.get("id")), function)])

    def _exceeds_limits(self, parts: Sequence[ToolCall], *, starts_call: bool = False) -> bool:
        self._characters += sum([len(part.function.text) for part in parts if part.function is not None])
        if len(self._calls) >= CALLS_LIMIT:
            starts_call = starts_call or any(_name_of(part) or _index_in(part) not in self._by_index for part in parts)
            self.is_over_limit = self.is_over_limit or starts_call
        if self._characters > ARGUMENTS_LIMIT_CHARACTERS:
            self.is_over_limit = True
        return self.is_over_limit


_index_of = attrgetter("index")


def _index_in(part: ToolCall) -> int | None:
    """A number, which some servers write as a float or as text. Anything else counts as none."""
    index = part.index
    if index is None or isinstance(index, int):
        return index
    if isinstance(index, float) and index.is_integer():
        return int(index)
    return int(index) if isinstance(index, str) and _INDEX.fullmatch(index) else None


_INDEX = re.compile(r"[0-9]{1,9}")


def _id_of(part: ToolCall) -> str | None:
    return part.id if isinstance(part.id, str) and part.id else None


def _name_of(part: ToolCall) -> str:
    name = None if part.function is None else part.function.name
    return name if isinstance(name, str) else ""


def _repeats(call: AssembledCall, part: ToolCall) -> bool:
    """Whether a piece with the call's own id is the whole call once more. Some engines end a stream with it."""
    text = "" if part.function is None else part.function.text
    return bool(text) and _name_of(part) == call.name and call.is_complete and text.strip() == call.arguments.strip()


def _begins_another(call: AssembledCall, part: ToolCall, id_: str | None) -> bool:
    """Whether a piece that seems to be the call's begins another one."""
    name = _name_of(part)
    has_text = part.function is not None and bool(part.function.text.strip())
    if not name:
        return call.name_repeated and has_text
    if id_ is not None and call.engine_id is not None and id_ != call.engine_id:
        return True
    if not call.name:
        return False
    if name != call.name:
        return id_ is None or call.engine_id is None or call.is_complete
    if not call.is_complete:
        return False
    call.name_repeated = not has_text
    return has_text


def whole_calls(answer: Delta) -> list[AssembledCall]:
    """The tool calls of a whole message. Raises UpstreamMalformedResponse if one has no name."""
    calls = ToolCalls()
    calls.add_message(answer.tool_calls or ())
    if not calls.all_named:
        raise UpstreamMalformedResponse("the neuron's answer has a tool call without a name")
    return calls.by_index()


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
