"""What `cortex alias rollout` prints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from gateway.aliases.files.rollout_state import Rollout
from gateway.cli.terminal import console, table

__all__ = ["live_text", "print_rollout", "progress_text", "render_rollout", "start_text"]


def start_text(rollout: Rollout) -> str:
    """What a new rollout will do."""
    steps = ", ".join(f"{step:g}" for step in rollout.steps)
    guards = ", ".join(f"{guard} (tolerance {tolerance:g})" for guard, tolerance in rollout.guards.items()) or "none"
    return (
        f"rollout of {rollout.alias} to {rollout.target}: steps {steps} %, "
        f"at least {rollout.every_s:g} s each; guards: {guards}"
    )


def progress_text(rollout: Rollout) -> str:
    """The step of a running rollout, or how it ended."""
    if rollout.state != "running":
        state, reason = rollout.state.replace("_", " "), rollout.reason or ""
        return f"{rollout.alias}: {reason if reason.startswith(state) else f'{state}: {reason}'}"
    if rollout.step < 0:
        return f"{rollout.alias}: about to begin"
    step = f"step {rollout.step + 1} of {len(rollout.steps)}, {rollout.target} gets {rollout.percent:g} %"
    if rollout.since is None:
        return f"{rollout.alias}: {step}, not in force yet"
    return f"{rollout.alias}: {step}, in force since {time.strftime('%H:%M:%S', time.localtime(rollout.since))}"


def live_text(live: dict[str, Any]) -> str:
    """One line about a running step, from the gateway's comparison of the targets."""
    elapsed = "" if live["elapsed_s"] is None else f"{live['elapsed_s']:.0f} of {live['every_s']:g} s; "
    counts = f"{live['requests_old']} requests to the old target, {live['requests_new']} to the new"
    return f"  {elapsed}{counts}; waiting for {live['waits_for']}"


def render_rollout(rollout: Rollout, live: dict[str, Any] | None, *, has_token: bool) -> Iterator[RenderableType]:
    """The progress, in parts; `live` is the gateway's comparison of the targets, if there is one."""
    yield progress_text(rollout)
    if live is not None:
        yield _comparison_table(rollout, live)
    elif rollout.state == "running" and not has_token:
        yield "to compare the targets, set CORTEX_KEY, or [admin] token in cortex.toml"


def print_rollout(rollout: Rollout, live: dict[str, Any] | None, *, has_token: bool) -> None:
    """Print the same."""
    out = console()
    for part in render_rollout(rollout, live, has_token=has_token):
        out.print(part, soft_wrap=isinstance(part, str))


_ROWS = (
    ("requests", "requests", "{}"),
    ("failed", "failed", "{}"),
    ("first token, p95 s", "first_token_p95_s", "{:.3f}"),
    ("tokens/s, median", "tokens_per_s_median", "{:,.1f}"),
    ("broken tool calls", "broken_tool_calls", "{}"),
)


def _comparison_table(rollout: Rollout, live: dict[str, Any]) -> Table:
    title = f"waiting for {live['waits_for']}"
    if live["elapsed_s"] is not None:
        title = f"{live['elapsed_s']:.0f} of {rollout.every_s:g} s of this step have passed; {title}"
    result = table(title, "", "old", "new")
    for label, key, template in _ROWS:
        values = (live[target].get(key) for target in ("old", "new"))
        result.add_row(label, *("-" if value is None else template.format(value) for value in values))
    reasons = sorted({reason for target in ("old", "new") for reason in live[target].get("finish_reasons", {})})
    for reason in reasons:
        counts = (live[target].get("finish_reasons", {}).get(reason, 0) for target in ("old", "new"))
        result.add_row(f"finish reason {reason}", *map(str, counts))
    return result
