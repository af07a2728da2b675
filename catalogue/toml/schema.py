"""The JSON Schema of a file that a dataclass describes: for editors, and for the hints of faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from catalogue.toml.positions import KeyPath

__all__ = ["json_schema", "objects_at", "properties_at"]


class _FileSchema(GenerateJsonSchema):
    """Pydantic's generator, adapted to TOML: TOML has no null, and titles made from key names say nothing new."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        del schema
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        """A key without a default is left out, never null."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        """A table's default is the defaults of its keys."""
        inner = self.generate_inner(schema["schema"])
        default = schema["default_factory"]() if "default_factory" in schema else schema.get("default")  # type: ignore[call-arg]  # ours take no argument
        if default is None or (is_dataclass(default) and type(default).__str__ is object.__str__):
            return inner
        return {**inner, "default": default if isinstance(default, bool | int | float | dict) else _written(default)}


def _written(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else str(default)


@cache  # a schema takes about 10 ms, and a faulty file needs it for its hints
def json_schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The schema (draft 2020-12) of the file that `adapter` reads. Callers must not modify it."""
    schema = adapter.json_schema(schema_generator=_FileSchema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def objects_at(schema: dict[str, Any], key: KeyPath) -> list[dict[str, Any]]:
    """The schemas that may apply to the value at `key`, without `$ref` and `anyOf`; none for an unknown key."""
    found = list(_alternatives(schema, schema))
    for part in key:
        below = [_below(node, part) for node in found]
        found = [inner for node in below if isinstance(node, dict) for inner in _alternatives(schema, node)]
    return found


def properties_at(schema: dict[str, Any], key: KeyPath) -> dict[str, dict[str, Any]]:
    """The keys that the table at `key` may have, in order, with their schemas."""
    return {name: inner for node in objects_at(schema, key) for name, inner in node.get("properties", {}).items()}


def _below(node: dict[str, Any], part: str | int) -> Any:
    if isinstance(part, int):
        return node.get("items")
    return node.get("properties", {}).get(part, node.get("additionalProperties"))


def _alternatives(schema: dict[str, Any], node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in node:
        for inner in node["anyOf"]:
            yield from _alternatives(schema, inner)
    else:
        yield node
