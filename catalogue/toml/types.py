"""Types of values in our TOML files, as annotations for pydantic, and checks across several keys.

A dataclass that describes a file uses these types for its fields. Its constructor stays unchecked and cheap; only
`validate.read` checks. Messages name types and bounds, never the value: it may be a secret, or a megabyte long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, GetPydanticSchema, Strict, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from catalogue.toml.positions import KeyPath

__all__ = [
    "FILE",
    "INVALID",
    "LARGEST_INTEGER",
    "CheckedTable",
    "Count",
    "CountOrZero",
    "Flag",
    "Integer",
    "Name",
    "Number",
    "NumberOrZero",
    "Percent",
    "String",
    "checked",
    "invalid",
    "kind_of",
    "parsed_from",
    "refuse_duplicates",
]

FILE = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""The pydantic configuration of a dataclass that describes a whole file. The dataclasses inside it inherit it."""

LARGEST_INTEGER = 2**53 - 1  # JSON readers disagree about larger ones (RFC 8259, section 6), and these end up in JSON

INVALID = "invalid"
"""The type of the errors that `invalid` makes."""


def invalid(
    message: str, hint: str | None = None, *, see: KeyPath | None = None, depth: int = 0
) -> PydanticCustomError:
    """What a validator raises.

    Args:
        message: What is wrong, without the value.
        hint: How to correct it. `{line}` in it becomes the line of the key `see`; without a line there is no hint.
        see: Another key, relative to the ancestor `depth` levels up.
        depth: As above.
    """
    return PydanticCustomError(INVALID, "{message}", {"message": message, "hint": hint, "see": see, "depth": depth})


def _check_name(value: str) -> str:
    if not value.strip():
        raise invalid("must not be empty")
    if not value.isprintable():
        raise invalid("must not contain control characters")
    if value != value.strip():
        raise invalid("must not begin or end with white space")
    return value


String: TypeAlias = Annotated[str, Strict()]
Name: TypeAlias = Annotated[str, Strict(), AfterValidator(_check_name)]
"""Text that fits into a log line, a header and a URL: not empty, printable, no white space at its ends."""
Flag: TypeAlias = Annotated[bool, Strict()]
Integer: TypeAlias = Annotated[int, Field(strict=True, ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]
Count: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=LARGEST_INTEGER)]
CountOrZero: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=LARGEST_INTEGER)]
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=LARGEST_INTEGER)]
"""A finite number above 0, whole or not."""
NumberOrZero: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=LARGEST_INTEGER)]
Share: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1)]
Percent: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=100)]


def parsed_from(written: Any, parse: Callable[..., Any]) -> GetPydanticSchema:
    """An annotation for a type that a file writes as `written` and `parse` makes from it."""
    return GetPydanticSchema(lambda _, handler: handler(Annotated[written, AfterValidator(parse)]))


def kind_of(value: object) -> str:
    """TOML's name for the type of a parsed value, with its article."""
    kinds = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    return kinds.get(type(value), "a date or time")


# Checks across several keys.


@dataclass(slots=True)
class CheckedTable:
    """A table or an array while its checks run.

    Args:
        raw: The table or array as parsed from TOML.
        value: What it was read as, or None if it has a fault.
        faulty: The keys that have a fault, relative to this table.
    """

    raw: Any
    value: Any | None
    faulty: set[KeyPath]
    _errors: list[InitErrorDetails] = field(default_factory=list)

    def is_good(self, *key: str | int) -> bool:
        """Whether neither this key nor one inside it has a fault."""
        return all(faulty[: len(key)] != key for faulty in self.faulty)

    def refuse(self, key: KeyPath, message: str, hint: str | None = None, *, see: KeyPath | None = None) -> None:
        """Record a fault at `key`; see `invalid`. Both keys are relative to this table."""
        error = invalid(message, hint, see=see, depth=len(key))
        self._errors.append(InitErrorDetails(type=error, loc=key, input=self.raw))

    def errors(self) -> list[InitErrorDetails]:
        """The recorded faults, for pydantic."""
        return self._errors


def checked(check: Callable[[CheckedTable], None]) -> WrapValidator:
    """An annotation: run `check` on a table or an array also if some of its values are faulty.

    It does not run on a value that is no table or array at all.
    """

    def validate(raw: Any, read: Callable[[Any], Any]) -> Any:
        value, errors = None, list[InitErrorDetails]()
        try:
            value = read(raw)
        except ValidationError as error:
            errors = [_as_details(entry) for entry in error.errors(include_url=False)]
        faulty = {details["loc"] for details in errors}
        if () not in faulty:
            table = CheckedTable(raw, value, faulty)
            check(table)
            errors += table.errors()
        if errors:
            raise ValidationError.from_exception_data("faults", errors)
        return value

    return WrapValidator(validate)


def _as_details(error: Any) -> InitErrorDetails:
    """An error that pydantic has reported, in the form in which it takes errors."""
    context = error.get("ctx", {})
    kind = PydanticCustomError(INVALID, "{message}", context) if error["type"] == INVALID else error["type"]
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=context)


def refuse_duplicates(key: str) -> Callable[[CheckedTable], None]:
    """A check for an array of tables: no two of them may have the same text under `key`."""

    def check(array: CheckedTable) -> None:
        first: dict[str, int] = {}
        for index, value in _texts(array.raw, key):
            if value in first:
                message = f"{json.dumps(value, ensure_ascii=False)} is already used by an earlier entry"
                array.refuse((index, key), message, "the earlier entry is in line {line}", see=(first[value], key))
            first.setdefault(value, index)

    return check


def _texts(entries: object, key: str) -> Iterator[tuple[int, str]]:
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict) and isinstance(entry.get(key), str):
            yield index, entry[key]
