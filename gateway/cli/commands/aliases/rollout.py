"""`cortex alias rollout`: stores a rollout for the gateway to carry out, follows, ends or shows one. Blocking."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import click
import msgspec
from rich.console import Group
from rich.live import Live

from catalogue.diff import shown_targets
from gateway.aliases.files.rollout_state import Rollout
from gateway.aliases.files.start_rollout import RolloutPlan
from gateway.aliases.rollout_guards import DEFAULT_TOLERANCES, GuardName
from gateway.cli import api_client
from gateway.cli.api_client import ApiError
from gateway.cli.commands.aliases.alias_edit import DONE, NO_GATEWAY, NOT_IN_FORCE, AliasEditor, run_alias_command
from gateway.cli.commands.aliases.follow_edit import follow
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.param_types import Duration, GuardParam, Steps
from gateway.cli.source.editable_file import AliasCommandError
from gateway.cli.terminal import Progress, console, print_error, print_json
from gateway.cli.views import rollout_view

__all__ = ["rollout"]

BEGUN_WITHIN_S = 15.0  # a gateway looks for rollouts every second; after an error, every ten
POLL_S = 0.2
FOLLOW_POLL_S = 2.0


@click.command()
@click.argument("name")
@click.argument("target", required=False)
@click.option("--steps", type=Steps(), default="5,25,50,100", show_default=True, help="TARGET's share in each step.")
@click.option("--every", type=Duration(), default="10m", show_default=True, help="Minimum duration of a step.")
@click.option(
    "--guard",
    "guards",
    type=GuardParam(),
    multiple=True,
    show_default="all of them",
    help="A comparison that sends the alias back if TARGET does worse: errors, ttft, speed, finish or tools, optionally"
    " with a tolerance (errors=0.05); or none. May be given several times.",
)
@click.option(
    "--min-requests",
    type=click.IntRange(0),
    show_default="20; 0 without guards",
    help="Requests that each side needs before a step may end or a guard may act.",
)
@click.option("--status", is_flag=True, help="Show the progress, and how the targets compare.")
@click.option("--abort", is_flag=True, help="End the rollout, and put the alias back as it was before.")
@click.option("--acknowledge", is_flag=True, help="Remove a rollback from the problems that `cortex status` lists.")
@click.option("--wait", is_flag=True, help="Return only once the rollout has ended; print a line for each step.")
@click.option("--watch", is_flag=True, help="Show the progress every 2 seconds until the rollout has ended.")
@click.option("--force", is_flag=True, help="Also to a TARGET that neither models.toml nor a neuron has.")
@click.option("--from-disk", is_flag=True, help="Start also if the file on disk is not the file in force.")
@connection_options
@json_option
def rollout(
    name: str,
    target: str | None,
    *,
    connection: Connection,
    status: bool,
    abort: bool,
    acknowledge: bool,
    wait: bool,
    watch: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Move an alias to TARGET by steps. The gateway takes them, and moves it back if a guard acts.

    The gateway continues a rollout by itself, even if it restarts. Any other change of the alias ends the rollout.
    Without TARGET, --wait and --watch follow a rollout that is running. They exit with 3 if it did not end as planned.
    """
    chosen = sum((status, abort, acknowledge, target is not None))
    if chosen > 1 or not (chosen or wait or watch):
        raise click.UsageError("give exactly one of TARGET, --status, --abort and --acknowledge")

    def command(editor: AliasEditor) -> int:
        if status:
            return _show(editor, name, as_json=as_json)
        if abort:
            return _abort(editor, name)
        if acknowledge:
            return _acknowledge(editor, name)
        code = DONE if target is None else _start(editor, name, target, **options)
        return _follow(editor, name, live=watch) if code == DONE and (wait or watch) else code

    run_alias_command(connection, command)


# Starting .............................................................................................................


def _start(
    editor: AliasEditor,
    name: str,
    target: str,
    *,
    steps: tuple[float, ...],
    every: float,
    guards: Sequence[tuple[GuardName | Literal["none"], float | None]],
    min_requests: int | None,
    force: bool,
    from_disk: bool,
) -> int:
    """Store the rollout, and wait until a gateway has begun it. Raises AliasCommandError."""
    editor.refuse_other_file()
    _, catalogue = editor.read()
    editor.require_alias(name, catalogue)
    if target not in catalogue.aliases:  # every step is tried on the file, which refuses the alias of an alias
        editor.require_known(target, catalogue, force=force)
    plan = RolloutPlan(name, target, steps, every, _tolerances(guards), min_requests)
    editor.has_begun = True
    rollout = editor.file.start_rollout(plan, from_disk=from_disk)
    editor.report(rollout_view.start_text(rollout))
    editor.report(f"{editor.file.name}: ~alias {name}: {shown_targets(catalogue.aliases[name])} -> {target} by steps")
    return _wait_until_begun(editor, rollout)


def _tolerances(guards: Sequence[tuple[GuardName | Literal["none"], float | None]]) -> dict[GuardName, float]:
    """The tolerance of each chosen guard. By default all guards are chosen; `none` means no guard."""
    if not guards:
        return dict(DEFAULT_TOLERANCES)
    tolerances: dict[GuardName, float] = {}
    for guard, tolerance in guards:
        if guard == "none":
            return {}
        tolerances[guard] = DEFAULT_TOLERANCES[guard] if tolerance is None else tolerance
    return tolerances


def _wait_until_begun(editor: AliasEditor, rollout: Rollout) -> int:
    if editor.health() is None:
        editor.report(f"the rollout is saved; no gateway answers at {editor.gateway.api}: it begins when one does")
        return NO_GATEWAY
    give_up_at = time.monotonic() + BEGUN_WITHIN_S
    while time.monotonic() < give_up_at:
        now = editor.file.rollouts().get(rollout.alias)
        if now is not None and (now.step >= 0 or now.state != "running"):
            editor.report(rollout_view.progress_text(now))
            return DONE if now.state in {"running", "done"} else NOT_IN_FORCE
        time.sleep(POLL_S)
    editor.report(f"the rollout is saved, but the gateway did not begin it within {BEGUN_WITHIN_S:g} s; see its log")
    return NOT_IN_FORCE


# Following and aborting ...............................................................................................


def _follow(editor: AliasEditor, name: str, *, live: bool) -> int:
    """Print each step until the rollout has ended; with `live` also how the targets compare, redrawn on a terminal."""
    if live and console().is_terminal:
        return _redraw(editor, name)
    shown = ""
    with Progress(editor.report) as progress:
        while True:
            rollout = _find(editor, name)
            text = rollout_view.progress_text(rollout)
            if text != shown:
                shown = text
                progress.report(text)
            if rollout.state != "running":
                return DONE if rollout.state == "done" else NOT_IN_FORCE
            view = _get_live(editor, name)
            if live and view is not None:
                progress.report(rollout_view.live_text(view))
            elapsed_s = None if view is None else view["elapsed_s"]
            progress.show(f"{name}, step {rollout.step + 1} of {len(rollout.steps)}", elapsed_s, rollout.every_s)
            time.sleep(FOLLOW_POLL_S)


def _redraw(editor: AliasEditor, name: str) -> int:
    has_token = editor.gateway.token is not None
    with Live(console=console(), auto_refresh=False) as drawn:
        while True:
            rollout = _find(editor, name)
            parts = rollout_view.render_rollout(rollout, _get_live(editor, name), has_token=has_token)
            drawn.update(Group(*parts), refresh=True)
            if rollout.state != "running":
                return DONE if rollout.state == "done" else NOT_IN_FORCE
            time.sleep(FOLLOW_POLL_S)


def _find(editor: AliasEditor, name: str) -> Rollout:
    rollout = editor.file.rollouts().get(name)
    if rollout is None:
        raise AliasCommandError(f"{name} has never been rolled out")
    return rollout


def _abort(editor: AliasEditor, name: str) -> int:
    """End the rollout, restore the alias, and wait until that is in force. Raises AliasCommandError."""
    editor.has_begun = True
    ended, done = editor.file.abort_rollout(name)
    editor.report(rollout_view.progress_text(ended))
    return follow(editor, done, {name}, wait=False) if done else DONE


def _acknowledge(editor: AliasEditor, name: str) -> int:
    """Note that the operator knows of the rollback. Raises AliasCommandError."""
    acknowledged = editor.file.acknowledge_rollback(name)
    editor.report(f"{rollout_view.progress_text(acknowledged)} (acknowledged)")
    return DONE


# Showing ..............................................................................................................


def _show(editor: AliasEditor, name: str, *, as_json: bool) -> int:
    """Show the progress or the end; with the admin token, how the targets compare. Raises AliasCommandError."""
    rollout = _find(editor, name)
    live = _get_live(editor, name)
    if as_json:
        print_json(msgspec.to_builtins(rollout) | {"live": live})
    else:
        has_token = editor.gateway.token is not None
        rollout_view.print_rollout(rollout, live, has_token=has_token)
    return DONE


def _get_live(editor: AliasEditor, name: str) -> dict[str, Any] | None:
    """The gateway's view of the running rollout; None without the admin token, or if it has no such rollout."""
    if editor.gateway.token is None:
        return None
    try:
        with api_client.open_client() as client:
            url = f"{editor.gateway.admin}/admin/rollouts"
            answer = api_client.get(client, url, ("rollouts",), token=editor.gateway.token)
    except ApiError as error:
        print_error(f"cannot compare the targets: {error}")
        return None
    return next((view for view in answer["rollouts"] if view["alias"] == name), None)
