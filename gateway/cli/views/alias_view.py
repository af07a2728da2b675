"""What `cortex alias list`, `show` and `history` print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from catalogue.diff import alias_json, shown_targets
from catalogue.models import Alias
from gateway.aliases.files.versions import Version
from gateway.cli.terminal import HASH_DIGITS, console, entry, table

__all__ = ["print_alias", "print_list", "print_no_versions", "print_versions", "swap_text"]


def print_list(path: str, aliases: Iterable[tuple[Alias, str]]) -> None:
    """Print each alias with its targets and its state."""
    result = table(f"aliases in {path}", "alias", "target", "state")
    for alias, state in aliases:
        result.add_row(alias.name, shown_targets(alias), state)
    console().print(result if result.row_count else f"{path} has no aliases")


def print_alias(alias: Alias, places: Mapping[str, list[str]], state: str, newest: Sequence[Version]) -> None:
    """Print the settings of an alias, where its targets are loaded, its state and its last versions."""
    out = console()
    result = table(alias.name, "", "")
    result.show_header = False
    for key, value in _settings(alias):
        result.add_row(key, value)
    for model, where in places.items():
        result.add_row("loaded", f"{model}: {', '.join(where) or 'nowhere'}")
    result.add_row("state", state)
    out.print(result)
    if newest:
        out.print()
        print_versions(f"last changes of {alias.name}:", newest)


def _settings(alias: Alias) -> Iterator[tuple[str, str]]:
    """The targets, and the keys of the alias's table that differ from their defaults."""
    yield "target", shown_targets(alias)
    defaults = alias_json(Alias(alias.name, alias.targets))
    for key, value in alias_json(alias).items():
        if key != "targets" and value != defaults[key]:
            yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def print_versions(title: str, versions: Sequence[Version]) -> None:
    """Print versions of `models.toml`."""
    out = console()
    out.print(title, soft_wrap=True)
    for version in versions:
        time = version.time.replace("T", " ")
        head = (
            f"version {version.number}  {time}  {version.who}  "
            f"generation {version.generation}  file {version.digest[:HASH_DIGITS]}"
        )
        kept = () if version.is_kept else ("its file is not kept: rollback cannot restore it",)
        out.print(entry(head, *version.summary.split("; "), *kept), soft_wrap=True)


def print_no_versions(audit_log: str, name: str | None) -> None:
    """Print that the audit log names no version."""
    which = "" if name is None else f" that changed '{name}'"
    console().print(f"no versions: {audit_log} names none{which}", soft_wrap=True)


def swap_text(swap: dict[str, Any]) -> str:
    """An alias that does not point at its new target yet, from the JSON of `/health`."""
    stays = f"{swap['alias']} stays on {swap['in_force']}"
    if swap["state"] == "failed":
        return f"{stays}: {swap['wanted']} could not be warmed: {swap['reason']}"
    condition = {"load": "is loaded", "probe": "is probed"}.get(swap["phase"], "can be loaded")
    reason = f" ({swap['reason']})" if swap["reason"] else ""
    return f"{stays} until {swap['model'] or swap['wanted']} {condition}{reason}"
