"""Writes docs/reference/settings.md from the JSON Schemas in schemas/. Usage: settings_page.py [--check]"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
PAGE = TOP / "docs" / "reference" / "settings.md"
HEAD = """# Settings

Every key of the three files, with its type and default. `scripts/settings_page.py` writes this page from the JSON
Schemas that `cortex schema config|models|neuron` prints; a test compares. An unknown key is an error, with the nearest
known key as a hint. An environment variable overrides each key of `cortex.toml`, for example
`CORTEX_GATEWAY__LISTEN=127.0.0.1:9000`.
"""
FILES = {
    "cortex": ("cortex.toml", "cortex.example.toml"),
    "models": ("models.toml", "models.example.toml"),
    "neuron": ("neuron.toml", "neuron.example.toml"),
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, (title, example) in FILES.items():
        schema = json.loads((TOP / "schemas" / f"{name}.schema.json").read_text())
        parts.append(f"## {title}\n\n{schema['description']} Example: [`{example}`](../../{example}).\n")
        parts += [_table(path, table) for path, table in _tables(schema)]
    return "\n".join(parts)


def _tables(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each table that can be in the file: its heading and its schema."""
    yield "", {"properties": {name: each for name, each in schema["properties"].items() if not _table_in(schema, each)}}
    for name, each in schema["properties"].items():
        for heading, table in _table_in(schema, each):
            yield heading.format(name=name), table
            yield from _inner_tables(schema, table)


def _inner_tables(schema: dict[str, Any], table: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, each in table["properties"].items():
        for reference in _references(each):
            yield f"{name} = {{ … }}", schema["$defs"][reference]


def _table_in(schema: dict[str, Any], each: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The table of a top-level key: [name], [[name]] or [name.NAME]; empty if it is a plain value."""
    found = [schema["$defs"][reference] for reference in _references(each)]
    if "items" in each:
        return [("[[{name}]]", table) for table in found]
    if isinstance(each.get("additionalProperties"), dict):
        return [("[{name}.NAME]", table) for table in found]
    return [("[{name}]", table) for table in found]


def _references(each: Any) -> list[str]:
    if isinstance(each, dict):
        own = [each["$ref"].rsplit("/", 1)[1]] if "$ref" in each else []
        return own + [found for value in each.values() for found in _references(value)]
    return [found for value in each for found in _references(value)] if isinstance(each, list) else []


def _table(heading: str, table: dict[str, Any]) -> str:
    if not table["properties"]:
        return ""
    lines = [f"### `{heading}`\n"] if heading else []
    if "description" in table:
        lines.append(table["description"] + "\n")
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    required = set(table.get("required", ()))
    for name, each in table["properties"].items():
        default = "required" if name in required else f"`{json.dumps(each['default'])}`" if "default" in each else ""
        text = each.get("description", "").replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{name}` | {_type(each)} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _type(each: dict[str, Any]) -> str:
    if "enum" in each:
        return " or ".join(f"`{json.dumps(value)}`" for value in each["enum"])
    if "const" in each:
        return f"`{json.dumps(each['const'])}`"
    if "anyOf" in each:
        return " or ".join(dict.fromkeys(_type(one) for one in each["anyOf"]))
    if "$ref" in each:
        return "table"
    if each.get("type") == "array":
        return f"list of {_type(each['items'])}"
    kind = str(each.get("type", "any"))
    return {"object": "table", "boolean": "true or false"}.get(kind, kind)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
