"""What `cortex alias compare` prints, from the JSON of the admin API."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from gateway.cli.terminal import console, table

__all__ = ["print_comparison"]


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the verdict, the figures of both sides, and the counts since the gateway's start."""
    out = console()
    out.print(comparison["verdict"])
    if comparison["compared"]:
        out.print()
        out.print(_figure_table(comparison))
    results = ", ".join(f"{count} {result}" for result, count in sorted(comparison["results"].items()))
    out.print(f"\nsince the gateway started: {results or 'no shadow requests yet'}")


_ROWS = {
    "first_token_ms": "first token ms, median / p95",
    "duration_ms": "whole answer ms",
    "tokens_per_s": "tokens/s",
    "completion_tokens": "tokens",
}


def _figure_table(comparison: dict[str, Any]) -> Table:
    target, shadow = comparison["target"], comparison["shadow"]
    result = table(comparison["alias"], "", ", ".join(target["models"]), comparison["candidate"])
    for key, label in _ROWS.items():
        result.add_row(label, _spread(target[key]), _spread(shadow[key]))
    result.add_row("finish reasons", _counts(target["finish_reasons"]), _counts(shadow["finish_reasons"]))
    result.add_row("tool calls valid", _share(target["tool_calls_valid"]), _share(shadow["tool_calls_valid"]))
    result.add_row("same answer", "", _share(comparison["same_answer"]))
    result.add_row("same finish reason", "", _share(comparison["same_finish_reason"]))
    return result


def _spread(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['median']:,.1f} / {value['p95']:,.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())
