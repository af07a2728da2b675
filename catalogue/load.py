"""Bytes of a `models.toml` -> `Catalogue`, or every reason why not. Reads no files: who has the bytes may ask.

What the keys mean to an operator is in `models.example.toml`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import tomli

from catalogue import aliases as aliases_table
from catalogue.models import Alias, Catalogue, Cost, Fault, FaultyFile, Limit, ModelProfile
from catalogue.toml import fields
from catalogue.toml.fields import Field, Place, Report
from catalogue.toml.positions import scan

_BYTE_ORDER_MARK = "\ufeff"

_TOKENS = fields.integer(minimum=1)
_USD = fields.number(minimum=0)
_NAMES = fields.array(fields.name)

LIMIT_FIELDS = {name: Field(_TOKENS) for name in ("context", "input", "output")}
COST_FIELDS = {name: Field(_USD) for name in ("input", "output", "cache_read", "cache_write")}
MODEL_FIELDS = {
    "id": Field(fields.name, required=True),
    "harness": Field(fields.name, required=True),
    "quant": Field(fields.name),
    "vram_mb": Field(fields.integer(minimum=1)),
    "min_devices": Field(fields.integer(minimum=1)),
    "min_device_vram_mb": Field(fields.integer(minimum=1)),
    "pinned_on": Field(_NAMES),
    "residency_priority": Field(fields.integer()),
    "source": Field(fields.name),
    "capabilities": Field(_NAMES),
    "limit": Field(fields.record(Limit, LIMIT_FIELDS)),
    "cost": Field(fields.record(Cost, COST_FIELDS)),
    "max_concurrent": Field(fields.integer(minimum=1)),
    "idle_ttl_seconds": Field(fields.number(minimum=0)),
}


def parse(data: bytes, *, path: str, generation: int, loaded_at: float) -> Catalogue:
    """The catalogue that `data` describes.

    Args:
        data: The whole file.
        path: As the operator named it; only for messages and for the snapshot to carry.
        generation: The number the snapshot gets.
        loaded_at: Unix seconds.

    Raises:
        FaultyFile: With every fault there is; a file that is not TOML has exactly one, as nothing after it can be
            trusted. Nothing else is raised, whatever the bytes.
    """
    text, document = parse_toml(data, path=path)
    report = Report(path, scan(text))
    models, aliases = _read(document, Place(report))
    if report.faults:
        raise FaultyFile(in_file_order(report.faults))
    return Catalogue(
        generation=generation,
        models=MappingProxyType({profile.id: profile for profile in models}),
        aliases=MappingProxyType(aliases),
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
        loaded_at=loaded_at,
        warnings=in_file_order(report.warnings),
    )


def parse_toml(data: bytes, *, path: str) -> tuple[str, dict[str, Any]]:
    """The text and the document in `data`, which is UTF-8, with or without a byte order mark.

    Raises:
        FaultyFile: With one fault: where it stops being UTF-8, or TOML.
    """
    try:
        text = data.decode().removeprefix(_BYTE_ORDER_MARK)
        return text, tomli.loads(text)
    except UnicodeDecodeError as error:
        fault = Fault(path, data.count(b"\n", 0, error.start) + 1, None, "not UTF-8", "save the file as UTF-8")
    except tomli.TOMLDecodeError as error:
        fault = Fault(path, error.lineno, None, f"not TOML: {error.msg}", _syntax_hint(error))
    except RecursionError as error:  # tomli's limits: depth, parts of a key
        fault = Fault(path, None, None, f"not acceptable TOML: {error}")
    except ValueError:  # Python's: digits of a number. Its own words are advice on Python
        fault = Fault(path, None, None, "not acceptable TOML: a number has more digits than a number may have")
    raise FaultyFile((fault,))


def says_nothing(data: bytes) -> bool:
    """Whether the file is empty or all comments: what a truncated or half-made file looks like.

    An operator who means "no models" can say so: `models = []`.
    """
    lines = data.removeprefix(_BYTE_ORDER_MARK.encode()).splitlines()
    return all(not line.strip() or line.lstrip().startswith(b"#") for line in lines)


def in_file_order(faults: list[Fault]) -> tuple[Fault, ...]:
    """By line; those about the file as a whole first."""
    return tuple(sorted(faults, key=lambda fault: fault.line or 0))


# The two parts of the file.


def _read(document: Mapping[str, Any], root: Place) -> tuple[tuple[ModelProfile, ...], dict[str, Alias]]:
    model = fields.record(ModelProfile, MODEL_FIELDS)
    rows = {"models": Field(fields.array(model, of_tables=True)), "aliases": Field(aliases_table.read)}
    read = fields.read_fields(document, rows, root)
    fields.refuse_duplicates(document.get("models"), "id", root / "models")
    models, aliases = read.get("models", ()), read.get("aliases", {})
    if not document:
        root.warn("defines no models and no aliases", "if that is meant, write `models = []`")
    for profile in models:
        if profile.id in aliases:
            (root / "aliases" / profile.id).warn(
                "shadows the model of that name",
                "requests for it go to the alias's target; rename the alias if not so meant",
            )
    return models, aliases


# What tomli says, and what most likely has to be done then.
_SYNTAX_HINTS = {
    "Illegal character '\\n'": "a string ends on the line it begins on: close its quotes",
    "Unterminated string": "close the quotes of the string",
    "Unescaped '\\' in a string": "write it in 'single quotes', where a \\ is nothing special",
    "Invalid value": "text takes quotes; true and false are written small",
    "after a statement": "nothing but a # comment may follow a value on its line",
}
_CURLY_QUOTES = frozenset("\u201c\u201d\u201e\u2018\u2019")


def _syntax_hint(error: tomli.TOMLDecodeError) -> str | None:
    if _CURLY_QUOTES & set(error.doc[error.pos : error.pos + 1]):
        return "quotes are straight: \" or '"
    if "Expected '=' after a key" in error.msg:
        return _missing_equals_hint(error.doc[error.pos : error.pos + 2])
    if "Cannot overwrite a value" in error.msg or "Cannot declare" in error.msg:
        if error.doc.split("\n")[error.lineno - 1].lstrip().startswith("["):
            return "there is such a table already; only a list has several, each of them in [[two brackets]]"
        return "the same key stands here twice; keep one"
    return next((hint for words, hint in _SYNTAX_HINTS.items() if words in error.msg), None)


def _missing_equals_hint(found: str) -> str:
    """By what stands there instead: `a: 1` is another language, `qwen3:8b` a name."""
    if not found or found[0] in "\r\n" or found == ":" or (found[0] == ":" and found[1].isspace()):
        return "write `key = value`"
    return "put quotes around a name that has anything but letters, digits, - and _ in it"
