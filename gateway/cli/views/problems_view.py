"""The problems, the aliases and the live figures that `cortex status` prints, from `/health` and `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from gateway.cli.live_figures import LiveFigures
from gateway.cli.terminal import table

__all__ = ["aliases_table", "figures_table", "problem_lines"]

PROBLEMS_SHOWN = 20
SUBJECTS_SHOWN = 8  # of one line


def problem_lines(problems: Sequence[Mapping[str, Any]]) -> list[Text]:
    """A line per problem: its code, what it is about, since when, and why.

    Problems with the same code and the same reason share a line: when every neuron is down, all aliases have that one.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for problem in problems:
        groups.setdefault((problem["code"], problem["text"]), []).append(problem)
    lines = [_problem_line(group) for group in list(groups.values())[:PROBLEMS_SHOWN]]
    if len(groups) > PROBLEMS_SHOWN:
        left_out = sum(len(group) for group in list(groups.values())[PROBLEMS_SHOWN:])
        lines.append(Text(f"  and {left_out} more: `cortex status --json` lists all", "yellow"))
    return lines


def _problem_line(group: Sequence[Mapping[str, Any]]) -> Text:
    subjects = ", ".join(problem["subject"] for problem in group[:SUBJECTS_SHOWN])
    if len(group) > SUBJECTS_SHOWN:
        subjects += f" and {len(group) - SUBJECTS_SHOWN} more"
    line = Text("  ")
    line.append(group[0]["code"], style="bold yellow")
    line.append(f"  {subjects}", style="bold")
    line.append(f"  since {_since(min(problem['since'] for problem in group))}: {group[0]['text']}")
    return line


def _since(unix_s: float) -> str:
    """The local time, with the date if it is not today's."""
    then = time.localtime(unix_s)
    is_today = time.strftime("%F", then) == time.strftime("%F")
    return time.strftime("%H:%M:%S" if is_today else "%F %H:%M", then)


def aliases_table(aliases: Iterable[Mapping[str, Any]], models: Iterable[Mapping[str, Any]]) -> Table:
    """A row per target of every configured alias; the alias's own cells are in its first row."""
    locations = {model["id"]: model["locations"] for model in models if model.get("alias_of") is None}
    result = table("aliases", "alias", "target", "share", "on", "state", "rollout")
    for alias in aliases:
        total = sum(target["weight"] for target in alias["targets"]) or 1.0
        for index, target in enumerate(alias["targets"]):
            is_first = index == 0
            result.add_row(
                alias["name"] if is_first else "",
                target["model"],
                f"{100 * target['weight'] / total:g} %",
                _places(locations.get(target["model"], ())),
                alias["state"] if is_first else "",
                _rollout(alias["name"], alias["rollout"]) if is_first else "",
            )
    return result


def _places(locations: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{place['node']} {place['status']}" for place in locations) or "nowhere"


def _rollout(alias: str, rollout: Mapping[str, Any] | None) -> str:
    if rollout is None:
        return "-"
    if rollout["state"] != "running":
        state = rollout["state"].replace("_", " ")
        return (
            f"{state} from {rollout['target']}: {rollout['reason']};"
            f" `cortex alias rollout {alias} --acknowledge` removes this"
        )
    step = f"step {rollout['step']} of {rollout['steps']}: {rollout['target']} gets {rollout['percent']:g} %"
    if rollout["elapsed_s"] is not None:
        step += f", {rollout['elapsed_s']:.0f} of {rollout['every_s']:g} s"
    counts = f"requests {rollout['requests_old']} old, {rollout['requests_new']} new"
    distances = ", ".join(f"{guard} {distance:.2f}" for guard, distance in sorted(rollout["guards"].items()))
    guards = f"; guards (1 far, 0 trips): {distances}" if distances else ""
    return f"{step}; waits for {rollout['waits_for']}; {counts}{guards}"


def figures_table(figures: LiveFigures) -> Table:
    """What each neuron did in the last seconds."""
    title = f"last {figures.window_s:.0f} s" if figures.window_s else "measuring"
    result = table(title, "neuron", "requests/s", "tokens/s", "TTFT p50", "TTFT p95", "GPU utilization")
    for neuron in figures.by_neuron():
        result.add_row(
            neuron.node,
            f"{neuron.requests_per_s:.1f}",
            f"{neuron.tokens_per_s:.0f}",
            _seconds(neuron.first_token_p50_s),
            _seconds(neuron.first_token_p95_s),
            ", ".join(f"{share:.0%}" for share in neuron.utilization) or "-",
        )
    return result


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
