"""`cortex.toml` and the environment to `Settings`, or every fault. Blocking: reads the file."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from catalogue.toml.faults import Fault, FaultyFile, in_file_order
from catalogue.toml.parse import parse_toml
from catalogue.toml.positions import KeyPath, Positions, scan
from catalogue.toml.schema import json_schema
from catalogue.toml.validate import Document, read
from gateway.config.environment import overlay
from gateway.config.removed_keys import take_out
from gateway.config.settings import Listen, Settings

FILE_LIMIT_BYTES = 4 * 1024 * 1024  # a hundred neurons take 10 KB; a larger file is some other file
_PLACEHOLDER = re.compile(r"\$\{\w+\}")

__all__ = ["LoadedSettings", "load", "settings_schema"]


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


def _faults_between_tables(settings: Settings, document: Document) -> Iterator[Fault]:
    for index, neuron in enumerate(settings.neurons):
        for key in ("listen", "metrics_listen"):
            if _is_address_of(getattr(settings.gateway, key), neuron.endpoint):
                message = f"is this gateway's own address (gateway.{key})"
                hint = "a request would come back to the gateway again and again: name the neuron's address"
                yield document.fault(("neurons", index, "endpoint"), message, hint)


def _is_address_of(listen: Listen, endpoint: str) -> bool:
    """Whether the endpoint is certainly this address on this host. Resolves no names."""
    parts = urlsplit(endpoint)
    host, port = (parts.hostname or ""), parts.port or (443 if parts.scheme == "https" else 80)
    if not listen.port or port != listen.port:
        return False
    is_everywhere, is_loopback = listen.host in {"0.0.0.0", "::"}, _is_loopback(host)
    return (
        host == listen.host
        or (is_loopback and (is_everywhere or _is_loopback(listen.host)))
        or (is_everywhere and host == socket.gethostname().lower())
    )


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1", "0.0.0.0"} or host.startswith("127.")


def _placeholders(value: object, key: KeyPath = ()) -> Iterator[KeyPath]:
    """The keys of strings that contain `${…}`."""
    if isinstance(value, dict | list):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _placeholders(inner, (*key, part))
    elif isinstance(value, str) and _PLACEHOLDER.search(value):
        yield key


def _warnings(settings: Settings, document: Document) -> Iterator[Fault]:
    for key in _placeholders(document.data):
        hint = "write the value, or set the key by its CORTEX_ environment variable"
        yield document.fault(key, "contains ${...}, which cortex does not replace", hint)
    if settings.admin.public and settings.admin.token is None:
        message = "has no effect without [admin] token: the admin API is off"
        yield document.fault(("admin", "public"), message, "set a token")
    first: dict[str, str] = {}
    for index, neuron in enumerate(settings.neurons):
        if neuron.endpoint in first:
            message = f"is also the endpoint of {first[neuron.endpoint]!r}"
            hint = "remove one of them: a neuron under two names is counted twice"
            yield document.fault(("neurons", index, "endpoint"), message, hint)
        first.setdefault(neuron.endpoint, neuron.name)
