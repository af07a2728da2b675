"""What `cortex plan` does: have a file judged before it is in force, by the gateway or the last version. Blocking."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from catalogue.diff import diff
from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import FaultyFile
from gateway.aliases.files import versions
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.cli import api_client
from gateway.cli.alias_edit import Gateway
from gateway.cli.api_client import NoAnswer
from gateway.cli.terminal import console, entry, table
from gateway.config.settings import Settings

__all__ = ["run"]

NOTHING, BAD, CHANGES, NOBODY = 0, 1, 2, 3  # exit codes


class _Nobody(Exception):
    """There is nobody to ask, or nothing to compare with."""


def run(settings: Settings, models: Path | None, *, offline: bool, as_json: bool) -> int:
    """Show what the file would do; returns the exit code."""
    records = CatalogueFiles.from_settings(settings)
    path = models or records.models_path
    try:
        data = path.read_bytes()
        told = _compared(records, data, path) if offline else _asked(Gateway.of(settings), data, path)
    except (OSError, _Nobody) as error:
        click.echo(f"error: {error}", err=True)
        return NOBODY
    if as_json:
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _draw(told, path)
    return {"nothing": NOTHING, "changes": CHANGES}.get(told["verdict"], BAD)


def _asked(gateway: Gateway, data: bytes, path: Path) -> dict[str, Any]:
    """The gateway's plan, made upon the fleet as it is."""
    if gateway.token is None:
        raise _Nobody("a plan is for whoever has the admin token: set [admin] token, or use --offline")
    try:
        with api_client.client() as client:
            url = f"{gateway.admin}/admin/plan"
            return api_client.post(
                client, url, ("verdict",), token=gateway.token, data=data, params={"path": str(path)}
            )
    except NoAnswer as error:
        raise _Nobody(f"{error}; --offline asks no gateway") from error


def _compared(records: CatalogueFiles, data: bytes, path: Path) -> dict[str, Any]:
    """What changes, from the last file that was in force; what that takes of the fleet, nobody knows offline."""
    try:
        wanted = parse(data, path=str(path), generation=0, loaded_at=0.0)
    except FaultyFile as error:
        return {"verdict": "faulty", "faults": [fault.as_json() for fault in error.faults]}
    old, what = _last_good(records, path)
    changes = diff(old, wanted)
    return {
        "verdict": "changes" if changes else "nothing",
        "compared_with": what,
        "summary": str(changes),
        "diff": changes.as_json(),
        "warnings": [fault.as_json() for fault in wanted.warnings],
    }


def _last_good(records: CatalogueFiles, path: Path) -> tuple[Catalogue, str]:
    """What was in force last, and what to call it; without a trail, the configured file, if another is judged."""
    newest = next(versions.list_versions(records), None)
    if newest is not None:
        data, what = records.history.get(newest.digest), f"version {newest.number} of {newest.time}"
        if data is not None:
            return parse(data, path=str(records.models_path), generation=0, loaded_at=0.0), what
    if path.resolve() == records.models_path.resolve():
        raise _Nobody(
            f"there is nothing to compare {path} with: {records.audit_log.path} knows no version that is kept"
        )
    try:
        return parse(records.models_path.read_bytes(), path=str(records.models_path), generation=0, loaded_at=0.0), str(
            records.models_path
        )
    except FaultyFile as error:
        raise _Nobody(f"{records.models_path} is faulty: there is nothing good to compare with") from error


# Drawing ..............................................................................................................

_STYLES = {"impossible": "bold red", "waits": "not bold yellow", "loaded": "not bold green"}


def _draw(told: dict[str, Any], path: Path) -> None:
    out = console()
    for fault in (*told.get("faults", ()), *told.get("warnings", ())):
        style = "red" if fault in told.get("faults", ()) else "yellow"
        out.print(Text(_words_of_fault(fault), style=style), soft_wrap=True)
    if told["verdict"] == "faulty":
        out.print(Text(f"{path} would be refused", style="bold red"))
        return
    if told["verdict"] == "nothing":
        out.print(f"nothing to do: {path} means what is in force")
        return
    against = told.get("compared_with") or f"generation {told['generation']}"
    out.print(f"{path}, compared with {against}:", soft_wrap=True)
    aliases = told.get("aliases", ())
    for phrase in told["summary"].split("; "):
        if not aliases or "alias " not in phrase[:7]:
            out.print(f"  {phrase}", soft_wrap=True)
    for alias in aliases:
        out.print(_alias(alias), soft_wrap=True)
    devices = _devices(told.get("devices", ()))
    if devices.row_count:
        out.print()
        out.print(devices)
    for note in told.get("notes", ()):
        out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    if told["verdict"] == "impossible":
        out.print(Text("not everything in it is possible", style="bold red"))


def _words_of_fault(fault: dict[str, Any]) -> str:
    place = fault["path"] if fault["line"] is None else f"{fault['path']}:{fault['line']}"
    what = fault["message"] if fault["key"] is None else f"{fault['key']}: {fault['message']}"
    return f"{place}: {what}" + (f"; {fault['hint']}" if fault["hint"] else "")


def _alias(alias: dict[str, Any]) -> Text:
    told = entry(f"{alias['name']}  {alias['old'] or 'nothing'} -> {alias['new'] or 'nothing'}  {_moves(alias)}")
    for placement in alias["placements"]:
        told.append(f"\n    {_placement(placement)}", style=_STYLES.get(placement["state"], "not bold"))
    for model, count in alias["in_flight"].items():
        told.append(f"\n    {count} requests under way on {model} end there", style="not bold")
    return told


def _moves(alias: dict[str, Any]) -> str:
    if alias["is_warm"]:
        return "once warm"
    return {"removed": "at once: 404 from then on", "affected": "stays; its model changes"}.get(
        alias["change"], "at once"
    )


def _placement(placement: dict[str, Any]) -> str:
    model, where = placement["model"], ", ".join(placement["nodes"])
    words = {
        "loaded": f"{model} is loaded on {where}",
        "loading": f"{model} is being loaded on {where}",
        "waits": f"{model} has to wait: {placement['reason']}",
        "impossible": f"impossible: {placement['reason']}",
    }.get(placement["state"])
    if words is not None:
        return words
    size = "" if placement["vram_mb"] is None else f", {placement['vram_mb']:,} MB"
    evicts = f", evicting {', '.join(placement['evicts'])}" if placement["evicts"] else ""
    devices = f"device{'s' if len(placement['devices']) > 1 else ''} {', '.join(map(str, placement['devices']))}"
    return f"{model} loads on {where}, {devices}{size}{evicts}"


def _devices(devices: Iterable[dict[str, Any]]) -> Table:
    drawn = table("VRAM, MB", "neuron", "device", "total", "used now", "used then")
    for device in devices:
        before, after = (
            "?" if device[key] is None else f"{device[key]:,}" for key in ("used_before_mb", "used_after_mb")
        )
        style = "" if before == after else "bold"
        drawn.add_row(
            device["node"], str(device["device"]), f"{device['total_mb']:,}", before, Text(after, style=style)
        )
    return drawn
