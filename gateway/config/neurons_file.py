"""The `[[neurons]]` tables: the file that `neurons_config` names, and what is checked between the tables. No I/O."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from catalogue.toml.faults import Fault, FaultyFile, in_file_order
from catalogue.toml.parse import parse_toml
from catalogue.toml.positions import KeyPath, scan
from catalogue.toml.schema import json_schema
from catalogue.toml.types import FILE
from catalogue.toml.validate import Document, read
from gateway.config.settings import GatewaySettings, Listen, NeuronSettings, NeuronTables

__all__ = [
    "LoadedNeurons",
    "neuron_faults",
    "neuron_warnings",
    "neurons_schema",
    "parse_neurons",
    "placeholder_warnings",
]

_PLACEHOLDER = re.compile(r"\$\{\w+\}")


@dataclass(frozen=True, slots=True)
class NeuronsFile:
    """The neurons of a cortex gateway, read again when this file changes."""

    __pydantic_config__ = FILE

    neurons: NeuronTables = ()
    """The GPU hosts and other servers, one table each. Default: none."""


@dataclass(frozen=True, slots=True)
class LoadedNeurons:
    """The neurons of a file, and warnings about it."""

    neurons: tuple[NeuronSettings, ...]
    warnings: tuple[Fault, ...] = ()


def parse_neurons(data: bytes, *, path: str, gateway: GatewaySettings) -> LoadedNeurons:
    """The neurons in the bytes of a file. `gateway` has the addresses that no neuron can have.

    Raises:
        FaultyFile: With every fault. No fault contains the value of a secret.
    """
    text, parsed = parse_toml(data, path=path)
    document = Document(path, parsed, scan(text))
    neurons = read(_adapter(), document, {"directory": None}).neurons
    if faults := in_file_order(neuron_faults(neurons, document, gateway)):
        raise FaultyFile(faults)
    return LoadedNeurons(neurons, in_file_order((*placeholder_warnings(document), *neuron_warnings(neurons, document))))


def neurons_schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return json_schema(_adapter())


@cache  # building it takes about 25 ms
def _adapter() -> TypeAdapter[NeuronsFile]:
    return TypeAdapter(NeuronsFile)


def neuron_faults(neurons: Sequence[NeuronSettings], document: Document, gateway: GatewaySettings) -> Iterator[Fault]:
    """Neurons that are this gateway itself."""
    for index, neuron in enumerate(neurons):
        for key in ("listen", "metrics_listen"):
            if _is_address_of(getattr(gateway, key), neuron.endpoint):
                message = f"is this gateway's own address (gateway.{key})"
                hint = "a request would come back to the gateway again and again: name the neuron's address"
                yield document.fault(("neurons", index, "endpoint"), message, hint)


def neuron_warnings(neurons: Sequence[NeuronSettings], document: Document) -> Iterator[Fault]:
    """Neurons with one endpoint under two names."""
    first: dict[str, str] = {}
    for index, neuron in enumerate(neurons):
        if neuron.endpoint in first:
            message = f"is also the endpoint of {first[neuron.endpoint]!r}"
            hint = "remove one of them: a neuron under two names is counted twice"
            yield document.fault(("neurons", index, "endpoint"), message, hint)
        first.setdefault(neuron.endpoint, neuron.name)


def placeholder_warnings(document: Document) -> Iterator[Fault]:
    """Values with `${…}`, which operators expect to be replaced."""
    for key in _placeholders(document.data):
        hint = "write the value, or set the key by its CORTEX_ environment variable"
        yield document.fault(key, "contains ${...}, which cortex does not replace", hint)


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
