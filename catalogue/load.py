"""Bytes of a `models.toml` to a `Catalogue`, or every fault. Reads no files: the caller has the bytes.

What the keys mean is in `models.example.toml`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import TypeAdapter

from catalogue.aliases import AliasTables, to_alias
from catalogue.models import Catalogue, ModelProfile
from catalogue.toml.faults import Fault, in_file_order
from catalogue.toml.parse import parse_toml
from catalogue.toml.positions import scan
from catalogue.toml.schema import json_schema
from catalogue.toml.types import FILE, checked, refuse_duplicates
from catalogue.toml.validate import Document, read

__all__ = ["ModelsFile", "models_schema", "parse"]


@dataclass(frozen=True, slots=True)
class ModelsFile:
    """The models of a cortex gateway and the names under which clients ask for them. Read again when it changes."""

    __pydantic_config__ = FILE

    models: Annotated[tuple[ModelProfile, ...], checked(refuse_duplicates("id"))] = ()
    """The models that cortex may load, one table each. Default: none."""

    aliases: AliasTables = field(default_factory=dict)
    """Names for clients: `name = "model id"`, or a table. Default: none."""


def parse(data: bytes, *, path: str, generation: int, loaded_at: float) -> Catalogue:
    """The catalogue that `data` describes.

    Args:
        data: The whole file.
        path: As the operator named it; for messages and `Catalogue.path`.
        generation: The number of the snapshot.
        loaded_at: Unix seconds.

    Raises:
        FaultyFile: With every fault; a file that is not TOML has exactly one. No other exception is raised.
    """
    text, raw = parse_toml(data, path=path)
    document = Document(path, raw, scan(text))
    file = read(_adapter(), document, {"aliases": raw.get("aliases") or {}})
    aliases = {name: to_alias(name, table) for name, table in file.aliases.items()}
    return Catalogue(
        generation=generation,
        models=MappingProxyType({profile.id: profile for profile in file.models}),
        aliases=MappingProxyType(aliases),
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
        loaded_at=loaded_at,
        warnings=in_file_order(_warnings(file, document)),
    )


def models_schema() -> dict[str, Any]:
    """The JSON Schema of `models.toml`."""
    return json_schema(_adapter())


@cache  # building it takes about 20 ms
def _adapter() -> TypeAdapter[ModelsFile]:
    return TypeAdapter(ModelsFile)


def _warnings(file: ModelsFile, document: Document) -> Iterator[Fault]:
    if not document.data:
        yield document.fault((), "defines no models and no aliases", "write `models = []` if that is intended")
    for profile in file.models:
        if profile.id in file.aliases:
            hint = "requests for this name go to the alias's target; rename the alias if that is not intended"
            yield document.fault(("aliases", profile.id), "hides the model of the same name", hint)
    by_folded = {profile.id.casefold(): profile.id for profile in file.models}
    ids = set(by_folded.values())
    for name, table in file.aliases.items():
        alias = to_alias(name, table)
        targets = [target.model for target in alias.targets]
        for model in dict.fromkeys((*targets, *alias.fallback)):
            if model not in ids and (near := by_folded.get(model.casefold())) is not None:
                message = f"names {model!r}, which differs from a model only in upper and lower case"
                yield document.fault(("aliases", name), message, f"did you mean {near!r}?")
        if own := [model for model in alias.fallback if model in targets and len(targets) == 1]:
            message = f"falls back to {own[0]!r}, its own target"
            yield document.fault(("aliases", name), message, "name another model, or remove the fallback")
