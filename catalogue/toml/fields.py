"""Typed fields out of a parsed TOML document, every fault collected. Knows no key of any file by name.

`models.toml` and `cortex.toml` are each described by rows of `Field`: a key, the check its value must pass, whether it
may be left out. Reading goes through all rows whatever happens, so an operator hears of ten mistakes in one go.

A check takes the raw value and its `Place`, and returns the value to use or calls `place.refuse`. Messages name types
and bounds, never the value they complain of: it may be a secret, or a megabyte.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from catalogue.models import Fault
from catalogue.toml.positions import KeyPath, Positions

LARGEST_INTEGER = 2**53 - 1  # beyond it JSON readers disagree (RFC 8259, section 6), and all of these end up in JSON


class Refused(Exception):
    """The value at hand is unusable; the fault is already in the report. Never leaves the reading of a file."""


@dataclass(frozen=True, slots=True)
class Override:
    """A value that came from elsewhere than the file: an environment variable's name and its text as given."""

    variable: str
    text: str = field(repr=False)


@dataclass(slots=True)
class Report:
    """What is wrong, or merely odd, about one document.

    Args:
        path: The file as the operator named it.
        positions: Where its keys stand.
        homes: For keys that have one place only: where that is. Used as a hint when one turns up elsewhere.
        overrides: Which key paths did not come from the file.
    """

    path: str
    positions: Positions = field(default_factory=Positions)
    homes: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[KeyPath, Override] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def fault_at(self, key: KeyPath, message: str, hint: str | None = None) -> Fault:
        """A fault with its place filled in; it is for the caller to put it among `faults` or `warnings`."""
        if (override := self.override_of(key)) is not None:
            return Fault(override.variable, None, dotted(key), message, hint)
        return Fault(self.path, self.positions.line(key), dotted(key) or None, message, hint)

    def override_of(self, key: KeyPath) -> Override | None:
        """What put a value there, or around there, if not the file."""
        around = (self.overrides.get(key[:depth]) for depth in range(len(key), 0, -1))
        return next((override for override in around if override is not None), None)


@dataclass(frozen=True, slots=True)
class Place:
    """One key path in one report."""

    report: Report
    key: KeyPath = ()

    def __truediv__(self, part: str | int) -> Place:
        """The place of a key or an element below this one."""
        return Place(self.report, (*self.key, part))

    @property
    def line(self) -> int | None:
        """Where it stands in the file, if it is in there."""
        return None if self.report.override_of(self.key) is not None else self.report.positions.line(self.key)

    def fault(self, message: str, hint: str | None = None) -> None:
        """Record a reason to refuse the file, and go on."""
        self.report.faults.append(self.report.fault_at(self.key, message, hint))

    def warn(self, message: str, hint: str | None = None) -> None:
        """Record something odd that does not refuse the file."""
        self.report.warnings.append(self.report.fault_at(self.key, message, hint))

    def refuse(self, message: str, hint: str | None = None) -> NoReturn:
        """Record a fault and give up on this value."""
        self.fault(message, hint)
        raise Refused


Check: TypeAlias = Callable[[object, Place], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One row: what a key's value must be, and whether the key must be there."""

    check: Check
    required: bool = False


Fields: TypeAlias = Mapping[str, Field]


# Tables and arrays.


def read_fields(value: object, fields: Fields, place: Place) -> dict[str, Any]:
    """The values that are present and pass their checks, by key.

    Raises:
        Refused: `value` is no table at all. Anything wrong inside is in the report and absent from the result.
    """
    if not isinstance(value, dict):
        place.refuse(f"must be a table, not {kind_of(value)}", _header_hint(place))
    for name in value:
        if name not in fields:
            (place / name).fault(f"unknown key `{name}`", _unknown_key_hint(name, fields, place))
    read: dict[str, Any] = {}
    for name, row in fields.items():
        if name not in value:
            if row.required:
                (place / name).fault("is required and missing")
            continue
        try:
            read[name] = row.check(value[name], place / name)
        except Refused:
            continue
    return read


def record(build: Callable[..., Any], fields: Fields) -> Check:
    """A table that becomes `build(**values)`."""

    def check(value: object, place: Place) -> Any:
        already = len(place.report.faults)
        read = read_fields(value, fields, place)
        if len(place.report.faults) > already:
            raise Refused
        return build(**read)

    return check


def array(check: Check, *, of_tables: bool = False) -> Check:
    """An array, as a tuple, whose every element passes `check`."""

    def check_all(value: object, place: Place) -> tuple[Any, ...]:
        if not isinstance(value, list):
            hint = (
                f"write [[{dotted(place.key)}]], in double brackets" if of_tables else "write it in [square brackets]"
            )
            if place.report.override_of(place.key) is not None and isinstance(value, str):
                hint = "its text does not read as TOML"
            place.refuse(f"must be an array{' of tables' * of_tables}, not {kind_of(value)}", hint)
        read, refused = [], False
        for index, element in enumerate(value):
            try:
                read.append(check(element, place / index))
            except Refused:
                refused = True
        if refused:
            raise Refused
        return tuple(read)

    return check_all


def refuse_duplicates(entries: object, name: str, place: Place) -> None:
    """A fault at every table of the array whose `name` an earlier one already has. Other oddities are for others."""
    seen: dict[str, int | None] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, str):
            continue
        if value in seen:
            line = seen[value]
            hint = None if line is None else f"that is in line {line}"
            (place / index / name).fault(f"{json.dumps(value, ensure_ascii=False)} is taken by an earlier entry", hint)
        seen.setdefault(value, (place / index / name).line)


# Single values.


def text(value: object, place: Place) -> str:
    """Any string. From the environment also what happens to look like a number: a token of digits is still a token."""
    override = place.report.overrides.get(place.key)
    if override is not None and not isinstance(value, str | list | dict):
        return override.text
    if not isinstance(value, str):
        place.refuse(f"must be a string, not {kind_of(value)}", _no_quotes_hint(value))
    return value


def name(value: object, place: Place) -> str:
    """A string that can stand in a log line, a header and a URL: not empty, printable, no white space at its ends."""
    value = text(value, place)
    if not value.strip():
        place.refuse("must not be empty")
    if not value.isprintable():
        place.refuse("must not contain control characters")
    if value != value.strip():
        place.refuse("must not begin or end with white space")
    return value


def one_of(*choices: str) -> Check:
    """One of a few words."""

    def check(value: object, place: Place) -> str:
        value = text(value, place)
        if value not in choices:
            place.refuse(f"must be one of {', '.join(map(json.dumps, choices))}", _did_you_mean(value, choices))
        return value

    return check


def boolean(value: object, place: Place) -> bool:
    """`true` or `false`."""
    if not isinstance(value, bool):
        place.refuse(f"must be true or false, not {kind_of(value)}", _quotes_hint(value, place))
    return value


def integer(minimum: int = -LARGEST_INTEGER, maximum: int = LARGEST_INTEGER) -> Check:
    """A whole number within bounds, both inclusive. `true` is not a number."""

    def check(value: object, place: Place) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            place.refuse(f"must be an integer, not {kind_of(value)}", _quotes_hint(value, place))
        _refuse_outside(value, minimum, maximum, place)
        return value

    return check


def number(minimum: float = -math.inf, maximum: float = math.inf, *, above: bool = False) -> Check:
    """A finite number, whole or not; at least `minimum`, or more than it if `above`; at most `maximum`."""

    def check(value: object, place: Place) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            place.refuse(f"must be a number, not {kind_of(value)}", _quotes_hint(value, place))
        if not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:  # NaN fails every comparison, so this one too
            place.refuse("must be a finite number of a sensible size")
        if value < minimum or (above and value == minimum):
            place.refuse(f"must be {'more than' if above else 'at least'} {minimum:g}")
        if value > maximum:
            place.refuse(f"must be at most {maximum:g}")
        return float(value)

    return check


DEEPEST_JSON = 16  # levels; what a request's parameter needs is three or four


def json_text(value: object, place: Place) -> str:
    """Anything JSON can say too, as that JSON. TOML can also say dates, NaN and infinity; those it cannot."""
    _refuse_unless_json(value, place, DEEPEST_JSON)
    return json.dumps(value, ensure_ascii=False)


def _refuse_unless_json(value: object, place: Place, levels: int) -> None:
    if levels == 0:
        place.refuse(f"is nested more than {DEEPEST_JSON} levels deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_unless_json(inner, place / key, levels - 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_unless_json(inner, place / index, levels - 1)
    elif isinstance(value, int | float):
        if not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
            place.refuse("must be a finite number of a sensible size")
    elif not isinstance(value, str):
        place.refuse(f"must be something JSON has, not {kind_of(value)}", "write it as a string, in quotes")


def _refuse_outside(value: int, minimum: int, maximum: int, place: Place) -> None:
    if value < minimum:
        place.refuse(f"must be at least {minimum}")
    if value > maximum:
        place.refuse(f"must be at most {maximum}")


# Words.

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dotted(key: KeyPath) -> str:
    """A key path as an operator would write it: `models[2].min_devices`, `aliases."helexa/small"`."""
    written = ""
    for part in key:
        if isinstance(part, int):
            written += f"[{part}]"
        else:
            quoted = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            written += f".{quoted}" if written else quoted
    return written


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None if none is much like it."""
    found = difflib.get_close_matches(word.lower()[:100], list(known), n=1)
    return found[0] if found else None


def kind_of(value: object) -> str:
    """What TOML calls a value of this type, with its article."""
    kinds = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    return kinds.get(type(value), "a date or time")


def _unknown_key_hint(name: str, fields: Fields, place: Place) -> str | None:
    if (home := place.report.homes.get(name)) is not None:
        return f"`{name}` belongs {home}"
    return _did_you_mean(name, fields) or f"known here: {', '.join(fields)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str | None:
    near = nearest(word, known)
    return None if near is None else f"did you mean `{near}`?"


def _header_hint(place: Place) -> str | None:
    """How the table is written. Elements of a list have no numbers there: the header is of the newest one."""
    names = tuple(part for part in place.key if isinstance(part, str))
    if not names:
        return None
    header = f"[{dotted(names)}]"
    return f"write {header if isinstance(place.key[-1], str) else f'[{header}]'} on a line of its own"


def _quotes_hint(value: object, place: Place) -> str | None:
    in_file = place.report.override_of(place.key) is None
    return "write it without quotes" if in_file and isinstance(value, str) else None


def _no_quotes_hint(value: object) -> str | None:
    return None if isinstance(value, list | dict) else "write it in quotes"
