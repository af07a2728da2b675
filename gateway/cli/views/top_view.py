"""One frame of `cortex top`: figures, problems, the hosts' memory as bars, and the requests. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gateway.cli.live_figures import LiveFigures
from gateway.cli.views.problems_view import problem_lines

__all__ = ["Trend", "render_top"]

BAR_CELLS, LEAST_BAR_CELLS = 44, 12
REQUESTS_SHOWN = 30
SPARKS = " ▁▂▃▄▅▆▇█"
# By a model's status: how its block is drawn. Shapes, not only colours, tell them apart.
_BLOCKS = {"loaded": ("█", "green"), "loading": ("▒", "yellow"), "asleep": ("░", "blue")}
_OTHER_BLOCK = ("▓", "magenta")
_STATUS_STYLES = {"ok": "bold green", "impaired": "bold yellow", "degraded": "bold red"}


class Trend:
    """The last values of one figure, as a line of bars."""

    def __init__(self, length: int = 60) -> None:
        self._values: list[float] = []
        self._length = length

    def add(self, value: float) -> None:
        """Add the newest value, and forget the oldest beyond the length."""
        self._values = [*self._values[-self._length + 1 :], value]

    def __str__(self) -> str:
        top = max(self._values, default=0.0)
        steps = len(SPARKS) - 1
        return "".join(SPARKS[0 if top <= 0 else round(value / top * steps)] for value in self._values)


def render_top(state: Mapping[str, Any], figures: LiveFigures, trends: Mapping[str, Trend]) -> RenderableType:
    """A frame. `state` is that of `read_state`; `trends` has a line for each figure."""
    parts: list[RenderableType] = [_head(state, figures)]
    parts += problem_lines(state["health"]["problems"])
    parts += [Text(f"{name:<12} {trend}", no_wrap=True, overflow="crop") for name, trend in trends.items()]
    if "fleet" in state:
        parts += [Text(""), _hosts(state["fleet"]["nodes"], figures), Text(""), _requests(state["requests"])]
    else:
        parts.append(
            Text(state.get("admin_error") or "a key with the verb read shows hosts and requests", style="yellow")
        )
    return Group(*parts)


def _head(state: Mapping[str, Any], figures: LiveFigures) -> RenderableType:
    health, requests = state["health"], state.get("requests", [])
    waiting = sum(request["state"] != "running" for request in requests)
    by_neuron = figures.by_neuron()
    first_tokens = [each.first_token_p95_s for each in by_neuron if each.first_token_p95_s is not None]
    line = Text()
    line.append("cortex top  ", style="bold")
    line.append(health["status"], style=_STATUS_STYLES.get(health["status"], "bold"))
    nodes = health["nodes"]
    line.append(f"   {nodes['healthy']} of {nodes['total']} neurons")
    line.append(f"   {sum(each.requests_per_s for each in by_neuron):.1f} requests/s")
    line.append(f"   {sum(each.tokens_per_s for each in by_neuron):.0f} tokens/s")
    line.append(f"   first token p95 {max(first_tokens):.2f} s" if first_tokens else "   first token p95 -")
    line.append(f"   {len(requests) - waiting} running, {waiting} waiting")
    line.append(f"   {time.strftime('%H:%M:%S %Z')}", style="dim")
    return line


def _hosts(nodes: Sequence[Mapping[str, Any]], figures: LiveFigures) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("host", no_wrap=True)
    table.add_column("memory")
    for column in ("GB", "busy", "W", "°C", "req/s", "tok/s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("models")
    rates = {each.node: each for each in figures.by_neuron()}
    for node in nodes:
        rate = rates.get(node["name"])
        for index, device in enumerate(node["devices"] or [{}]):
            own = [model for model in node["models"] if device.get("index") in (model.get("devices") or ())]
            first = index == 0
            table.add_row(
                _host_name(node) if first else "",
                _Bar(device, own),
                _memory(device),
                _number(device.get("utilization_pct"), " %"),
                _number(device.get("power_w")),
                _number(device.get("temp_c")),
                f"{rate.requests_per_s:.1f}" if first and rate is not None else "",
                f"{rate.tokens_per_s:.0f}" if first and rate is not None else "",
                _model_names(own),
            )
    return table


def _host_name(node: Mapping[str, Any]) -> Text:
    if not node["healthy"]:
        return Text(f"{node['name']} (down)", style="bold red")
    return Text(f"{node['name']} (drained)", style="yellow") if node["draining"] else Text(node["name"])


class _Bar:
    """A device's memory: a block for each model, then what others use, then dots for what is free.

    It is as wide as the terminal has room for: a bar that was cut off would show a full device.
    """

    def __init__(self, device: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> None:
        self._total, self._used = device.get("vram_total_mb"), device.get("vram_used_mb")
        self._models = models

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(LEAST_BAR_CELLS, BAR_CELLS)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._text(min(BAR_CELLS, options.max_width))

    def _text(self, width: int) -> Text:
        total, used = self._total, self._used
        bar = Text(no_wrap=True)
        if not total or used is None:
            return Text("not reported", style="dim")
        left = width
        known_mb = 0.0
        for model in self._models:
            share_mb = (model.get("vram_used_mb") or 0) / max(len(model["devices"]), 1)
            cells = min(left, round(share_mb / total * width))
            shape, style = _BLOCKS.get(model["status"], _OTHER_BLOCK)
            bar.append((shape * (cells - 1) + "▏") if cells > 1 else shape * cells, style=style)
            left -= cells
            known_mb += share_mb
        others = min(left, round(max(used - known_mb, 0) / total * width))
        bar.append("▓" * others, style="magenta")
        bar.append("·" * (left - others), style="dim")
        return bar


def _memory(device: Mapping[str, Any]) -> str:
    total, used = device.get("vram_total_mb"), device.get("vram_used_mb")
    return "-" if not total or used is None else f"{used / 1024:.1f} / {total / 1024:.0f}"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.0f}{unit}"


def _model_names(models: Sequence[Mapping[str, Any]]) -> Text:
    names = Text(overflow="ellipsis", no_wrap=True)
    for index, model in enumerate(models):
        shape, style = _BLOCKS.get(model["status"], _OTHER_BLOCK)
        names.append(", " if index else "")
        names.append(shape, style=style)
        names.append(f" {model['id'].rpartition('/')[2]}")
        if model["status"] != "loaded":
            names.append(f" ({model['status']})", style="dim")
        elif model.get("leases"):
            names.append(f" {model['leases']}", style="bold")
    return names


def _requests(requests: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for column in ("elapsed", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("requested", "model"):
        table.add_column(column)  # these and the ids get narrower on a narrow terminal
    for column in ("neuron", "key"):
        table.add_column(column, no_wrap=True)
    table.add_column("request")
    for request in sorted(requests, key=lambda request: -request["elapsed_s"])[:REQUESTS_SHOWN]:
        state = request["node"] if request["state"] == "running" else request["state"]
        table.add_row(
            f"{request['elapsed_s']:.1f} s",
            "-" if request["tokens"] is None else str(request["tokens"]),
            _cell(request["alias"] or request["model"]),
            _cell((request["model"] or "").rpartition("/")[2]),
            _cell(state, "" if request["state"] == "running" else "yellow"),
            _cell(request["key"]["name"] if request["key"] else "-"),
            _cell(request["request_id"]),
        )
    if len(requests) > REQUESTS_SHOWN:
        table.add_row("", "", f"and {len(requests) - REQUESTS_SHOWN} more")
    return table


def _cell(text: str | None, style: str = "") -> Text:
    """One line, cut off where it does not fit. Not a string, which rich would read as markup."""
    return Text(text or "", style, no_wrap=True, overflow="ellipsis")
