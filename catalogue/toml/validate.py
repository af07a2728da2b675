"""A parsed TOML document to a value of a dataclass, or every fault: the bridge from pydantic's errors to ours.

Pydantic says what is wrong with a value and which path leads to it. This file adds the line, plain words and a hint,
and drops the parts of a path that exist in our types only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from catalogue.toml.faults import Fault, FaultyFile, dotted, in_file_order
from catalogue.toml.positions import KeyPath, Positions
from catalogue.toml.schema import json_schema, objects_at, properties_at
from catalogue.toml.types import INVALID, LARGEST_INTEGER, kind_of

__all__ = ["Document", "Override", "nearest", "read"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Override:
    """A value that an environment variable has set: the variable's name, and its text as given."""

    variable: str
    text: str = field(repr=False)


@dataclass(slots=True)
class Document:
    """A parsed file, and where its values come from.

    Args:
        path: The file as the operator named it.
        data: The parsed document. `read` may put the text of an override into it.
        positions: The line of each key.
        overrides: The key paths that environment variables have set.
    """

    path: str
    data: dict[str, Any]
    positions: Positions = field(default_factory=Positions)
    overrides: Mapping[KeyPath, Override] = field(default_factory=dict)

    def fault(self, key: KeyPath, message: str, hint: str | None = None) -> Fault:
        """A fault or a warning at `key`, with its file and line, or with the variable that has set it."""
        if (override := self.override_of(key)) is not None:
            return Fault(override.variable, None, dotted(key), message, hint)
        return Fault(self.path, self.positions.line(key), dotted(key) or None, message, hint)

    def override_of(self, key: KeyPath) -> Override | None:
        """The override of this key, or of a table that it is in."""
        around = (self.overrides.get(key[:depth]) for depth in range(len(key), 0, -1))
        return next((override for override in around if override is not None), None)


def read(adapter: TypeAdapter[_T], document: Document, context: Mapping[str, Any]) -> _T:
    """The document as the type of `adapter`. `context` is for the validators of that type.

    Raises:
        FaultyFile: With all faults, in the order of the file. No fault contains a value from the file, and the
            exception has no context that does.
    """
    errors: list[Any] = []
    for _ in range(2):
        try:
            return adapter.validate_python(document.data, context=context)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if not _take_numbers_as_text(document, errors):
            break
    schema = json_schema(adapter)
    raise FaultyFile(in_file_order(_fault(document, schema, error) for error in errors))


def _take_numbers_as_text(document: Document, errors: list[Any]) -> bool:
    """Where text is wanted and a variable's text happens to read as a number, a boolean or a date, take the text.

    A token of digits is still a token. Returns whether the document has changed.
    """
    changed = False
    for error in errors:
        override = document.overrides.get(error["loc"])
        wants_text = error["type"] in {"string_type", "literal_error"}
        if override is not None and wants_text and not isinstance(error["input"], str | list | dict):
            *tables, name = error["loc"]
            table = document.data
            for part in tables:
                table = table[part]
            table[name] = override.text
            changed = True
    return changed


# One error of pydantic's as one fault.


def _fault(document: Document, schema: dict[str, Any], error: Any) -> Fault:
    key = _key_in_file(document.data, error["loc"])
    value, context = error["input"], error.get("ctx", {})
    hint: str | None = None
    match error["type"]:
        case "missing":
            message = "is required and missing"
        case "unexpected_keyword_argument":
            message, hint = f"unknown key `{key[-1]}`", _unknown_key_hint(schema, key)
        case "dataclass_type" | "dict_type":
            message, hint = f"must be a table, not {kind_of(value)}", _table_hint(document, key, error["type"])
        case "tuple_type":
            message, hint = _not_an_array(document, schema, key, value)
        case "literal_error" if isinstance(value, str):
            message, hint = _not_one_of(value, objects_at(schema, key)[0])
        case "string_type" | "literal_error":
            message = f"must be a string, not {kind_of(value)}"
            hint = None if isinstance(value, list | dict) else "write it in quotes"
        case "bool_type" | "int_type" | "float_type":
            wanted = {"bool_type": "true or false", "int_type": "an integer", "float_type": "a number"}[error["type"]]
            message = f"must be {wanted}, not {kind_of(value)}"
            in_quotes = isinstance(value, str) and document.override_of(key) is None
            hint = "write it without quotes" if in_quotes else None
        case kind if kind == INVALID:
            message, hint = context["message"], _invalid_hint(document, error)
        case _:
            message = _out_of_range(error["type"], context, value)
    return document.fault(key, message, hint)


def _key_in_file(data: Any, location: KeyPath) -> KeyPath:
    """The part of a location that the file has, and the first key that it lacks. The rest is internal to our types."""
    key: list[str | int] = []
    for part in location:
        if isinstance(data, dict) and (part in data or part != "[key]"):
            key.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            key.append(part)
            data = data[part]
        else:
            break
    return tuple(key)


def _not_an_array(document: Document, schema: dict[str, Any], key: KeyPath, value: object) -> tuple[str, str]:
    of_tables = all("properties" in element for element in objects_at(schema, (*key, 0)))
    hint = f"write [[{dotted(key)}]], in double brackets" if of_tables else "write it in [square brackets]"
    if isinstance(value, str) and document.override_of(key) is not None:
        hint = "the text of the variable is not valid TOML"
    return f"must be an array{' of tables' * of_tables}, not {kind_of(value)}", hint


def _not_one_of(value: str, schema: dict[str, Any]) -> tuple[str, str | None]:
    choices = schema.get("enum") or [schema.get("const")]
    listed = ", ".join(f'"{choice}"' for choice in choices)
    return f"must be one of {listed}", _did_you_mean(value, choices)


def _out_of_range(kind: str, context: Mapping[str, Any], value: object) -> str:
    if kind == "finite_number" or (isinstance(value, float) and abs(value) > LARGEST_INTEGER):
        return "must be a finite number below 2^53"
    words = {"greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least")}
    name, phrase = words.get(kind, ("le", "at most"))
    bound = context.get(name)
    return "is not valid" if bound is None else f"must be {phrase} {bound if isinstance(bound, int) else f'{bound:g}'}"


# Hints.


def _invalid_hint(document: Document, error: Any) -> str | None:
    hint: str | None = error["ctx"]["hint"]
    if (see := error["ctx"]["see"]) is None:
        return hint
    table = error["loc"][: len(error["loc"]) - error["ctx"]["depth"]]
    other = (*table, *see)
    line = None if document.override_of(other) is not None else document.positions.line(other)
    return None if hint is None or line is None else hint.replace("{line}", str(line))


def _unknown_key_hint(schema: dict[str, Any], key: KeyPath) -> str:
    known, name = list(properties_at(schema, key[:-1])), str(key[-1])
    if (home := _home_of(schema, name)) is not None:
        return f"`{name}` belongs {home}"
    return _did_you_mean(name, known) or f"known keys: {', '.join(known)}"


def _home_of(schema: dict[str, Any], name: str) -> str | None:
    """Where a key belongs that is known at the top level or in one of the tables there."""
    top = properties_at(schema, ())
    if name in top:
        if any("properties" in element for element in objects_at(schema, (name, 0))):
            return f"at the top level, as [[{name}]]"
        if "properties" in objects_at(schema, (name,))[0]:
            return "at the top level, in a [header] of its own"
        return "at the top of the file, before the first [header]"
    return next((f"in [{section}]" for section in top if name in properties_at(schema, (section,))), None)


def _did_you_mean(word: str, known: Iterable[str]) -> str | None:
    near = nearest(word, known)
    return None if near is None else f"did you mean `{near}`?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar to `word`, or None if none is similar."""
    found = difflib.get_close_matches(word.lower()[:100], list(known), n=1)
    return found[0] if found else None


def _table_hint(document: Document, key: KeyPath, kind: str) -> str | None:
    """How to write the table. The header of an array's element has no number: it applies to the newest element."""
    names = tuple(part for part in key if isinstance(part, str))
    if not names:
        return None
    if document.override_of(key) is not None or (kind == "dict_type" and len(key) > 1):
        return "write it in {curly braces}"
    header = f"[{dotted(names)}]"
    return f"write {header if isinstance(key[-1], str) else f'[{header}]'} on a line of its own"
