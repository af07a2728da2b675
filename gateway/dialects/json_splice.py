"""The outgoing body: the value of the top-level `model` changes, and what an alias says of others. The rest stays.

Reading the name and finding its place are one step (`locate`), so that what we route by is what we replace. No I/O,
no routing. A body is never re-encoded: numbers, key order, whitespace, escapes and nested `model` keys belong to the
client (contract section 3).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from gateway.errors import BadRequest, MalformedJson, MissingModelField

__all__ = ["LONGEST_NAME_BYTES", "ModelField", "Span", "edit", "find", "locate", "splice"]

LONGEST_NAME_BYTES = 4096  # it ends up in log lines, messages and headers; the longest on the Hub has 96
_NOTHING: Final = msgspec.Raw()


class ModelField(NamedTuple):
    """The top-level `model` of a JSON body: its value, where its literal stands, and whether a stream was asked for.

    `start` and `end` are byte offsets of the JSON string literal, quotes included.
    """

    name: str
    start: int
    end: int
    stream: bool


def locate(body: bytes) -> ModelField:
    """Find the one top-level string `model` of a JSON object.

    It holds up everybody else, so it costs a few passes in C and no memory, whatever the longest body that is allowed
    may be made of. (Brackets were once counted here one by one: 10 s for 64 MiB of them; and a backtracking pattern
    for strings took 64 bytes for each escape in one.)

    Raises:
        MalformedJson: Not JSON as RFC 8259 has it (NaN, invalid UTF-8 and a BOM included).
        MissingModelField: JSON, but not an object, or `model` is missing, not a string, too long, or there twice.
    """
    if not body.isascii():
        _refuse_unless_utf8(body)
    fields, readable = _decode(body)
    literal = memoryview(fields.model)
    if not literal or literal[0] != _QUOTE:
        raise MissingModelField(_what_model_is(bytes(literal[:1])), param="model")
    if len(literal) > LONGEST_NAME_BYTES:
        raise MissingModelField(
            f"the request's `model` is longer than the {LONGEST_NAME_BYTES} bytes a model's name may have",
            param="model",
        )
    start = _place(fields, readable)
    end = start + len(literal)
    return ModelField(_text(body[start:end]), start, end, bytes(fields.stream) == b"true")


def splice(body: bytes, field: ModelField, name: str) -> bytes:
    """The body with `name` as its model; the very same object if that is what it says already."""
    if name == field.name:
        return body
    return b"".join((body[: field.start], msgspec.json.encode(name), body[field.end :]))


def edit(body: bytes, defaults: Mapping[str, str], forced: Mapping[str, str]) -> bytes:
    """A JSON object's bytes with these top-level members; the very same object if there is nothing to do.

    Args:
        body: Valid JSON, an object with at least one member.
        defaults: Key to JSON text. Inserted where the key is missing; who has said something is not overruled.
        forced: The same, but replaced in its place where it is there.

    Raises:
        BadRequest: A forced key is there twice: which one counts would be for the neuron's parser to say.
    """
    wanted = {**defaults, **forced}
    present = find(body, tuple(wanted))
    for key in present.keys() & forced.keys():
        _refuse_twice(key, present[key], body)
    pieces: list[bytes] = []
    copied = 0
    for key, span in sorted(present.items(), key=lambda item: item[1]):
        if key in forced:
            pieces += (body[copied : span.start], forced[key].encode())
            copied = span.end
    missing = [
        b"%b:%b," % (msgspec.json.encode(key), text.encode()) for key, text in wanted.items() if key not in present
    ]
    if not pieces and not missing:
        return body
    edited = b"".join((*pieces, body[copied:]))
    inside = edited.index(b"{") + 1
    return b"".join((edited[:inside], *missing, edited[inside:]))


def _refuse_twice(key: str, span: Span, body: bytes) -> None:
    if find(_up_to_key_before(span.start, body), (key,)):
        raise BadRequest(
            f"the request body has more than one top-level `{key}`: parsers disagree about which one counts", param=key
        )


# Finding members...


class Span(NamedTuple):
    """Where a value stands in a body, in bytes."""

    start: int
    end: int


def find(body: bytes, keys: tuple[str, ...]) -> dict[str, Span]:
    """Where the outermost object of a body has the values of these keys; of a key that is there twice, the last.

    Costs a pass in C whatever else is in the body, as `locate` does. There are no quotes or backslashes in the keys
    (`catalogue.aliases` sees to that), however a body may spell them.

    Raises:
        ValueError: It is no JSON object.
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


@lru_cache(maxsize=1024)  # there are as many as aliases with parameters, and a few of our own
def _decoder_of(keys: Iterable[str]) -> msgspec.json.Decoder[Any]:
    names = {f"field_{index}": key for index, key in enumerate(keys)}
    fields = [(name, msgspec.Raw, _NOTHING) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Wanted", fields, rename=names))


# Reading...


class _Fields(msgspec.Struct):
    """What routing needs of a body, as it stands there: views, not copies. Of a key that is there twice, the last."""

    model: msgspec.Raw = _NOTHING
    stream: msgspec.Raw = _NOTHING


_decoder = msgspec.json.Decoder(_Fields)
_skipper = msgspec.json.Decoder(msgspec.Raw)


def _refuse_unless_utf8(body: bytes) -> None:
    """Strings the decoder was not asked for are skipped, not looked into."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"is not UTF-8: {error.reason} at byte {error.start}") from None


def _decode(body: bytes) -> tuple[_Fields, bytes]:
    """The fields, and what they are views of: the body, or one as long that msgspec can read.

    It refuses lone surrogate escapes even in what it skips. They are the neuron's business, not ours.
    """
    try:
        return _skim(body), body
    except MalformedJson:
        readable = _without_surrogates(body)
        if readable == body:
            raise
    return _skim(readable), readable


def _without_surrogates(body: bytes) -> bytes:
    r"""Any \udXXX, half or not, becomes a \u8XXX: what is skipped may say anything that is as long as before."""
    return body.replace(rb"\ud", rb"\u8").replace(rb"\uD", rb"\u8")


def _skim(body: bytes) -> _Fields:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        _refuse_unless_json(body)
        raise MissingModelField(
            f"the request body must be a JSON object with a string `model`, not {_json_type(body.lstrip()[:1])}",
            param="model",
        ) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


def _refuse_unless_json(body: bytes) -> None:
    try:
        _skipper.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


def _not_json(body: bytes, error: Exception) -> MalformedJson:
    if isinstance(error, RecursionError):
        return _malformed("is nested too deeply")
    told = str(error).removeprefix("JSON is malformed: ")
    return _malformed(f"is not valid JSON: {told if body.strip() else 'it is empty'}")


def _malformed(what: str) -> MalformedJson:
    return MalformedJson(f"the request body, which must name a `model`, {what}")


def _text(literal: bytes) -> str:
    """What a string literal says."""
    try:
        return str(msgspec.json.decode(literal, type=str))
    except msgspec.DecodeError:  # half a surrogate pair: no model can have such a name, no log can hold it
        raise MissingModelField("the request's `model` is not Unicode text", param="model") from None


def _what_model_is(first: bytes) -> str:
    if not first:
        return "the request body has no `model`: name a model or an alias from /v1/models"
    return f"the request's `model` must be a string, not {_json_type(first)}"


def _json_type(first: bytes) -> str:
    """What a JSON value is, by its first byte."""
    names = {b"{": "an object", b"[": "an array", b"t": "a boolean", b"f": "a boolean", b"n": "null", b'"': "a string"}
    return names.get(first, "a number")


# Finding its place...

_AFTER_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_QUOTE = ord('"')


def _spellings(key: str) -> re.Pattern[bytes]:
    r"""`"key":` in every way JSON can spell it: each letter as it is or as a \\u escape, in either case of hex."""
    letters = []
    for letter in key:
        escape = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(letter):04x}")
        letters.append(rf"(?:{letter}|\\u{escape})")
    return re.compile(f'"{"".join(letters)}"'.encode() + _AFTER_COLON.pattern)


_MODEL_KEY = _spellings("model")


def _place(fields: _Fields, body: bytes) -> int:
    """Where the value of the top-level `model` begins in the body that was decoded.

    A key that spells `model` is found by its bytes when it is the only match: the decoder saw a top-level one, and a
    true key always matches. With more matches (a tool's schema has a property called `model`, say) the decoder is
    asked where it found the last top-level one, and whether there is another before that.
    """
    first = _MODEL_KEY.search(body)
    if first is None:  # pragma: no cover - the decoder saw one, and every spelling is covered
        raise MissingModelField("the request's `model` could not be located", param="model")
    if _MODEL_KEY.search(body, first.start() + 1) is None:
        return first.end()
    start = _address(fields.model) - _address(body)
    if first.end() != start and memoryview(_skim(_up_to_key_before(start, body)).model):
        raise MissingModelField(
            "the request body has more than one top-level `model`: parsers disagree about which one counts",
            param="model",
        )
    return start


def _up_to_key_before(start: int, body: bytes) -> bytes:
    """The object without the member whose value begins at `start`, and without what comes after that."""
    key_end = body.rindex(b'"', 0, start)  # the key spells `model`, so there is no quote in it
    return body[: body.rindex(b'"', 0, key_end)] + b'"":0}'


class _Buffer(ctypes.Structure):
    """`Py_buffer` of the C API (https://docs.python.org/3/c-api/buffer.html); only where it begins is of interest."""

    _fields_ = (("begin", ctypes.c_void_p), ("rest", ctypes.c_void_p * 10))


def _address(owner: bytes | msgspec.Raw) -> int:
    """Where its bytes are in memory: the one thing that tells where in a body the decoder found something."""
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
