"""What `cortex alias list`, `show` and `history` show: the file, and what the gateway makes of it. Blocking."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from typing import Any

import click

from catalogue.diff import alias_json, shown_targets
from catalogue.models import Alias
from gateway.aliases.files import versions
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.rollout_state import Rollout
from gateway.aliases.files.versions import Version
from gateway.cli import api_client
from gateway.cli.alias_edit import DONE, AliasCommands, Refused, words_of_swap
from gateway.cli.api_client import NoAnswer
from gateway.cli.terminal import console, entry, table

__all__ = ["show_all", "show_history", "show_one"]

HASH_SHOWN = 10
CHANGES_SHOWN = 5


def show_all(desk: AliasCommands, *, as_json: bool) -> int:
    """Every alias. Raises Refused if there is no good file."""
    states = _States(desk)
    if as_json:
        told = [{"name": alias.name, **alias_json(alias), "state": states.of(alias)} for alias in states.aliases]
        click.echo(json.dumps({"file": str(desk.records.models_path), "aliases": told}, indent=2, ensure_ascii=False))
        return DONE
    drawn = table(f"aliases in {desk.records.models_path}", "alias", "stands for", "state")
    for alias in states.aliases:
        drawn.add_row(alias.name, shown_targets(alias), states.of(alias))
    console().print(drawn if drawn.row_count else f"{desk.records.models_path} has no aliases")
    return DONE


def show_one(desk: AliasCommands, name: str, *, as_json: bool) -> int:
    """One alias. Raises Refused if there is none of that name, or no good file."""
    states = _States(desk)
    alias = next((each for each in states.aliases if each.name == name), None)
    if alias is None:
        raise Refused(f"there is no alias '{name}' in {desk.records.models_path}")
    places = _places(desk, alias)
    newest = list(islice(versions.list_versions(desk.records, name), CHANGES_SHOWN))
    if as_json:
        told = {"name": name, **alias_json(alias), "state": states.of(alias), "loaded_on": places}
        told["versions"] = [_version_json(version) for version in newest]
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return DONE
    out = console()
    drawn = table(name, "", "")
    drawn.show_header = False
    for key, value in _said(alias):
        drawn.add_row(key, value)
    for model, where in places.items():
        drawn.add_row("loaded", f"{model}: {', '.join(where) or 'nowhere'}")
    drawn.add_row("state", states.of(alias))
    out.print(drawn)
    if newest:
        out.print()
        _print_history(f"the last changes of {name}:", newest)
    return DONE


def show_history(desk: AliasCommands, name: str | None, limit: int, *, as_json: bool) -> int:
    """Versions, newest first. Raises Refused if they cannot be read."""
    try:
        found = list(islice(versions.list_versions(desk.records, name), limit))
    except OSError as error:
        raise Refused(str(error)) from error
    if as_json:
        click.echo(json.dumps({"versions": [_version_json(each) for each in found]}, indent=2, ensure_ascii=False))
        return DONE
    if found:
        _print_history(f"{desk.records.models_path}" + (":" if name is None else f", where {name} changed:"), found)
    else:
        where = f"{desk.records.audit_log.path} has none" + ("" if name is None else f" in which '{name}' changed")
        console().print(f"no version is known: {where}", soft_wrap=True)
    return DONE


class _States:
    """The aliases of the file, and how each of them stands with the gateway. One look for all."""

    def __init__(self, desk: AliasCommands) -> None:
        data, catalogue = desk.read()
        self.aliases = [catalogue.aliases[name] for name in sorted(catalogue.aliases)]
        self._health = desk.health()
        self._digest = digest_of(data)
        self._rollouts = _rollouts(desk)
        swaps = () if self._health is None else self._health.get("swaps", ())
        self._swaps: dict[str, dict[str, Any]] = {swap["alias"]: swap for swap in swaps}

    def of(self, alias: Alias) -> str:
        """In a few words."""
        if self._health is None:
            return "no gateway answers"
        if self._health["catalogue"].get("digest") != self._digest:
            error = self._health["catalogue"]["error"]
            return "not in force" + ("" if error is None else ": the gateway refuses the file")
        words = "in force"
        if alias.name in self._swaps:
            words = words_of_swap(self._swaps[alias.name])
        rollout = self._rollouts.get(alias.name)
        return words if rollout is None else f"{words}; {_words_of(rollout)}"


def _rollouts(desk: AliasCommands) -> dict[str, Rollout]:
    """Those under way. That they cannot be read is no reason to keep quiet about the aliases."""
    try:
        return desk.running_rollouts()
    except Refused as error:
        click.echo(f"warning: {error}", err=True)
        return {}


def _words_of(rollout: Rollout) -> str:
    step = f"step {rollout.step + 1} of {len(rollout.steps)}" if rollout.step >= 0 else "about to begin"
    return f"being rolled out to {rollout.target}: {step}"


def _said(alias: Alias) -> list[tuple[str, str]]:
    """What the file says of it, defaults left out."""
    plain = alias_json(Alias(alias.name, alias.targets))
    said = alias_json(alias)
    told = [("stands for", shown_targets(alias))]
    return told + [
        (key, json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value)
        for key, value in said.items()
        if key != "targets" and value != plain[key]
    ]


def _places(desk: AliasCommands, alias: Alias) -> dict[str, list[str]]:
    """Where each of its targets is loaded, as the gateway knows; nothing if it does not answer."""
    try:
        with api_client.client() as client:
            models = api_client.get(client, f"{desk.gateway.endpoint}/v1/models", ("data",))["data"]
    except NoAnswer:
        return {}
    found = {model["id"]: model["locations"] for model in models if model.get("alias_of") is None}
    return {
        target.model: [f"{place['node']} {place['status']}" for place in found.get(target.model, ())]
        for target in alias.targets
    }


def _version_json(version: Version) -> dict[str, Any]:
    return asdict(version) | {"aliases": sorted(version.aliases)}


def _print_history(title: str, found: list[Version]) -> None:
    out = console()
    out.print(title, soft_wrap=True)
    for each in found:
        when = each.time.replace("T", " ")
        head = (
            f"version {each.number}  {when}  {each.who}  generation {each.generation}  file {each.digest[:HASH_SHOWN]}"
        )
        lines = [*each.summary.split("; "), *([] if each.is_kept else ["not kept: there is no way back to it"])]
        out.print(entry(head, *lines), soft_wrap=True)
