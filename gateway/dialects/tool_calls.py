"""Whether the tool calls of an answer are ones a client can use: put together from deltas, judged at the end. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["ToolCalls"]

CALLS_LIMIT = 64
ARGUMENTS_LIMIT_BYTES = 1024 * 1024


class ToolCalls:
    """All calls of one answer. Feed it what the answer says of them, in any dialect's order; then ask `valid`."""

    __slots__ = ("_arguments", "_names", "_size", "_too_much")

    def __init__(self) -> None:
        self._names: dict[object, str] = {}
        self._arguments: dict[object, list[str]] = {}
        self._size = 0
        self._too_much = False

    def feed(self, calls: object) -> None:
        """A `tool_calls` list of OpenAI's chat, of a delta or of a whole message."""
        if not isinstance(calls, list):
            return
        for position, call in enumerate(calls):
            if isinstance(call, dict):
                function = call.get("function")
                said = function if isinstance(function, dict) else {}
                # A whole message's calls have no index, only their order.
                self._take(call.get("index", position), said.get("name"), said.get("arguments"))

    def feed_function_call(self, item: object) -> None:
        """A finished `function_call` item of OpenAI's Responses."""
        if isinstance(item, dict) and item.get("type") == "function_call":
            self._take(item.get("call_id", item.get("id")), item.get("name"), item.get("arguments"))

    @property
    def valid(self) -> bool | None:
        """Whether every call names a tool and has a JSON object for arguments; None if there was no call to judge.

        No arguments at all are none: some engines send an empty text for a tool that takes nothing.
        """
        if not self._arguments or self._too_much:
            return None
        return all(self._names.get(key) and _is_object("".join(pieces)) for key, pieces in self._arguments.items())

    def _take(self, key: object, name: object, arguments: object) -> None:
        if not isinstance(key, int | str):
            key = None
        if key not in self._arguments and len(self._arguments) >= CALLS_LIMIT:
            self._too_much = True
            return
        pieces = self._arguments.setdefault(key, [])
        if isinstance(name, str) and name:
            self._names[key] = name
        if isinstance(arguments, str):
            self._size += len(arguments)
            self._too_much = self._too_much or self._size > ARGUMENTS_LIMIT_BYTES
            if not self._too_much:
                pieces.append(arguments)


def _is_object(text: str) -> bool:
    if not text.strip():
        return True
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
