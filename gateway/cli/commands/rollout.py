"""What `cortex alias rollout` does: write a rollout down, end one, show one. The gateway does the rest. Blocking."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Literal

import click
import msgspec
from rich.console import RenderableType

from catalogue.toml.faults import FaultyFile
from gateway.aliases.files import locked_edit, rollout_state, toml_edit
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, RolloutAlreadyRunning
from gateway.aliases.rollout_guards import DEFAULT_TOLERANCES, GuardName
from gateway.cli import api_client
from gateway.cli.alias_edit import DONE, NO_GATEWAY, NOT_IN_FORCE, AliasCommands, Refused, os_user
from gateway.cli.api_client import NoAnswer
from gateway.cli.terminal import console, table
from gateway.files.atomic_write import CannotSave

__all__ = ["abort", "show", "start"]

TAKEN_UP_WITHIN_S = 15.0  # a gateway looks once a second; one in trouble every ten
LOOK_S = 0.2
ATTEMPTS = 5  # at ending a rollout that a gateway is changing at the same moment


def start(
    desk: AliasCommands,
    name: str,
    target: str,
    *,
    steps: tuple[float, ...],
    every: float,
    guards: Sequence[tuple[GuardName | Literal["none"], float | None]],
    min_requests: int,
) -> int:
    """Write the rollout down, and wait until a gateway has begun with it. Raises Refused."""
    data, catalogue = desk.read()
    alias = catalogue.aliases.get(name)
    if alias is None:
        raise Refused(f"there is no alias '{name}' in {desk.records.models_path}")
    if alias.active == {target}:
        raise Refused(f"{name} stands for {target} already")
    chosen = _chosen(guards)
    try:
        rollout = Rollout(
            alias=name,
            target=target,
            steps=steps,
            every_s=every,
            guards=chosen,
            minimum=min_requests if chosen else 0,
            who=os_user(),
            started=time.time(),
            before=desk.records.history.keep(data),
            old={each.model: each.weight for each in alias.targets},
        )
        _rehearse(desk, rollout, data)
        desk.has_begun = True
        rollout_state.begin(desk.records, rollout)
    except (RolloutAlreadyRunning, InvalidRolloutState, CannotSave, ValueError) as error:
        raise Refused(str(error)) from error
    except OSError as error:
        raise Refused(f"{error.filename or desk.records.models_path.parent}: {error.strerror or error}") from error
    except FaultyFile as error:
        raise Refused("\n".join(map(str, error.faults))) from error
    told = ", ".join(f"{guard} (within {tolerance:g})" for guard, tolerance in chosen.items()) or "none"
    desk.say(f"rollout of {name} to {target}: {_steps(steps)} %, {every:g} s each at least; guards: {told}")
    return _until_begun(desk, rollout)


def _chosen(said: Sequence[tuple[GuardName | Literal["none"], float | None]]) -> dict[GuardName, float]:
    """All by default; those that were named; or none."""
    if not said:
        return dict(DEFAULT_TOLERANCES)
    chosen: dict[GuardName, float] = {}
    for guard, tolerance in said:
        if guard == "none":
            return {}
        chosen[guard] = DEFAULT_TOLERANCES[guard] if tolerance is None else tolerance
    return chosen


def _rehearse(desk: AliasCommands, rollout: Rollout, data: bytes) -> None:
    """Every step on paper: a fault should be found now, and not at night."""
    for step in range(len(rollout.steps)):
        locked_edit.check(
            toml_edit.set_alias(data, rollout.alias, rollout.targets(step)), path=str(desk.records.models_path)
        )


def _steps(steps: tuple[float, ...]) -> str:
    return ", ".join(f"{step:g}" for step in steps)


def _until_begun(desk: AliasCommands, rollout: Rollout) -> int:
    if desk.health() is None:
        desk.say(f"written down; no gateway answers at {desk.gateway.endpoint}: it begins when one does")
        return NO_GATEWAY
    give_up_at = time.monotonic() + TAKEN_UP_WITHIN_S
    while time.monotonic() < give_up_at:
        now = desk.rollouts().get(rollout.alias)
        if now is not None and (now.step >= 0 or now.state != "running"):
            desk.say(_words(now))
            return DONE if now.state in {"running", "done"} else NOT_IN_FORCE
        time.sleep(LOOK_S)
    desk.say(f"written down, but the gateway has not begun with it within {TAKEN_UP_WITHIN_S:g} s; its log may say why")
    return NOT_IN_FORCE


def abort(desk: AliasCommands, name: str) -> int:
    """End it, put the alias back, and wait until that is in force. Raises Refused."""
    before = desk.records.models_path.read_bytes()
    try:
        over = _abort(desk, name)
    except (InvalidRolloutState, CannotSave, OSError, toml_edit.CannotEdit) as error:
        raise Refused(str(error)) from error
    except FaultyFile as error:
        raise Refused("\n".join(map(str, error.faults))) from error
    desk.say(_words(over))
    after = desk.records.models_path.read_bytes()
    return desk.see_through(locked_edit.FileEdit(before, after), {name}, wait=False) if before != after else DONE


def _abort(desk: AliasCommands, name: str) -> Rollout:
    for _ in range(ATTEMPTS):
        rollout = desk.rollouts().get(name)
        if rollout is None or rollout.state != "running":
            raise Refused(f"{name} is not being rolled out")
        desk.has_begun = True
        over = rollout_state.end(desk.records, rollout, "aborted", f"aborted by {os_user()}", time.time())
        if over.state != "running":
            return over
    raise Refused(f"the rollout of {name} changes faster than it can be ended; try again")


def show(desk: AliasCommands, name: str, *, as_json: bool) -> int:
    """How far it is or how it ended, and, with the admin token, how the targets compare. Raises Refused."""
    rollout = desk.rollouts().get(name)
    if rollout is None:
        raise Refused(f"{name} was never rolled out")
    live = _live(desk, name)
    if as_json:
        told = msgspec.to_builtins(rollout) | {"live": live}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return DONE
    out = console()
    out.print(_words(rollout), soft_wrap=True)
    if live is not None:
        out.print(_comparison(rollout, live))
    elif rollout.state == "running" and desk.gateway.token is None:
        out.print("how the targets compare is told to whoever has the admin token", soft_wrap=True)
    return DONE


def _live(desk: AliasCommands, name: str) -> dict[str, Any] | None:
    if desk.gateway.token is None:
        return None
    bearer = {"authorization": f"Bearer {desk.gateway.token}"}
    try:
        with api_client.client() as client:
            answer = api_client.get(client, f"{desk.gateway.admin}/admin/rollouts", ("rollouts",), bearer)
    except NoAnswer as error:
        desk.say(f"how the targets compare cannot be told: {error}")
        return None
    return next((view for view in answer["rollouts"] if view["alias"] == name), None)


def _words(rollout: Rollout) -> str:
    if rollout.state != "running":
        return f"{rollout.alias}: {rollout.state.replace('_', ' ')}: {rollout.reason}"
    if rollout.step < 0:
        return f"{rollout.alias}: about to begin"
    step = f"step {rollout.step + 1} of {len(rollout.steps)}, {rollout.target} gets {rollout.percent:g} %"
    since = "not in force yet" if rollout.since is None else f"in force since {_clock(rollout.since)}"
    return f"{rollout.alias}: {step}, {since}"


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def _comparison(rollout: Rollout, live: dict[str, Any]) -> RenderableType:
    elapsed = "-" if live["elapsed_s"] is None else f"{live['elapsed_s']:.0f}"
    title = f"{elapsed} of {rollout.every_s:g} s; waits for {live['waits_for']}"
    drawn = table(title, "", "old", "new")
    for label, key, form in (
        ("requests", "requests", "{}"),
        ("failed", "failed", "{}"),
        ("first token, p95 s", "first_token_p95_s", "{:.3f}"),
        ("tokens/s, median", "tokens_per_s_median", "{:,.1f}"),
        ("broken tool calls", "broken_tool_calls", "{}"),
    ):
        cells = (live[side].get(key) for side in ("old", "new"))
        drawn.add_row(label, *("-" if cell is None else form.format(cell) for cell in cells))
    reasons = sorted({reason for side in ("old", "new") for reason in live[side].get("finish_reasons", {})})
    for reason in reasons:
        drawn.add_row(
            f"ended with {reason}", *(str(live[side]["finish_reasons"].get(reason, 0)) for side in ("old", "new"))
        )
    return drawn
