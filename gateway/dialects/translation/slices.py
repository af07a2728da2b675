"""Decodes large requests in slices: an item, a block or a tool at a time.

msgspec keeps the interpreter's lock while it decodes. A body of 3 MB with 120,000 blocks takes 100 ms in one piece, and
nothing else runs meanwhile, whichever thread decodes. In slices, another thread can run after each.

A small body or content is decoded in one piece, which is several times faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from gateway.dialects.fields import decode_field
from gateway.dialects.translation.bounds import check_count
from gateway.errors import BadRequest

__all__ = ["SLICED_BYTES", "MemberReader", "RequestReader", "decode_list", "is_sliced"]

SLICED_BYTES = 64 * 1024  # at most 20,000 tiny blocks: 15 ms

T = TypeVar("T", bound=msgspec.Struct)
Item = TypeVar("Item")

MemberReader: TypeAlias = Callable[[msgspec.Raw, str], Any]
"""Decodes the JSON of a member whose path is given. Raises BadRequest."""

_raws_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


_BRACKET = ord("[")


def is_sliced(text: msgspec.Raw) -> bool:
    """Whether a piece of JSON is to be decoded in slices: it is a list, and long."""
    view = memoryview(text)
    return len(view) > SLICED_BYTES and view[0] == _BRACKET


def decode_list(text: msgspec.Raw, path: str, limit: int, item: Callable[[msgspec.Raw, str], Item]) -> list[Item]:
    """Decode a list item by item.

    Args:
        text: A JSON list.
        path: Its path in the request.
        limit: How many items it may have.
        item: Decodes the item at a path.

    Raises:
        BadRequest: There are too many, or an item has another shape.
    """
    raws: list[msgspec.Raw] = decode_field(_raws_decoder, text, path)
    check_count(raws, path, limit)
    return [item(raw, f"{path}.{index}") for index, raw in enumerate(raws)]


class RequestReader(Generic[T]):
    """Reads request bodies of one API.

    Args:
        exact: A subtype of `loose` that also has the fields without effect that clients usually send, and forbids all
            others. It spares most requests the second pass that finds fields by name.
        loose: The type of a request.
        lists: The members that a large body has most of its values in, and what reads each. Those that are not required
            are None if they are absent.
    """

    def __init__(self, exact: type[T], loose: type[T], lists: Mapping[str, MemberReader]) -> None:
        self._usual = tuple(exact.__annotations__)
        self._lists = lists
        self._required = {field.name for field in msgspec.structs.fields(loose) if field.required}
        self._exact, self._loose = msgspec.json.Decoder(exact), msgspec.json.Decoder(loose)
        self._exact_frame, self._loose_frame = self._frame_of(exact), self._frame_of(loose)

    def _frame_of(self, request: type[T]) -> msgspec.json.Decoder[T]:
        """A decoder that leaves the lists as they are."""
        members = [(name, msgspec.Raw, msgspec.field(default_factory=msgspec.Raw)) for name in self._lists]
        forbids = request.__struct_config__.forbid_unknown_fields
        frame = msgspec.defstruct(f"{request.__name__}Frame", members, bases=(request,), forbid_unknown_fields=forbids)
        return msgspec.json.Decoder(frame)

    def read(self, body: bytes) -> tuple[T, Mapping[str, msgspec.Raw]]:
        """Decode a body that `json_splice.locate` accepts.

        Returns:
            The request, and its fields without effect, by name. It may have fields with an effect as well.

        Raises:
            BadRequest: As `decode_field`.
        """
        if len(body) <= SLICED_BYTES:
            return self._read(body, self._exact, self._loose)
        request, fields = self._read(body, self._exact_frame, self._loose_frame)
        for name, reader in self._lists.items():
            text: msgspec.Raw = getattr(request, name)
            if not text and name in self._required:
                decode_field(self._loose, b"{}")  # raises, and names what is missing
            setattr(request, name, reader(text, name) if text else None)
        return request, fields

    def _read(
        self, body: bytes, exact: msgspec.json.Decoder[T], loose: msgspec.json.Decoder[T]
    ) -> tuple[T, Mapping[str, msgspec.Raw]]:
        try:
            request = decode_field(exact, body)
        except BadRequest:
            return decode_field(loose, body), decode_field(_fields_decoder, body)
        return request, {name: value for name in self._usual if (value := getattr(request, name))}
