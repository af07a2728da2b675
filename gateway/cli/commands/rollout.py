"""`cortex alias rollout`: saves a rollout for the gateway to carry out, ends one, or shows one. Blocking."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from catalogue.toml.faults import FaultyFile
from gateway.aliases.files import locked_edit, rollout_state, toml_edit
from gateway.aliases.files.locked_edit import FileEdit
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, RolloutAlreadyRunning
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.rollout_guards import DEFAULT_TOLERANCES, GuardName
from gateway.cli import api_client
from gateway.cli.api_client import ApiError
from gateway.cli.commands.alias_edit import (
    DONE,
    NO_GATEWAY,
    NOT_IN_FORCE,
    AliasCommandError,
    AliasEditor,
    os_user,
    run_alias_command,
)
from gateway.cli.options import config_option, json_option
from gateway.cli.param_types import Duration, GuardParam, Steps
from gateway.cli.terminal import print_json
from gateway.cli.views import rollout_view
from gateway.files.atomic_write import CannotSave

__all__ = ["rollout"]

BEGUN_WITHIN_S = 15.0  # a gateway looks for rollouts every second; after an error, every ten
POLL_S = 0.2
ABORT_ATTEMPTS = 5  # each fails if a gateway changes the rollout at the same moment


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
    default=20,
    show_default=True,
    help="Requests that each side needs before a step may end or a guard may act.",
)
@click.option("--status", is_flag=True, help="Show the progress, and how the targets compare.")
@click.option("--abort", is_flag=True, help="End the rollout, and put the alias back as it was before.")
@config_option
@json_option
def rollout(
    name: str, target: str | None, config: Path | None, *, status: bool, abort: bool, as_json: bool, **options: Any
) -> None:
    """Move an alias to TARGET by steps. The gateway takes them, and moves it back if a guard acts.

    The gateway continues a rollout by itself, even if it restarts. Any other change of the alias ends the rollout.
    """
    if sum((status, abort, target is not None)) != 1:
        raise click.UsageError("give exactly one of TARGET, --status and --abort")
    if status:
        run_alias_command(config, lambda editor: _show(editor, name, as_json=as_json))
    elif abort:
        run_alias_command(config, lambda editor: _abort(editor, name))
    else:
        run_alias_command(config, lambda editor: _start(editor, name, target or "", **options))


# Starting .............................................................................................................


def _start(
    editor: AliasEditor,
    name: str,
    target: str,
    *,
    steps: tuple[float, ...],
    every: float,
    guards: Sequence[tuple[GuardName | Literal["none"], float | None]],
    min_requests: int,
) -> int:
    """Save the rollout, and wait until a gateway has begun it. Raises AliasCommandError."""
    data, catalogue = editor.read()
    alias = catalogue.aliases.get(name)
    if alias is None:
        raise AliasCommandError(f"{editor.files.models_path} has no alias '{name}'")
    if alias.active == {target}:
        raise AliasCommandError(f"{name} points at {target} already")
    tolerances = _tolerances(guards)
    try:
        rollout = Rollout(
            alias=name,
            target=target,
            steps=steps,
            every_s=every,
            guards=tolerances,
            minimum=min_requests if tolerances else 0,
            who=os_user(),
            started=time.time(),
            before=editor.files.history.keep(data),
            old={each.model: each.weight for each in alias.targets},
        )
        _check_steps(editor, rollout, data)
        editor.has_begun = True
        rollout_state.begin(editor.files, rollout)
    except (RolloutAlreadyRunning, InvalidRolloutState, CannotSave, ValueError) as error:
        raise AliasCommandError(str(error)) from error
    except OSError as error:
        path = error.filename or editor.files.models_path.parent
        raise AliasCommandError(f"{path}: {error.strerror or error}") from error
    except FaultyFile as error:
        raise AliasCommandError(str(error)) from error
    editor.report(rollout_view.start_text(rollout))
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


def _check_steps(editor: AliasEditor, rollout: Rollout, data: bytes) -> None:
    """Make every step's edit without saving it, so that a fault shows now and not during the rollout."""
    for step in range(len(rollout.steps)):
        edited = toml_edit.set_alias(data, rollout.alias, rollout.targets(step))
        locked_edit.check(edited, path=str(editor.files.models_path))


def _wait_until_begun(editor: AliasEditor, rollout: Rollout) -> int:
    if editor.health() is None:
        editor.report(f"the rollout is saved; no gateway answers at {editor.gateway.api}: it begins when one does")
        return NO_GATEWAY
    give_up_at = time.monotonic() + BEGUN_WITHIN_S
    while time.monotonic() < give_up_at:
        now = editor.rollouts().get(rollout.alias)
        if now is not None and (now.step >= 0 or now.state != "running"):
            editor.report(rollout_view.progress_text(now))
            return DONE if now.state in {"running", "done"} else NOT_IN_FORCE
        time.sleep(POLL_S)
    editor.report(f"the rollout is saved, but the gateway did not begin it within {BEGUN_WITHIN_S:g} s; see its log")
    return NOT_IN_FORCE


# Aborting .............................................................................................................


def _abort(editor: AliasEditor, name: str) -> int:
    """End the rollout, restore the alias, and wait until that is in force. Raises AliasCommandError."""
    try:
        before = editor.files.models_path.read_bytes()
        ended = _end(editor, name)
        after = editor.files.models_path.read_bytes()
    except (InvalidRolloutState, CannotSave, OSError, CannotEdit, FaultyFile) as error:
        raise AliasCommandError(str(error)) from error
    editor.report(rollout_view.progress_text(ended))
    return editor.follow(FileEdit(before, after), {name}, wait=False) if before != after else DONE


def _end(editor: AliasEditor, name: str) -> Rollout:
    for _ in range(ABORT_ATTEMPTS):
        rollout = editor.rollouts().get(name)
        if rollout is None or rollout.state != "running":
            raise AliasCommandError(f"{name} has no running rollout")
        editor.has_begun = True
        ended = rollout_state.end(editor.files, rollout, "aborted", f"aborted by {os_user()}", time.time())
        if ended.state != "running":
            return ended
    raise AliasCommandError(f"the rollout of {name} kept changing while this command tried to end it; try again")


# Showing ..............................................................................................................


def _show(editor: AliasEditor, name: str, *, as_json: bool) -> int:
    """Show the progress or the end; with the admin token, how the targets compare. Raises AliasCommandError."""
    rollout = editor.rollouts().get(name)
    if rollout is None:
        raise AliasCommandError(f"{name} has never been rolled out")
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
        editor.report(f"cannot compare the targets: {error}")
        return None
    return next((view for view in answer["rollouts"] if view["alias"] == name), None)
