"""`CORTEX_` variables, laid over what `cortex.toml` says before anybody looks whether it is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tomli

from catalogue.models import Fault
from catalogue.toml import fields
from catalogue.toml.fields import Override, Report
from catalogue.toml.positions import KeyPath
from gateway.config.keys import SECTIONS, SETTINGS_FIELDS

__all__ = ["overlay"]

ENVIRONMENT_PREFIX = "CORTEX_"


def overlay(document: dict[str, Any], environ: Mapping[str, str], report: Report) -> dict[KeyPath, Override]:
    """Put what the environment says into the document, and tell which key paths that were.

    Whole tables come before the keys inside them, so `CORTEX_GATEWAY__LISTEN` beats `CORTEX_GATEWAY`.
    """
    overrides: dict[KeyPath, Override] = {}
    for variable, key in sorted(_variables(environ), key=lambda item: (len(item[1]), item[0])):
        if (odd := _why_unknown(key)) is not None:
            report.warnings.append(Fault(variable, None, None, *odd))
        elif key in overrides:
            report.warnings.append(Fault(variable, None, None, f"says the same as {overrides[key].variable}; ignored"))
        else:
            overrides[key] = Override(variable, environ[variable])
            _put(document, key, _literal(environ[variable]))
    return overrides


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for variable in environ:
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and variable.upper() not in _VARIABLES_OF_THE_COMMAND_LINE:
            yield variable, tuple(variable[len(ENVIRONMENT_PREFIX) :].lower().split("__"))


_VARIABLES_OF_THE_COMMAND_LINE = {"CORTEX_CONFIG"}


def _why_unknown(key: tuple[str, ...]) -> tuple[str, str | None] | None:
    """Message and hint; only a warning, because Kubernetes sets `CORTEX_PORT` and more beside a service of our name."""
    known: set[tuple[str, ...]] = {(name,) for name in SETTINGS_FIELDS}
    known |= {(section, name) for section, (_, rows) in SECTIONS.items() for name in rows}
    if key in known:
        return None
    near = fields.nearest("__".join(key), ("__".join(path) for path in known))
    return "sets nothing", None if near is None else f"did you mean {ENVIRONMENT_PREFIX}{near.upper()}?"


def _literal(text: str) -> object:
    """What `text` is as a TOML value, else `text` itself."""
    try:
        read = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text


def _put(document: dict[str, Any], key: tuple[str, ...], value: object) -> None:
    """Set one path; a table is laid over the one in the file, key by key, anything else replaces."""
    table: object = document
    for name in key[:-1]:
        table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return  # the file has no table there, and its operator will hear of it
    there = table.get(key[-1])
    table[key[-1]] = {**there, **value} if isinstance(value, dict) and isinstance(there, dict) else value
