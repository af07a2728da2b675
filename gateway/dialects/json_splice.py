"""Replaces single values in a JSON body: the top-level `model`, and parameters of an alias. The rest keeps its bytes.

A body is never re-encoded: its numbers, order of keys, white space, escapes and nested `model` keys reach the neuron as
the client wrote them. `locate` reads the name and its position in one step, so the gateway replaces exactly the value
that it routes by. Why this is not left to `json.loads` and `dumps`: docs/decisions/0010-body-splicing.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from gateway.dialects.large_bodies.outline import Outline, outline_of
from gateway.dialects.large_bodies.spliced_body import COPIED_BYTES, Edit, SplicedBody, with_edits
from gateway.dialects.token_reservation import (
    ABSENT,
    DECODERS,
    NO_PROMPT,
    NO_TOKENS,
    BodyMembers,
    ExpectedTokens,
    expected_tokens,
)
from gateway.errors import BadRequest, MalformedJson, MissingModelField

__all__ = [
    "LONGEST_NAME_BYTES",
    "ModelField",
    "Span",
    "edit",
    "find",
    "locate",
    "locate_in_outline",
    "rename",
    "splice",
]

LONGEST_NAME_BYTES = 4096  # the name goes into log lines, messages and headers; the longest on Hugging Face has 96


class ModelField(msgspec.Struct, frozen=True):
    """The top-level `model` of a JSON body, whether its top-level `stream` is true, and how many tokens it may use.

    Attributes:
        name: The model's name.
        start, end: The byte offsets of its JSON string, quotes included.
        stream: Whether the client wants a stream.
        members: Views of the body; None for a long one.
        expected: For a long body, what the request may use.
        outline: For other parsers; None if the body is its own.
    """

    name: str
    start: int
    end: int
    stream: bool
    members: BodyMembers | None = None
    expected: ExpectedTokens = NO_TOKENS
    outline: Outline | None = None

    def expected_tokens(self, removed_bytes: int = 0) -> ExpectedTokens:
        """An estimate of the tokens that the request may use.

        Args:
            removed_bytes: How much shorter the outline is, if it was read in place of the body.
        """
        return self.expected if self.members is None else expected_tokens(self.members, removed_bytes)


def locate(body: bytes, path: str = "") -> ModelField:
    """Find the one top-level string `model` of a JSON object.

    All other requests wait meanwhile, so the cost is a few passes in C and a copy or two of what is read, whatever the
    body contains. Two earlier versions failed here: counting brackets in Python took 10 s for 64 MiB of them, and a
    backtracking pattern for strings took 64 bytes of memory per escape.

    Args:
        body: The whole body.
        path: The endpoint's, which decides what is a prompt; without one nothing is.

    Raises:
        MalformedJson: It is not JSON by RFC 8259. NaN, invalid UTF-8 and a byte order mark are not either.
        MissingModelField: It is not an object, or `model` is missing, not a string, too long, or there more than once.
    """
    if not body.isascii():
        _reject_unless_utf8(body)
    decoder = DECODERS.get(path, NO_PROMPT)
    try:
        members, readable = decoder.decode(body), body
    except (msgspec.DecodeError, RecursionError):
        readable = _without_surrogates(body)
        members = _skim(readable, decoder)
    literal = bytes(members.model)
    if literal[:1] != b'"':
        raise MissingModelField(_model_problem(literal[:1]), param="model")
    if len(literal) > LONGEST_NAME_BYTES:
        raise MissingModelField(
            f"`model` is longer than {LONGEST_NAME_BYTES} bytes: name a model or an alias from /v1/models",
            param="model",
        )
    start = _offset_of_model(members.model, literal, readable)
    end = start + len(literal)
    is_stream = members.stream is not ABSENT and bytes(members.stream) == _TRUE
    name = _text(literal if readable is body else body[start:end])
    return ModelField(name, start, end, is_stream, members)


def locate_in_outline(body: bytes, outline: Outline, path: str = "") -> ModelField:
    """As `locate`, for a long body, of which mostly only the outline is read. What it returns has no views of the body.

    Raises:
        MalformedJson, MissingModelField: As `locate`.
    """
    if outline.cuts:
        try:
            found = locate(outline.text, path)
        except MalformedJson:  # so is the body, or a run is not in a string: only the body itself can tell
            return locate_in_outline(body, Outline(body), path)
        start, end, kept = outline.offset(found.start), outline.offset(found.end), outline
    else:
        found = locate(body, path)
        start, end, kept = found.start, found.end, None
    expected = found.expected_tokens(outline.removed_bytes)
    return ModelField(found.name, start, end, found.stream, None, expected, kept)


def splice(body: bytes, field: ModelField, name: str) -> bytes | SplicedBody:
    """The body with `name` as its model; the same object if it has that name already. A large one is not copied."""
    if name == field.name:
        return body
    if len(body) > COPIED_BYTES:
        return with_edits(body, (rename(field, name),), field.outline)
    return b"".join((body[: field.start], _literal(name), body[field.end :]))


@lru_cache(maxsize=1024)  # neurons name models, not clients, so there are few
def _literal(name: str) -> bytes:
    return msgspec.json.encode(name)


def rename(field: ModelField, name: str) -> Edit:
    """The edit that makes `name` the body's model."""
    return Edit(field.start, field.end, msgspec.json.encode(name))


def edit(
    body: bytes | SplicedBody,
    defaults: Mapping[str, str],
    forced: Mapping[str, str],
    outline: Outline | None = None,
) -> bytes | SplicedBody:
    """A JSON object with these top-level members; the same object if nothing changes. A large one is not copied.

    Args:
        body: A valid JSON object with at least one member.
        defaults: JSON text by key. Inserted if the body does not have the key.
        forced: JSON text by key. Inserted, or put in place of the client's value.
        outline: The body's, as `locate` has found it, if the caller has it.

    Raises:
        BadRequest: The body has a forced key more than once. The neuron's parser would decide which one counts.
    """
    wanted = {**defaults, **forced}
    if isinstance(body, SplicedBody) and body.adds(wanted):
        body = body.joined()
    if isinstance(body, bytes):
        outline = outline or _outline(body)
        return with_edits(body, _edits(outline, wanted, forced), outline)
    edits = _edits(body.outline, wanted, forced)
    if body.overlaps(edits):
        return edit(body.joined(), defaults, forced)
    return with_edits(body.body, (*body.edits, *edits), body.outline)


def _outline(body: bytes) -> Outline:
    """The outline of a JSON object; a short body, or one with runs outside strings, is its own."""
    if len(body) > COPIED_BYTES:
        outline = outline_of(body)
        with suppress(ValueError):
            find(outline.text, ())
            return outline
    return Outline(body)


def _edits(outline: Outline, wanted: Mapping[str, str], forced: Mapping[str, str]) -> tuple[Edit, ...]:
    """What gives a body the wanted members. The missing ones come first in it, in their order."""
    text = outline.text
    present = find(text, tuple(wanted))
    for key in present.keys() & forced.keys():
        _reject_duplicate(key, present[key], text)
    edits = [
        Edit(outline.offset(span.start), outline.offset(span.end), forced[key].encode())
        for key, span in present.items()
        if key in forced
    ]
    missing = [
        b"%b:%b," % (msgspec.json.encode(key), value.encode()) for key, value in wanted.items() if key not in present
    ]
    if missing:
        inside = text.index(b"{") + 1
        edits.append(Edit(inside, inside, b"".join(missing)))
    return tuple(edits)


def _reject_duplicate(key: str, span: Span, body: bytes) -> None:
    if find(_up_to_key_before(span.start, body), (key,)):
        raise BadRequest(
            f"the request body has more than one top-level `{key}`: send it once, since parsers disagree about which "
            "one counts",
            param=key,
        )


# Finding members...


class Span(NamedTuple):
    """The position of a value in a body: byte offsets."""

    start: int
    end: int


def find(body: bytes, keys: tuple[str, ...]) -> dict[str, Span]:
    """The positions of the values of these keys in the outermost object; for a repeated key, of the last value.

    Costs one pass in C, whatever the body contains. The keys must have no quotes or backslashes (`catalogue.aliases`
    rejects such keys); the body may spell them with escapes.

    Raises:
        ValueError: The body is not a JSON object.
    """
    decoder = _decoder_of(keys)
    try:
        found = decoder.decode(body)
    except msgspec.DecodeError:
        body = _without_surrogates(body)
        try:
            found = decoder.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    begin = _address(body)
    spans = {}
    for key, name in zip(keys, decoder.type.__struct_fields__, strict=True):
        value = memoryview(getattr(found, name))
        if value:
            start = _address(getattr(found, name)) - begin
            spans[key] = Span(start, start + len(value))
    return spans


@lru_cache(maxsize=1024)  # one per alias with parameters, and a few more
def _decoder_of(keys: Iterable[str]) -> msgspec.json.Decoder[Any]:
    names = {f"field_{index}": key for index, key in enumerate(keys)}
    fields = [(name, msgspec.Raw, ABSENT) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Wanted", fields, rename=names))


# Reading...


_skipper = msgspec.json.Decoder(msgspec.Raw)


def _reject_unless_utf8(body: bytes) -> None:
    """Needed because msgspec does not validate the strings that it skips."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"is not UTF-8: {error.reason} at byte {error.start}") from None


def _without_surrogates(body: bytes) -> bytes:
    r"""Every \udXXX becomes \u8XXX. Skipped strings may have any content, as long as offsets stay the same.

    msgspec rejects lone surrogate escapes even in what it skips. The neuron decides whether to accept those.
    """
    return body.replace(rb"\ud", rb"\u8").replace(rb"\uD", rb"\u8")


def _skim(body: bytes, decoder: msgspec.json.Decoder[BodyMembers]) -> BodyMembers:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        _reject_unless_json(body)
        raise MissingModelField(
            f"the request body must be a JSON object with a string `model`, not {_json_type(body.lstrip()[:1])}",
            param="model",
        ) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


def _reject_unless_json(body: bytes) -> None:
    try:
        _skipper.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


def _not_json(body: bytes, error: Exception) -> MalformedJson:
    if isinstance(error, RecursionError):
        return _malformed("is nested too deeply")
    reason = str(error).removeprefix("JSON is malformed: ")
    return _malformed(f"is not valid JSON: {reason if body.strip() else 'it is empty'}")


def _malformed(problem: str) -> MalformedJson:
    return MalformedJson(f"the request body {problem}; it must be a JSON object with a string `model`")


@lru_cache(maxsize=256)  # clients choose names, of at most `LONGEST_NAME_BYTES`, but most requests have one of a few
def _text(literal: bytes) -> str:
    """The value of a JSON string."""
    try:
        return str(msgspec.json.decode(literal, type=str))
    except msgspec.DecodeError:  # half a surrogate pair, which neither a log nor a header can hold
        raise MissingModelField(
            "`model` has an invalid Unicode escape: half of a surrogate pair", param="model"
        ) from None


def _model_problem(first: bytes) -> str:
    if not first:
        return "the request body has no `model`: name a model or an alias from /v1/models"
    return f"`model` must be a string, not {_json_type(first)}"


def _json_type(first: bytes) -> str:
    """The type of a JSON value, by its first byte."""
    names = {b"{": "an object", b"[": "an array", b"t": "a boolean", b"f": "a boolean", b"n": "null", b'"': "a string"}
    return names.get(first, "a number")


# Finding its position...

_QUOTES_OF_A_KEY: Final = 2
_TRUE: Final = b"true"


def _offset_of_model(value: msgspec.Raw, literal: bytes, body: bytes) -> int:
    """The offset of the top-level `model`'s value in the body that was decoded. Rejects a second top-level `model`.

    In a short body, text that occurs once is found sooner than by its address. msgspec keeps the last of several
    members. Decoding what precedes that one tells whether there is another; usually little does, since most clients
    send `model` first.
    """
    start = body.find(literal) if len(body) <= _SHORT_BYTES else -1
    if start < 0 or body.find(literal, start + 1) > 0:
        start = _address(value) - _address(body)
    if body.count(b'"', 0, start) == _QUOTES_OF_A_KEY:
        return start  # nothing precedes it but its own key
    if memoryview(_skim(_up_to_key_before(start, body), NO_PROMPT).model):
        raise MissingModelField(
            "the request body has more than one top-level `model`: send it once, since parsers disagree about which "
            "one counts",
            param="model",
        )
    return start


_SHORT_BYTES = 32 * 1024


def _up_to_key_before(start: int, body: bytes) -> bytes:
    """The object up to the member whose value begins at `start`, without that member, closed as a valid object."""
    key_end = body.rindex(b'"', 0, start)  # the key has no quote in it, so the quote before this one opens it
    return body[: body.rindex(b'"', 0, key_end)] + b'"":0}'


class _Buffer(ctypes.Structure):
    """`Py_buffer` of the C API (https://docs.python.org/3/c-api/buffer.html). Only its first field is read."""

    _fields_ = (("begin", ctypes.c_void_p), ("rest", ctypes.c_void_p * 10))


def _address(owner: bytes | msgspec.Raw) -> int:
    """The memory address of its bytes. msgspec reports no offsets, but a `Raw` is a view into the body."""
    buffer = _Buffer()
    _get_buffer(owner, ctypes.byref(buffer), _SIMPLE)
    _release_buffer(ctypes.byref(buffer))
    return int(buffer.begin or 0)


_SIMPLE = 0
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None
