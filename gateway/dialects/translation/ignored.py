"""What a translation leaves out on purpose, as the value of the response header `x-cortex-ignored`.

Content that the model would see is never left out: it is translated or rejected (docs/api.md has the table). What has
no counterpart is named here: tuning fields, unknown fields, tools that another provider runs on its servers, and items
that record the work of such tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

__all__ = ["Ignored", "ignored_fields"]

HEADER_BYTES = 512  # clients and proxies bound a response's head; 8 KiB of it is a common limit
NAME_CHARACTERS = 80  # of one name, which the client chose


class Ignored:
    """Collects the names for one request. A name that is added again counts once."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # a set that keeps its order

    def add(self, *names: str) -> None:
        """Add names, each a field's name or a dotted path."""
        for name in names:
            self._names[name] = None

    def header_value(self, also: Iterable[str] = ()) -> bytes:
        """The names, comma-separated and in order of their first mention; empty if there are none.

        Bounded: names that do not fit are counted at the end, as in `a, b, 7 more`.

        Args:
            also: Names that come after those that were added: what one kind of backend has no use for.
        """
        value = b""
        names = {**self._names, **dict.fromkeys(also)}
        for position, name in enumerate(names):
            encoded = _encoded(name)
            if len(value) + len(encoded) > HEADER_BYTES:
                more = b"%d more" % (len(names) - position)
                return b"%b, %b" % (value, more) if value else more
            value = b"%b, %b" % (value, encoded) if value else encoded
        return value


def _encoded(name: str) -> bytes:
    """A name as a token of the list: anything but printable ASCII, and the list's own comma, is percent-encoded."""
    short = name if len(name) <= NAME_CHARACTERS else f"{name[:NAME_CHARACTERS]}..."
    return b"".join(
        b"%c" % byte if 0x20 < byte < 0x7F and byte not in b",%" else b"%%%02X" % byte for byte in short.encode()
    )


def ignored_fields(
    fields: Mapping[str, msgspec.Raw], understood: Iterable[str], defaults: Mapping[str, frozenset[bytes]]
) -> list[str]:
    """The names of top-level fields that have no effect.

    Args:
        fields: The request's fields.
        understood: The names of those that have an effect, or that the answer repeats.
        defaults: JSON values, by field, that ask for what the gateway does anyway. `null` always does.
    """
    return [
        name
        for name, value in fields.items()
        if name not in understood and (text := bytes(value)) != b"null" and text not in defaults.get(name, ())
    ]
