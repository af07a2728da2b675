"""`cortex status`, `drain` and `undrain`: a client of the gateway's HTTP API, for a person at a terminal. Blocking."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["Source", "drain", "run", "undrain"]

REDRAW_S = 2.0
DRAIN_LOOK_S = 0.5
ANSWER_S = 5.0
UNREACHABLE = 2  # exit code


@dataclass(frozen=True, slots=True)
class Source:
    """Where to ask: the API's base URL, and if there is a token the metrics port's."""

    endpoint: str
    admin: str | None = None
    token: str | None = None


def run(source: Source, *, as_json: bool, watch: bool) -> int:
    """Show it once, or until Ctrl-C; returns the exit code."""
    console = Console()
    try:
        if as_json:
            console.print_json(json.dumps(_read(source)))
        elif watch:
            _redraw_for_ever(source, console)
        else:
            console.print(_render(_read(source)))
    except httpx.HTTPError as error:
        _complain(f"cortex status: no answer from {source.endpoint}: {error}")
        return UNREACHABLE
    except KeyboardInterrupt:
        pass
    return 0


def _complain(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)


def _redraw_for_ever(source: Source, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_render(_read(source)), refresh=True)
            time.sleep(REDRAW_S)


def _read(source: Source) -> dict[str, Any]:
    """Everything there is to know. `fleet` and `requests` only with a token. Raises httpx.HTTPError."""
    with _client() as client:
        known = {
            "health": client.get(f"{source.endpoint}/health").raise_for_status().json(),
            "models": client.get(f"{source.endpoint}/v1/models").raise_for_status().json()["data"],
        }
        if source.token is not None:
            admin = (source.admin or "http://localhost:31314").rstrip("/")
            bearer = {"authorization": f"Bearer {source.token}"}
            known["fleet"] = client.get(f"{admin}/admin/fleet", headers=bearer).raise_for_status().json()
            known["requests"] = (
                client.get(f"{admin}/admin/requests", headers=bearer).raise_for_status().json()["requests"]
            )
    return known


def _client() -> httpx.Client:
    return httpx.Client(trust_env=False, timeout=ANSWER_S)


# Drawing ..............................................................................................................


def _render(known: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [_headline(known["health"])]
    parts += _faults(known["health"])
    fleet = known.get("fleet")
    if fleet is not None:
        parts.append(_nodes(fleet["nodes"]))
    parts.append(_models(known["models"]))
    parts.append(_aliases(known["models"]))
    if fleet is not None:
        parts.append(_loads(fleet["loads"]))
        parts.append(_requests(known["requests"]))
    return Group(*[part for part in parts if not isinstance(part, Table) or part.row_count])


_COLOURS = {"ok": "green", "impaired": "yellow", "degraded": "red"}


def _headline(health: dict[str, Any]) -> Text:
    catalogue = health["catalogue"]
    text = Text()
    text.append(health["status"], style=f"bold {_COLOURS.get(health['status'], '')}")
    text.append(f"   {health['nodes']['healthy']} of {health['nodes']['total']} neurons healthy")
    text.append(f"   catalogue generation {catalogue['generation']} ({catalogue['path'] or 'none'})")
    return text


def _faults(health: dict[str, Any]) -> list[RenderableType]:
    error = health["catalogue"]["error"]
    if error is None:
        return []
    told = Text("the file on disk is NOT in force; generation in force stays:", style="bold red")
    for fault in error["faults"]:
        place = "" if fault["line"] is None else f"line {fault['line']}: "
        key = "" if fault["key"] is None else f"{fault['key']}: "
        hint = "" if fault["hint"] is None else f" ({fault['hint']})"
        told.append(f"\n  {place}{key}{fault['message']}{hint}", style="red")
    return [told]


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    table = _table("neurons", "neuron", "state", "device", "VRAM used / total MB", "leases")
    for node in nodes:
        state = "draining" if node["draining"] else "healthy" if node["healthy"] else "down"
        for index, device in enumerate(node["devices"] or [None]):
            used = "-" if device is None or device["vram_used_mb"] is None else str(device["vram_used_mb"])
            total = "-" if device is None else str(device["vram_total_mb"])
            first = (node["name"], state) if index == 0 else ("", "")
            leases = str(node["leases"]) if index == 0 else ""
            table.add_row(*first, "-" if device is None else device["name"], f"{used} / {total}", leases)
    return table


def _models(models: list[dict[str, Any]]) -> Table:
    table = _table("models", "model", "where", "could be loaded on")
    for model in models:
        if model.get("alias_of") is None:
            where = ", ".join(f"{place['node']} {place['status']}" for place in model["locations"])
            table.add_row(model["id"], where or "-", ", ".join(model["feasible_on"]) or "-")
    return table


def _aliases(models: list[dict[str, Any]]) -> Table:
    table = _table("aliases", "alias", "model", "loaded")
    for model in models:
        if model.get("alias_of") is not None:
            table.add_row(model["id"], model["alias_of"], "yes" if model["loaded"] else "no")
    return table


def _loads(loads: list[dict[str, Any]]) -> Table:
    table = _table("loading", "model", "neuron", "for", "usually takes", "waiting")
    for load in loads:
        usual = "-" if load["estimate_s"] is None else f"{load['estimate_s']:.0f} s"
        table.add_row(load["model"], load["node"], f"{load['elapsed_s']:.0f} s", usual, str(load["waiters"]))
    return table


def _requests(requests: list[dict[str, Any]]) -> Table:
    table = _table("requests under way", "request", "model", "neuron", "for")
    for request in requests[:20]:
        name = request["alias"] or request["model"] or "-"
        table.add_row(request["request_id"], name, request["node"] or "waiting", f"{request['elapsed_s']:.1f} s")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


# Draining .............................................................................................................


def drain(admin: str, token: str, neuron: str) -> int:
    """Take a neuron out and wait until its last request has ended, saying how many are left."""
    return _operate(admin, token, f"{admin}/admin/nodes/{neuron}/drain", wait=True)


def undrain(admin: str, token: str, neuron: str) -> int:
    """Let requests on to it again."""
    return _operate(admin, token, f"{admin}/admin/nodes/{neuron}/undrain", wait=False)


def _operate(admin: str, token: str, url: str, *, wait: bool) -> int:
    console = Console()
    try:
        with _client() as client:
            client.headers["authorization"] = f"Bearer {token}"
            answer = client.post(url)
            while answer.is_success and wait and answer.json()["leases"]:
                console.print(f"{answer.json()['leases']} requests still run on {answer.json()['node']}")
                time.sleep(DRAIN_LOOK_S)
                answer = client.post(url)
    except httpx.HTTPError as error:
        _complain(f"cortex: no answer from {admin}: {error}")
        return UNREACHABLE
    if not answer.is_success:
        _complain(f"cortex: {answer.json()['error']['message']}")
        return 1
    state = "drained" if answer.json()["draining"] else "open"
    console.print(f"{answer.json()['node']}: {state}")
    return 0
