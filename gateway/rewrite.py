"""The outgoing body: only the value of the top-level `model` changes, every other byte stays.

Reading the name and finding its place are one step (`locate`), so that what we route by is what we replace. No I/O,
no routing. A body is never re-encoded: numbers, key order, whitespace, escapes and nested `model` keys belong to the
client (contract section 3).
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple, NoReturn

import msgspec

from gateway.errors import MalformedJson, MissingModelField

__all__ = ["ModelField", "locate", "splice"]


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

    Raises:
        MalformedJson: Not JSON as RFC 8259 has it (NaN, invalid UTF-8 and a BOM included).
        MissingModelField: JSON, but not an object, or `model` is missing, not a string, or there twice.
    """
    fields = _decode(body)
    if not isinstance(fields.model, str):
        raise MissingModelField(_what_model_is(fields.model), param="model")
    start = _place(body)
    literal = _STRING.match(body, start)
    if literal is None:  # pragma: no cover - the body has been decoded: a string stands here
        raise MissingModelField("the request's `model` could not be located", param="model")
    return ModelField(fields.model, start, literal.end(), fields.stream is True)


def splice(body: bytes, field: ModelField, name: str) -> bytes:
    """The body with `name` as its model; the very same object if that is what it says already."""
    if name == field.name:
        return body
    return b"".join((body[: field.start], msgspec.json.encode(name), body[field.end :]))


# Reading...


class _Fields(msgspec.Struct):
    """What routing needs of a body. `object`: a wrong type is for us to name, not for the decoder."""

    model: object = msgspec.UNSET
    stream: object = None


_decoder = msgspec.json.Decoder(_Fields)


def _decode(body: bytes) -> _Fields:
    if not body.isascii():
        _refuse_unless_utf8(body)
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _decode_slowly(body)


def _refuse_unless_utf8(body: bytes) -> None:
    """Strings the decoder was not asked for are skipped, not looked into."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise MalformedJson(
            f"the request body, which must name a `model`, is not UTF-8: {error.reason} at byte {error.start}"
        ) from None


def _decode_slowly(body: bytes) -> _Fields:
    """Say what is wrong, or find that nothing is.

    msgspec refuses two things that are the neuron's business, not ours: lone surrogate escapes, and numbers beyond a
    double where we asked for any type. Numbers stay text here, so that no digit limit of Python's applies.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant, parse_int=str, parse_float=str)
    except RecursionError:
        raise MalformedJson("the request body, which must name a `model`, is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f": {error}" if body else ": it is empty"
        raise MalformedJson(f"the request body, which must name a `model`, is not valid JSON{where}") from None
    if not isinstance(value, dict):
        raise MissingModelField(
            f"the request body must be a JSON object with a string `model`, not {_json_type(value)}", param="model"
        )
    return _Fields(value.get("model", msgspec.UNSET), value.get("stream"))


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedJson(f"the request body, which must name a `model`, is not valid JSON: {name} is not a JSON number")


def _what_model_is(value: object) -> str:
    if value is msgspec.UNSET:
        return "the request body has no `model`: name a model or an alias from /v1/models"
    return f"the request's `model` must be a string, not {_json_type(value)}"


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null", str: "a string"}
    return names.get(type(value), "a number")


# Finding its place...

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_AFTER_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


def _spellings(key: str) -> re.Pattern[bytes]:
    r"""`"key":` in every way JSON can spell it: each letter as it is or as a \\u escape, in either case of hex."""
    letters = []
    for letter in key:
        escape = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(letter):04x}")
        letters.append(rf"(?:{letter}|\\u{escape})")
    return re.compile(f'"{"".join(letters)}"'.encode() + _AFTER_COLON.pattern)


_MODEL_KEY = _spellings("model")


def _place(body: bytes) -> int:
    """Where the value of the top-level `model` begins, in a body known to be valid JSON that has one.

    A key that spells `model` is found by bytes alone when it is the only match: the decoder saw a top-level one, and
    a true key always matches. With more matches (a tool's schema has a property called `model`, say) the brackets
    are counted.
    """
    first = _MODEL_KEY.search(body)
    if first is None:  # pragma: no cover - the decoder saw one, and every spelling is covered
        raise MissingModelField("the request's `model` could not be located", param="model")
    if _MODEL_KEY.search(body, first.start() + 1) is None:
        return first.end()
    places = _top_level_places(body)
    if len(places) != 1:
        raise MissingModelField(
            "the request body has more than one top-level `model`: parsers disagree about which one counts",
            param="model",
        )
    return places[0]


def _top_level_places(body: bytes) -> list[int]:
    """Where each value of a top-level key `model` begins, by counting brackets outside strings."""
    places: list[int] = []
    depth = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif first == _QUOTE and depth == 1 and (key := _MODEL_KEY.match(body, token.start())):
            places.append(key.end())
    return places


_QUOTE = ord('"')
