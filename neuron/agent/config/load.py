"""`neuron.toml` to `NeuronFile`, or every fault. Blocking: reads the file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import TypeAdapter

from catalogue.toml.faults import Fault, FaultyFile, in_file_order
from catalogue.toml.parse import parse_toml
from catalogue.toml.positions import scan
from catalogue.toml.schema import json_schema
from catalogue.toml.types import checked
from catalogue.toml.validate import Document, read
from neuron.agent.config.rules import check_file, is_loopback
from neuron.agent.config.settings import NeuronFile

__all__ = ["LoadedNeuronFile", "load_neuron_file", "neuron_schema", "parse_neuron_file"]

_CheckedFile: TypeAlias = Annotated[NeuronFile, checked(check_file)]


class LoadedNeuronFile(NamedTuple):
    """The settings, and what `serve` and `check` warn about."""

    settings: NeuronFile
    warnings: tuple[Fault, ...]


def load_neuron_file(path: Path) -> LoadedNeuronFile:
    """The settings in the file.

    Raises:
        FaultyFile: With every fault. No fault contains the value of a secret.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        hint = "`cortex neuron init` writes one" if isinstance(error, FileNotFoundError) else None
        raise FaultyFile((Fault(str(path), None, None, f"cannot be read: {reason}", hint),)) from error
    return parse_neuron_file(data, path)


def parse_neuron_file(data: bytes, path: Path) -> LoadedNeuronFile:
    """As `load_neuron_file`, from the file's content."""
    text, raw = parse_toml(data, path=str(path))
    document = Document(str(path), raw, scan(text))
    settings = read(_adapter(), document, {"directory": path.absolute().parent})
    return LoadedNeuronFile(settings, in_file_order(_warnings(settings, document)))


def neuron_schema() -> dict[str, Any]:
    """The JSON Schema of `neuron.toml`."""
    return json_schema(_adapter())


@cache  # building it takes about 20 ms
def _adapter() -> TypeAdapter[NeuronFile]:
    return TypeAdapter(_CheckedFile)


def _warnings(settings: NeuronFile, document: Document) -> Iterator[Fault]:
    if settings.api.token and settings.api.open:
        yield document.fault(
            ("api", "open"), "has no effect: there is a token, and it is demanded", "remove one of them"
        )
    if not settings.models and not settings.api.allow_any:
        yield document.fault((), "defines no models", "add [[models]] tables, or set [api] allow_any = true")
    for index, model in enumerate(settings.models):
        engine = settings.engines[model.engine]
        if model.idle_ttl_seconds and engine.kind in {"openai", "transformers"} and is_loopback(settings.api.listen):
            message = "has no effect: this kind of engine does not report requests, and gateways talk to it directly"
            yield document.fault(("models", index, "idle_ttl_seconds"), message, "remove it")
