"""`cortex.toml` and the environment to `Settings`, or every fault. Blocking: reads the file."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from catalogue.toml.faults import Fault, FaultyFile, in_file_order
from catalogue.toml.parse import parse_toml
from catalogue.toml.positions import Positions, scan
from catalogue.toml.schema import json_schema
from catalogue.toml.validate import Document, read
from gateway.config.environment import overlay
from gateway.config.neurons_file import neuron_faults, neuron_warnings, placeholder_warnings
from gateway.config.removed_keys import take_out
from gateway.config.settings import Settings

FILE_LIMIT_BYTES = 4 * 1024 * 1024  # a hundred neurons take 10 KB; a larger file is some other file
OPEN_BEYOND_LOOPBACK = "is reached from other machines, and nothing says whether they need a key"
OPEN_HINT = (
    'set [access] mode = "keys" and create keys with `cortex key create NAME`, or "open" if everyone who reaches the '
    "port may use it"
)

__all__ = ["OPEN_BEYOND_LOOPBACK", "OPEN_HINT", "LoadedSettings", "load", "settings_schema"]


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and warnings about the file and the environment."""

    settings: Settings
    warnings: tuple[Fault, ...] = ()


def load(path: Path | None, environ: Mapping[str, str]) -> LoadedSettings:
    """Settings from the file, overridden by the environment, with defaults for the rest.

    Args:
        path: The `cortex.toml`, or None to read the environment only.
        environ: The process's environment. Only names that begin with `CORTEX_`, in any case, are used.

    Raises:
        FaultyFile: With every fault of the file and the environment. No fault contains the value of a secret.
    """
    data, positions = _read_file(path)
    overrides, warnings = overlay(data, environ)
    document = Document(str(path or "environment"), data, positions, overrides)
    warnings += take_out(document)
    directory = None if path is None else path.absolute().parent
    settings = read(_adapter(), document, {"directory": directory})
    if faults := in_file_order(_faults_between_tables(settings, document)):
        raise FaultyFile(faults)
    warnings += _warnings(settings, document)
    return LoadedSettings(settings, in_file_order(warnings))


def settings_schema() -> dict[str, Any]:
    """The JSON Schema of `cortex.toml`."""
    return json_schema(_adapter())


@cache  # building it takes about 25 ms
def _adapter() -> TypeAdapter[Settings]:
    return TypeAdapter(Settings)


def _read_file(path: Path | None) -> tuple[dict[str, Any], Positions]:
    if path is None:
        return {}, Positions()
    try:
        with path.open("rb") as file:  # it may be a pipe
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FaultyFile((Fault(str(path), None, None, f"cannot be read: {reason}"),)) from error
    if len(data) > FILE_LIMIT_BYTES:
        message = f"is larger than {FILE_LIMIT_BYTES // 1024**2} MiB"
        raise FaultyFile((Fault(str(path), None, None, message, "check that it is the right file"),))
    text, document = parse_toml(data, path=str(path))
    return document, scan(text)


def _warnings(settings: Settings, document: Document) -> Iterator[Fault]:
    yield from placeholder_warnings(document)
    if settings.admin.token is not None:
        hint = "create a key with `cortex key create NAME --verbs read,operate,keys`; a later release refuses the token"
        yield document.fault(("admin", "token"), "is deprecated", hint)
    yield from neuron_warnings(settings.neurons, document)


def _faults_between_tables(settings: Settings, document: Document) -> Iterator[Fault]:
    if _is_open_by_accident(settings):
        yield document.fault(("gateway", "listen"), OPEN_BEYOND_LOOPBACK, OPEN_HINT)
    if settings.neurons_config is not None and settings.neurons:
        hint = "move them into the file that neurons_config names, or remove neurons_config"
        yield document.fault(("neurons",), "must not be here beside neurons_config", hint)
    yield from neuron_faults(settings.neurons, document, settings.gateway)


def _is_open_by_accident(settings: Settings) -> bool:
    """Whether `listen` is an address that other machines reach. `serve` judges names by the address they lead to."""
    host = settings.gateway.listen.host.partition("%")[0]
    try:
        return settings.access.mode is None and not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
