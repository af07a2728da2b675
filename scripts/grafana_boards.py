"""Writes deploy/grafana/*.json. Usage: grafana_boards.py

Each board is rows of panels; each panel has a title, a unit, and queries with their legends. Grafana's JSON of a board:
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana"
WIDTH = 24  # of Grafana's grid
HEIGHT = 8  # of a panel
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` maps PromQL to its legend; a `stat` shows the last value instead of a graph."""

    title: str
    unit: str
    queries: dict[str, str]
    text: str = ""
    stat: bool = False
    maximum: float | None = None


@dataclass(frozen=True)
class Board:
    """One dashboard, with its file's name."""

    name: str
    title: str
    rows: dict[str, tuple[Panel, ...]]


def quantile(share: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram over Grafana's interval."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[{RATE}])))"


def rate(metric: str, by: str = "", *, or_zero: bool = False) -> str:
    """A counter's rate; with `or_zero`, 0 before its first sample."""
    total = f"sum by ({by}) (rate({metric}[{RATE}]))" if by else f"sum(rate({metric}[{RATE}]))"
    return f"{total} or vector(0)" if or_zero else total


def last_hour(metric: str, by: str) -> str:
    """How much a counter has grown within an hour; 0 before its first sample."""
    return f"sum by ({by}) (increase({metric}[1h])) or vector(0)"


COMPLETION_TOKENS = '{__name__=~"cortex_(estimated_)?completion_tokens_total"}'  # by usage, or counted by cortex
CACHED_SHARE = (
    "(sum(rate(cortex_cached_prompt_tokens_total[1d])) or vector(0)) / sum(rate(cortex_prompt_tokens_total[1d]))"
)
# Watts per token/s are joules per token; 1,000 of these are 1/3.6 Wh.
WH_PER_1000_TOKENS = f"sum(cortex_device_power_watts) / 3.6 / (sum(rate({COMPLETION_TOKENS}[{RATE}])) > 0)"
LOAD_SECONDS = "neuron_load_seconds_sum / neuron_load_seconds_count"

FLEET = Board(
    "cortex-fleet",
    "cortex: fleet",
    {
        "Now": (
            Panel("Neurons that answer", "none", {"sum(cortex_node_healthy)": "up"}, stat=True),
            Panel("Neurons drained", "none", {"sum(cortex_node_drained)": "drained"}, stat=True),
            Panel("Requests running", "none", {"sum(cortex_inflight_requests)": "running"}, stat=True),
            Panel("Requests waiting", "none", {"sum(cortex_queued_requests) or vector(0)": "waiting"}, stat=True),
        ),
        "Requests": (
            Panel("Requests by neuron", "reqps", {rate("cortex_requests_total", "node"): "{{node}}"}),
            Panel(
                "Errors by code",
                "reqps",
                {rate("cortex_request_errors_total", "code", or_zero=True): "{{code}}"},
                "Requests that failed, for whichever reason; `cortex explain` shows one of them in full.",
            ),
            Panel(
                "Time to the first token",
                "s",
                {
                    quantile(0.5, "cortex_time_to_first_token_seconds"): "p50",
                    quantile(0.95, "cortex_time_to_first_token_seconds"): "p95",
                },
            ),
            Panel(
                "Duration",
                "s",
                {
                    quantile(0.5, "cortex_request_duration_seconds"): "p50",
                    quantile(0.95, "cortex_request_duration_seconds"): "p95",
                },
            ),
            Panel("Tokens by model", "none", {rate(COMPLETION_TOKENS, "model"): "{{model}}"}),
            Panel("Speed of an answer, tokens/s", "none", {quantile(0.5, "cortex_tokens_per_second"): "median"}),
        ),
        "Devices": (
            Panel(
                "Memory in use",
                "percentunit",
                {
                    "cortex_device_vram_used_bytes / (cortex_device_vram_used_bytes + cortex_device_vram_free_bytes)": (
                        "{{node}} {{device}}"
                    )
                },
                maximum=1,
            ),
            Panel("Utilization", "percentunit", {"cortex_device_utilization_ratio": "{{node}} {{device}}"}, maximum=1),
            Panel("Temperature", "celsius", {"cortex_device_temperature_celsius": "{{node}} {{device}}"}),
            Panel("Power", "watt", {"cortex_device_power_watts": "{{node}} {{device}}"}),
        ),
        "Loads": (
            Panel(
                "Cold starts",
                "none",
                {last_hour("cortex_cold_starts_total", "model"): "{{model}}"},
            ),
            Panel("Evictions", "none", {last_hour("cortex_evictions_total", "model"): "{{model}}"}),
        ),
        "The gateway itself": (
            Panel(
                "Its own time per request, p99", "s", {quantile(0.99, "cortex_overhead_seconds", "phase"): "{{phase}}"}
            ),
            Panel("CPU, cores", "none", {"rate(process_cpu_seconds_total[$__rate_interval])": "{{instance}}"}),
            Panel("Memory", "bytes", {"process_resident_memory_bytes": "{{instance}}"}),
            Panel("Open files", "percentunit", {"process_open_fds / process_max_fds": "{{instance}}"}, maximum=1),
            Panel("Retries", "reqps", {rate("cortex_retries_total", or_zero=True): "retries"}),
            Panel("Clients that left", "reqps", {rate("cortex_client_disconnects_total", or_zero=True): "disconnects"}),
        ),
    },
)

ALIASES = Board(
    "cortex-aliases",
    "cortex: aliases and rollouts",
    {
        "Now": (
            Panel("Generation in force", "none", {"cortex_catalogue_generation": "{{instance}}"}, stat=True),
            Panel("File on disk in force", "none", {"cortex_catalogue_last_reload_success": "{{instance}}"}, stat=True),
            Panel(
                "Aliases that wait for their target",
                "none",
                {"sum(cortex_alias_warming) or vector(0)": "waiting"},
                stat=True,
            ),
            Panel(
                "Aliases that could not move",
                "none",
                {"sum(cortex_alias_swap_failed) or vector(0)": "failed"},
                stat=True,
            ),
        ),
        "Traffic": (
            Panel("Requests by alias", "reqps", {rate("cortex_alias_requests_total", "alias"): "{{alias}}"}),
            Panel(
                "Requests by target",
                "reqps",
                {rate("cortex_alias_target_requests_total", "alias, target"): "{{alias}} → {{target}}"},
            ),
            Panel(
                "Time to the first token by target, p95",
                "s",
                {quantile(0.95, "cortex_alias_target_first_token_seconds", "alias, target"): "{{alias}} → {{target}}"},
            ),
            Panel(
                "Errors by target",
                "reqps",
                {
                    rate(
                        "cortex_alias_target_errors_total", "alias, target, code", or_zero=True
                    ): "{{alias}} → {{target}} {{code}}"
                },
            ),
        ),
        "Rollouts": (
            Panel(
                "Share of the new target", "percent", {"cortex_rollout_percent or vector(0)": "{{alias}}"}, maximum=100
            ),
            Panel("Step", "none", {"cortex_rollout_step or vector(0)": "{{alias}}"}),
            Panel(
                "Distance of the guards",
                "percentunit",
                {"cortex_rollout_guard_distance or vector(1)": "{{alias}} {{guard}}"},
                "1: no evidence against the new target. 0: the guard moves the alias back.",
                maximum=1,
            ),
        ),
        "Swaps and second attempts": (
            Panel(
                "Swaps by result",
                "none",
                {last_hour("cortex_alias_swaps_total", "alias, result"): "{{alias}} {{result}}"},
            ),
            Panel(
                "Fallbacks",
                "reqps",
                {
                    rate(
                        "cortex_alias_fallbacks_total", "alias, model, to", or_zero=True
                    ): "{{alias}} {{model}} → {{to}}"
                },
            ),
            Panel(
                "Hedges", "reqps", {rate("cortex_hedges_total", "alias, result", or_zero=True): "{{alias}} {{result}}"}
            ),
            Panel(
                "Shadows",
                "reqps",
                {rate("cortex_shadows_total", "alias, result", or_zero=True): "{{alias}} {{result}}"},
            ),
        ),
    },
)

USAGE = Board(
    "cortex-usage",
    "cortex: usage",
    {
        "Last day": (
            Panel("Requests", "none", {"sum(increase(cortex_requests_total[1d]))": "requests"}, stat=True),
            Panel("Prompt tokens", "none", {"sum(increase(cortex_prompt_tokens_total[1d]))": "tokens"}, stat=True),
            Panel("Completion tokens", "none", {f"sum(increase({COMPLETION_TOKENS}[1d]))": "tokens"}, stat=True),
            Panel(
                "Prompt tokens from a cache",
                "percentunit",
                {CACHED_SHARE: "share"},
                stat=True,
                maximum=1,
            ),
        ),
        "By model": (
            Panel("Requests", "reqps", {rate("cortex_requests_total", "model"): "{{model}}"}),
            Panel("Prompt tokens/s", "none", {rate("cortex_prompt_tokens_total", "model"): "{{model}}"}),
            Panel("Completion tokens/s", "none", {rate(COMPLETION_TOKENS, "model"): "{{model}}"}),
            Panel(
                "Reasoning tokens/s",
                "none",
                {rate("cortex_reasoning_tokens_total", "model", or_zero=True): "{{model}}"},
            ),
        ),
        "Power": (
            Panel("Power of all devices", "watt", {"sum(cortex_device_power_watts)": "watts"}),
            Panel(
                "Energy per 1,000 completion tokens",
                "watth",
                {WH_PER_1000_TOKENS: "Wh"},
            ),
        ),
    },
)

ENGINES = Board(
    "cortex-engines",
    "cortex: engines of neurons",
    {
        "Engines": (
            Panel("Engines that can serve", "none", {"neuron_engine_up": "{{instance}} {{model}}"}),
            Panel(
                "Restarts after crashes",
                "none",
                {"increase(neuron_engine_restarts_total[1h])": "{{instance}} {{model}}"},
            ),
            Panel(
                "Duration of loads",
                "s",
                {LOAD_SECONDS: "{{instance}} {{model}}"},
            ),
        ),
        "Devices": (
            Panel("Memory in use", "bytes", {"neuron_device_memory_used_bytes": "{{instance}} {{device}}"}),
            Panel("Memory free", "bytes", {"neuron_device_memory_free_bytes": "{{instance}} {{device}}"}),
        ),
    },
)

BOARDS = (FLEET, ALIASES, USAGE, ENGINES)


def as_json(board: Board) -> str:
    """Grafana's JSON of a board."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in board.rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": _place(0, y, WIDTH, 1),
            }
        )
        y += 1
        per_line = len(row) if len(row) <= 4 else 3
        width = WIDTH // per_line
        for index, panel in enumerate(row):
            line, column = divmod(index, per_line)
            height = HEIGHT // 2 if panel.stat else HEIGHT
            panels.append(_panel(panel, len(panels) + 1, _place(column * width, y + line * height, width, height)))
        y += (HEIGHT // 2 if row[0].stat else HEIGHT) * -(-len(row) // per_line)
    whole = {
        "uid": board.name,
        "title": board.title,
        "tags": ["cortex"],
        "timezone": "browser",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": panels,
    }
    return json.dumps(whole, indent=1) + "\n"


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.text,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend, "datasource": source}
            for index, (expr, legend) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    for each in BOARDS:
        (FOLDER / f"{each.name}.json").write_text(as_json(each))
