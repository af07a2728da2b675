"""`CORTEX_` variables: they override `cortex.toml` before it is validated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import tomli

from catalogue.toml.faults import Fault
from catalogue.toml.positions import KeyPath
from catalogue.toml.validate import Override, nearest
from gateway.config.removed_keys import REMOVED_KEYS
from gateway.config.settings import Settings

__all__ = ["known_keys", "overlay"]

ENVIRONMENT_PREFIX = "CORTEX_"
_VARIABLES_OF_THE_COMMAND_LINE = {
    "CORTEX_BOOTSTRAP_KEY",
    "CORTEX_CA",
    "CORTEX_CLIENT_CERT",
    "CORTEX_CLIENT_KEY",
    "CORTEX_CONFIG",
    "CORTEX_KEY",
    "CORTEX_NEURON_CONFIG",
    "CORTEX_URL",
}


def overlay(document: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[KeyPath, Override], list[Fault]]:
    """Put the values of variables into the document. Returns the keys they have set, and warnings.

    Whole tables come before the keys inside them, so `CORTEX_GATEWAY__LISTEN` overrides `CORTEX_GATEWAY`.
    """
    overrides: dict[KeyPath, Override] = {}
    warnings: list[Fault] = []
    for variable, key in sorted(_variables(environ), key=lambda item: (len(item[1]), item[0])):
        if key not in known_keys() and key not in REMOVED_KEYS:
            warnings.append(_unknown(variable, key))
        elif key in overrides:
            message = f"sets the same key as {overrides[key].variable}; ignored"
            warnings.append(Fault(variable, None, None, message))
        else:
            overrides[key] = Override(variable, environ[variable])
            _put(document, key, _literal(environ[variable]))
    return overrides, warnings


def known_keys() -> list[tuple[str, ...]]:
    """The keys that a variable can set: the tables, and the keys in them. Not those of one neuron."""
    return _keys_of(Settings)


def _keys_of(table: Any) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = []
    for key in fields(table):
        keys.append((key.name,))
        if is_dataclass(key.default):
            keys += [(key.name, *inner) for inner in _keys_of(key.default)]
    return keys


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for variable in environ:
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and variable.upper() not in _VARIABLES_OF_THE_COMMAND_LINE:
            yield variable, tuple(variable[len(ENVIRONMENT_PREFIX) :].lower().split("__"))


def _unknown(variable: str, key: tuple[str, ...]) -> Fault:
    """Only a warning: Kubernetes sets `CORTEX_PORT` and others for a service with the name `cortex`."""
    near = nearest("__".join(key), ("__".join(path) for path in known_keys()))
    hint = None if near is None else f"did you mean {ENVIRONMENT_PREFIX}{near.upper()}?"
    return Fault(variable, None, None, "is not a setting of cortex; ignored", hint)


def _literal(text: str) -> object:
    """The TOML value in `text`, or `text` itself if it is not TOML."""
    try:
        read = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text


def _put(document: dict[str, Any], key: tuple[str, ...], value: object) -> None:
    """Set one key. A table is merged into the file's table key by key; any other value replaces the file's."""
    table: object = document
    for name in key[:-1]:
        table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return  # the file has no table there, which is a fault of the file
    there = table.get(key[-1])
    table[key[-1]] = {**there, **value} if isinstance(value, dict) and isinstance(there, dict) else value
