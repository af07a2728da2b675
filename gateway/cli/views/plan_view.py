"""What `cortex plan` prints, from the JSON of the admin API or its offline counterpart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.terminal import console, entry, table
from gateway.cli.views.fault_text import fault_text

__all__ = ["print_plan"]


def print_plan(plan: dict[str, Any], name: str) -> None:
    """Print the plan of the file with this name; offline it has neither aliases nor devices."""
    out = console()
    for kind, style in (("faults", "red"), ("warnings", "yellow")):
        for fault in plan.get(kind, ()):
            out.print(Text(fault_text(fault), style=style), soft_wrap=True)
    if plan["verdict"] == "faulty":
        out.print(Text(f"the gateway would refuse {name}", style="bold red"), soft_wrap=True)
        return
    if plan["verdict"] == "nothing":
        out.print(f"nothing to do: {name} changes nothing that is in force", soft_wrap=True)
    else:
        _print_changes(out, plan, name)
    for note in plan.get("notes", ()):
        out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    if plan["verdict"] == "impossible":
        out.print(Text("part of this change is impossible", style="bold red"))


def _print_changes(out: Console, plan: dict[str, Any], name: str) -> None:
    against = plan.get("compared_with") or f"generation {plan['generation']}"
    out.print(f"{name}, compared with {against}:", soft_wrap=True)
    aliases = plan.get("aliases", ())
    for phrase in plan["summary"].split("; "):
        if not aliases or "alias " not in phrase[:7]:
            out.print(f"  {phrase}", soft_wrap=True)
    for alias in aliases:
        out.print(_alias_entry(alias), soft_wrap=True)
    devices = _device_table(plan.get("devices", ()))
    if devices.row_count:
        out.print()
        out.print(devices)


_PLACEMENT_STYLES = {"impossible": "bold red", "waits": "not bold yellow", "loaded": "not bold green"}


def _alias_entry(alias: dict[str, Any]) -> Text:
    text = entry(f"{alias['name']}  {alias['old'] or 'nothing'} -> {alias['new'] or 'nothing'}  {_when(alias)}")
    for placement in alias["placements"]:
        style = _PLACEMENT_STYLES.get(placement["state"], "not bold")
        text.append(f"\n    {_placement_text(placement)}", style=style)
    for model, count in alias["in_flight"].items():
        text.append(f"\n    {count} running request{'s' * (count != 1)} on {model} will finish there", style="not bold")
    return text


def _when(alias: dict[str, Any]) -> str:
    if alias["is_warm"]:
        return "once the target is loaded and has answered"
    return {"removed": "at once; requests get 404 from then on", "affected": "same target, whose settings change"}.get(
        alias["change"], "at once"
    )


def _placement_text(placement: dict[str, Any]) -> str:
    model, where = placement["model"], ", ".join(placement["nodes"])
    match placement["state"]:
        case "loaded":
            return f"{model} is loaded on {where}"
        case "loading":
            return f"{model} is being loaded on {where}"
        case "waits":
            return f"{model} must wait: {placement['reason']}"
        case "impossible":
            return f"impossible: {placement['reason']}"
    size = "" if placement["vram_mb"] is None else f", {placement['vram_mb']:,} MB"
    evicts = f", evicting {', '.join(placement['evicts'])}" if placement["evicts"] else ""
    devices = f"device{'s' * (len(placement['devices']) > 1)} {', '.join(map(str, placement['devices']))}"
    verb = "is woken" if placement.get("wakes") else "loads"
    took_s = placement.get("expected_s")
    took = "" if took_s is None else f"; the last times took {took_s:.0f} s"
    return f"{model} {verb} on {where}, {devices}{size}{evicts}{took}"


def _device_table(devices: Iterable[dict[str, Any]]) -> Table:
    result = table("VRAM, MB", "neuron", "device", "total", "used now", "used after")
    for device in devices:
        before, after = (
            "?" if device[key] is None else f"{device[key]:,}" for key in ("used_before_mb", "used_after_mb")
        )
        style = "" if before == after else "bold"
        result.add_row(
            device["node"], str(device["device"]), f"{device['total_mb']:,}", before, Text(after, style=style)
        )
    return result
