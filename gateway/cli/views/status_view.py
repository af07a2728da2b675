"""`cortex status`, `drain` and `undrain`: a client of the gateway's HTTP API, for a person at a terminal. Blocking."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click
import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.cli import api_client
from gateway.cli.api_client import NoAnswer
from gateway.cli.terminal import console as _console
from gateway.cli.terminal import table as _table

__all__ = ["Source", "drain", "run", "undrain"]

REDRAW_S = 2.0
DRAIN_LOOK_S = 0.5
REQUESTS_SHOWN = 20
UNREACHABLE = 2  # exit code


@dataclass(frozen=True, slots=True)
class Source:
    """Where to ask: the base URLs of the API and of the metrics port, which is asked only if there is a token."""

    endpoint: str
    admin: str = "http://localhost:31314"
    token: str | None = None


def run(source: Source, *, as_json: bool, watch: bool) -> int:
    """Show it once, or until Ctrl-C; returns the exit code: 0, or 2 if the gateway does not answer.

    A gateway that goes away while being watched is told in its place, and looked for again.
    """
    console = _console()
    try:
        known = _read(source)
        if as_json:
            click.echo(json.dumps(known, indent=2, ensure_ascii=False))
        elif watch:
            _redraw_for_ever(source, console)
        else:
            console.print(_render(known))
    except NoAnswer as error:
        _complain(f"cortex status: {error}")
        return UNREACHABLE
    except KeyboardInterrupt:
        pass
    return 0


def _complain(text: str) -> None:
    _console(stderr=True).print(text)


def _redraw_for_ever(source: Source, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_look(source), refresh=True)
            time.sleep(REDRAW_S)


def _look(source: Source) -> RenderableType:
    try:
        return _render(_read(source))
    except NoAnswer as error:
        return Text(f"{error}; still trying", style="bold red")


def _read(source: Source) -> dict[str, Any]:
    """Everything there is to know: `health`, `models`, and `fleet` and `requests`, or `admin_error` why they are not.

    Raises:
        NoAnswer: The public port does not answer as a gateway does.
    """
    with api_client.client() as client:
        known = {
            "health": api_client.get(client, f"{source.endpoint}/health", ("nodes", "catalogue")),
            "models": api_client.get(client, f"{source.endpoint}/v1/models", ("data",))["data"],
        }
        if source.token is not None:
            try:
                known |= _read_admin(client, source.admin, source.token)
            except NoAnswer as error:  # a wrong token must not hide what everybody may see
                known["admin_error"] = str(error)
    return known


def _read_admin(client: httpx.Client, admin: str, token: str) -> dict[str, Any]:
    bearer = {"authorization": f"Bearer {token}"}
    return {
        "fleet": api_client.get(client, f"{admin}/admin/fleet", ("nodes", "loads"), bearer),
        "requests": api_client.get(client, f"{admin}/admin/requests", ("requests",), bearer)["requests"],
    }


# Drawing ..............................................................................................................


def _render(known: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [_headline(known["health"])]
    parts += _faults(known["health"])
    if "admin_error" in known:
        parts.append(Text(f"devices, leases and requests are not shown: {known['admin_error']}", style="yellow"))
    fleet = known.get("fleet")
    parts.append(_held(known["models"]) if fleet is None else _nodes(fleet))
    parts.append(_models(known["models"], () if fleet is None else fleet["nodes"]))
    parts.append(_aliases(known["models"]))
    parts.append(_swaps(known["health"].get("swaps", ())))
    if fleet is not None:
        parts.append(_moves(fleet["drains"]))
        parts.append(_loads(fleet["loads"]))
        parts.append(_failing(fleet["failing"]))
        parts.append(_lines(fleet["queue"]))
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
    return [*_faults_of_the_file(health), *_faults_of_the_trail(health.get("audit") or {})]


def _faults_of_the_trail(audit: dict[str, Any]) -> list[RenderableType]:
    if audit.get("error") is None:
        return []
    pending = f"{audit['pending']} lines wait" + (f", {audit['lost']} are lost" if audit["lost"] else "")
    return [Text(f"the audit trail cannot be written: {audit['error']}; {pending}", style="bold yellow")]


def _faults_of_the_file(health: dict[str, Any]) -> list[RenderableType]:
    error = health["catalogue"]["error"]
    if error is None:
        return []
    generation = health["catalogue"]["generation"]
    told = Text(f"the file on disk is NOT in force; generation {generation} stays in force:", style="bold red")
    for fault in error["faults"]:
        place = "" if fault["line"] is None else f"line {fault['line']}: "
        key = "" if fault["key"] is None else f"{fault['key']}: "
        hint = "" if fault["hint"] is None else f" ({fault['hint']})"
        told.append(f"\n  {place}{key}{fault['message']}{hint}", style="red")
    return [told]


def _nodes(fleet: Mapping[str, Any]) -> Table:
    nodes, drains = fleet["nodes"], {drain["node"]: drain["state"] for drain in fleet["drains"]}
    table = _table("neurons", "neuron", "state", "device", "VRAM used / total MB", "leases", "queued there")
    for node in nodes:
        state = _state(node, drains.get(node["name"], "open"))
        for index, device in enumerate(node["devices"] or [None]):
            used = "-" if device is None or device["vram_used_mb"] is None else str(device["vram_used_mb"])
            total = "-" if device is None else str(device["vram_total_mb"])
            first = (node["name"], state) if index == 0 else ("", "")
            queued = sum(model["queue_depth"] or 0 for model in node["models"])
            load = (str(node["leases"]), str(queued)) if index == 0 else ("", "")
            table.add_row(*first, "-" if device is None else device["name"], f"{used} / {total}", *load)
    return table


def _state(node: Mapping[str, Any], drain: str) -> str:
    """Whether it is there, and on its way out: two things, and both matter."""
    health = "healthy" if node["healthy"] else "down"
    return health if drain == "open" else f"{health}, {drain}"


def _moves(drains: list[dict[str, Any]]) -> Table:
    table = _table("moving away", "from", "model", "state", "to", "why not")
    for drain in drains:
        if drain["state"] != "open" or any(move["state"] == "failed" for move in drain["moves"]):
            for move in drain["moves"]:
                table.add_row(drain["node"], move["model"], move["state"], move["node"] or "-", move["reason"] or "-")
    return table


def _held(models: list[dict[str, Any]]) -> Table:
    """The neurons as the public port knows them: by what they hold. Devices are told to operators only."""
    table = _table("neurons", "neuron", "models", "VRAM held MB")
    places = [place for model in models if model.get("alias_of") is None for place in model["locations"]]
    for name in sorted({place["node"] for place in places}):
        held = [place["vram_estimate_mb"] for place in places if place["node"] == name]
        table.add_row(name, str(len(held)), str(sum(vram_mb or 0 for vram_mb in held)))
    return table


def _models(models: list[dict[str, Any]], nodes: Iterable[Mapping[str, Any]]) -> Table:
    """A row per place; what the public port does not tell (leases, last use) is in `nodes`, if there are any."""
    seen = {(node["name"], held["id"]): held for node in nodes for held in node["models"]}
    more = ("leases", "last used") if seen else ()
    table = _table("models", "model", "neuron", "state", *more, "could be loaded on")
    for model in models:
        if model.get("alias_of") is None:
            first = model["id"], ", ".join(model["feasible_on"]) or "-"
            places = [_place(place, _held_as(model["id"], place["node"], seen)) for place in model["locations"]]
            for index, place in enumerate(places or [("-", "-", "-", "-")]):
                name, feasible = first if index == 0 else ("", "")
                table.add_row(name, *place[: 2 + len(more)], feasible)
    return table


def _held_as(model: str, node: str, seen: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any] | None:
    """A model that was loaded from a source goes by `source:id` at its neuron."""
    places = (held for (at, name), held in seen.items() if at == node and (name == model or name.endswith(f":{model}")))
    return next(places, None)


def _place(place: Mapping[str, Any], held: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    if held is None:
        return place["node"], place["status"], "-", "-"
    idle = "never" if held["idle_s"] is None else "now" if held["leases"] else _ago(held["idle_s"])
    return place["node"], place["status"], str(held["leases"]), idle


def _ago(elapsed_s: float) -> str:
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if elapsed_s >= 2 * unit:
            return f"{elapsed_s // unit:.0f} {name} ago"
    return f"{elapsed_s:.0f} s ago"


def _aliases(models: list[dict[str, Any]]) -> Table:
    table = _table("aliases", "alias", "model", "loaded")
    for model in models:
        if model.get("alias_of") is not None:
            table.add_row(model["id"], model["alias_of"], "yes" if model["loaded"] else "no")
    return table


def _swaps(swaps: Iterable[dict[str, Any]]) -> Table:
    table = _table("swaps", "alias", "in force", "wanted by the file", "state", "for", "why")
    for swap in swaps:
        state = swap["state"] if swap["phase"] is None else f"{swap['state']}: {swap['phase']}"
        elapsed = "-" if swap["elapsed_s"] is None else f"{swap['elapsed_s']:.0f} s"
        table.add_row(swap["alias"], swap["in_force"], swap["wanted"], state, elapsed, swap["reason"] or "-")
    return table


def _loads(loads: list[dict[str, Any]]) -> Table:
    table = _table("loading", "model", "neuron", "for", "usually takes", "waiting")
    for load in loads:
        usual = "-" if load["estimate_s"] is None else f"{load['estimate_s']:.0f} s"
        elapsed = f"{load['elapsed_s']:.0f} s" + (", overdue" if load["overdue"] else "")
        table.add_row(load["model"], load["node"], elapsed, usual, str(load["waiters"]))
    return table


def _failing(failing: list[dict[str, Any]]) -> Table:
    table = _table("loads that fail", "model", "neuron", "in a row", "tried again in", "reason")
    for pair in failing:
        again = f"{pair['retry_in_s']:.0f} s" if pair["retry_in_s"] else "any time"
        table.add_row(pair["model"], pair["node"], str(pair["failures"]), again, pair["reason"])
    return table


def _lines(lines: list[dict[str, Any]]) -> Table:
    table = _table("queue", "model", "per neuron", "at work", "in line", "longest", "waiting for its load")
    for line in lines:
        ceiling = "-" if line["ceiling"] is None else str(line["ceiling"])
        longest = f"{line['oldest_s']:.1f} s" if line["waiting_for_place"] else "-"
        counts = str(line["waiting_for_place"]), longest, str(line["waiting_for_load"])
        table.add_row(line["model"], ceiling, str(line["leases"]), *counts)
    return table


def _requests(requests: list[dict[str, Any]]) -> Table:
    """Those at a neuron first, then those in line, in the order of the line."""
    running = sum(request["state"] == "running" for request in requests)
    title = f"requests: {running} at a neuron, {len(requests) - running} waiting"
    table = _table(title, "request", "asked for", "model", "where", "for")
    for request in sorted(requests, key=lambda request: request["position"] or 0)[:REQUESTS_SHOWN]:
        model = request["model"] or "-"
        where = _whereabouts(request)
        table.add_row(request["request_id"], request["alias"] or model, model, where, f"{request['elapsed_s']:.1f} s")
    return table


def _whereabouts(request: Mapping[str, Any]) -> str:
    match request["state"]:
        case "running":
            return str(request["node"])
        case "queued":
            return f"in line, number {request['position']}"
        case "loading":
            return "waiting for its load"
        case _:
            return str(request["state"])


# Draining .............................................................................................................


def drain(admin: str, token: str, neuron: str, *, move: bool) -> int:
    """Take a neuron out and wait until its last request has ended, with progress on the way.

    Exit codes: 0 drained; 1 refused, or a model could not be moved and the neuron stays open; 2 no answer; 130 Ctrl-C,
    which stops the watching and not the drain.
    """
    order = _Order(admin, token, neuron)
    try:
        return order.run("drain", {"move": move}, follow=True)
    except KeyboardInterrupt:
        _complain(f"the drain goes on; `cortex undrain {neuron}` takes it back")
        return 130


def undrain(admin: str, token: str, neuron: str) -> int:
    """Let requests on to it again."""
    return _Order(admin, token, neuron).run("undrain", {}, follow=False)


class _Order:
    """One order to one neuron, and what it says of its progress: a line whenever that changes."""

    def __init__(self, admin: str, token: str, neuron: str) -> None:
        self._token = token
        self._url = f"{admin}/admin/nodes/{quote(neuron, safe='')}"
        self._console = _console()
        self._told: list[str] = []

    def run(self, what: str, body: Mapping[str, Any], *, follow: bool) -> int:
        bearer = {"authorization": f"Bearer {self._token}"}
        data = json.dumps(body).encode()
        try:
            with api_client.client() as client:
                view = api_client.post(client, f"{self._url}/{what}", ("state",), token=self._token, data=data)
                while follow and view["state"] in {"moving", "draining"}:
                    self._tell(view)
                    time.sleep(DRAIN_LOOK_S)
                    view = api_client.get(client, self._url, ("state",), bearer)
        except NoAnswer as error:
            _complain(f"cortex: {error}")
            return UNREACHABLE if error.status is None else 1
        self._tell(view)
        return int(follow and view["state"] == "open")

    def _tell(self, view: Mapping[str, Any]) -> None:
        for line in _progress(view):
            if line not in self._told:
                self._told.append(line)
                self._console.print(line, soft_wrap=True)


def _progress(view: Mapping[str, Any]) -> list[str]:
    """What there is to say of a drain now, a sentence per line; a line that was said before is not news."""
    node, leases = view["node"], view["leases"]
    lines = []
    for move in view["moves"]:
        match move["state"]:
            case "loading":
                lines.append(f"{move['model']}: only {node} has it; loading it elsewhere")
            case "moved":
                lines.append(f"{move['model']}: on {move['node']} now")
                lines += [f"{lost}: loaded nowhere now: its place was needed" for lost in move.get("displaced", ())]
            case _:
                lines.append(f"{move['model']}: cannot be moved: {move['reason']}")
    match view["state"]:
        case "draining":
            lines.append(f"{node}: draining, {leases} request{'s' * (leases != 1)} still on it")
        case "drained":
            lines.append(f"{node}: drained")
        case "open":
            lines.append(f"{node}: open")
    return lines
