"""The last events of the log, in memory, for the console. A structlog processor adds them."""

from __future__ import annotations

import json
from collections import deque
from itertools import islice
from typing import Any, Final

import msgspec
import structlog

__all__ = ["RecentLog", "recent_log"]

KEPT_EVENTS: Final = 1000
TEXT_CHARACTERS: Final = 2000  # of one value


class RecentLog:
    """The last `KEPT_EVENTS` events.

    Attributes:
        number: How many events there have been. The newest one has this number.
    """

    def __init__(self) -> None:
        self._events: deque[dict[str, Any] | bytes] = deque(maxlen=KEPT_EVENTS)
        self.number = 0

    def __call__(self, _: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Keep an event, as a structlog processor; the event passes unchanged."""
        self.keep(dict(event))
        return event

    def keep(self, event: dict[str, Any] | bytes) -> None:
        """Keep an event that nothing else changes from now on, or its line, which takes a fifth of the memory."""
        self.number += 1
        self._events.append(event)

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """The last events, the oldest first, with values that JSON has. `number` is the last field of each."""
        newest = list(islice(reversed(self._events), limit))
        first = self.number - len(newest) + 1
        return [
            {key: _plain(value) for key, value in _fields(event).items()} | {"number": number}
            for number, event in enumerate(reversed(newest), first)
        ]


def _fields(event: dict[str, Any] | bytes) -> dict[str, Any]:
    if isinstance(event, dict):
        return event
    fields: dict[str, Any]
    try:
        fields = msgspec.json.decode(event)
    except msgspec.DecodeError:  # a lone surrogate, of a file name
        fields = json.loads(event)
    return fields


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, BaseException):  # its traceback is in the log only
        return repr(value)[:TEXT_CHARACTERS]
    return str(value)[:TEXT_CHARACTERS]


recent_log = RecentLog()
"""Of this process, as the log itself is; `log.configure` adds it to the processors."""
