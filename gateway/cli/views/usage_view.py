"""What `cortex usage` prints, from the JSON of the admin API."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from typing import Any

from gateway.cli.terminal import console, table
from gateway.telemetry.printable import one_line

__all__ = ["print_csv", "print_report"]


def print_report(report: Mapping[str, Any]) -> None:
    """A table with a line per group, and the sums."""
    rows, currency = report["rows"], report["currency"]
    if not rows:
        console().print("no requests in this time")
        return
    columns = ("requests", "errors", "prompt", "cached", "completion", "GPU s", "kWh", currency, f"{currency}/M tokens")
    result = table(f"usage by {report['by']}", report["by"], *columns, f"electricity {currency}")
    for row in rows:
        result.add_row(row["name"], *_cells(row))
    if len(rows) > 1:
        result.add_row("in all", *_cells(_sum(rows)))
    console().print(result)


def _cells(row: Mapping[str, Any]) -> list[str]:
    counts = [row[name] for name in ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")]
    price = row["cost_per_million_tokens"]
    return [
        *(f"{count:,}" for count in counts),
        f"{row['gpu_seconds']:,.1f}",
        f"{row['energy_kwh']:,.3f}" if row["energy_kwh"] else "-",
        f"{row['cost']:,.4f}" if price is not None else "-",
        f"{price:,.4f}" if price is not None else "-",
        f"{row['energy_cost']:,.4f}" if row["energy_cost_per_million_tokens"] is not None else "-",
    ]


def _sum(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the prices per token there is no sum; a dash stands for each that no row has."""
    total = {name: sum(row[name] for row in rows) for name, value in rows[0].items() if isinstance(value, int | float)}
    for price in ("cost_per_million_tokens", "energy_cost_per_million_tokens"):
        known = [row for row in rows if row[price]]
        tokens = sum(row[price.removesuffix("_per_million_tokens")] / row[price] for row in known)
        money = sum(row[price.removesuffix("_per_million_tokens")] for row in known)
        total[price] = money / tokens if tokens else None
    return total


def print_csv(report: Mapping[str, Any]) -> None:
    """A line per group, with the columns of the JSON. Spreadsheets get no cell that begins as a formula does."""
    rows = report["rows"]
    columns = list(rows[0]) if rows else ["name"]
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow([report["by"], *columns[1:]])
    for row in rows:
        name = one_line(row["name"])
        out.writerow(["'" + name if name.startswith(("=", "+", "-", "@")) else name, *list(row.values())[1:]])
