"""`cortex alias …`: options in, exit codes out. What is done is in `operating.py`, what is shown in `alias_views.py`.

Exit codes: 0 done and in force; 1 refused or not understood, nothing was written; 2 written, and no gateway answers;
3 written, and the gateway has not taken it up, or could not move the alias.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.options import config_option, load_settings

if TYPE_CHECKING:
    from gateway.cli.alias_edit import AliasCommands

__all__ = ["alias"]


_json = click.option("--json", "as_json", is_flag=True, help="One JSON object for programs, instead of tables.")
_wait = click.option("--wait", is_flag=True, help="Return only once the alias has moved, its target being warm.")


class _Seconds(click.ParamType[float]):
    """A time as people write it."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time: write 30s, 10m or 2h", param, ctx)
        seconds = float(found[1]) * {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]
        if not isfinite(seconds):
            self.fail("nobody waits for so long", param, ctx)
        return seconds


class _Percent(click.FloatRange):
    """A share that is one: `nan` is a float, too."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        percent = float(super().convert(value, param, ctx))
        if not isfinite(percent):
            self.fail(f"{value!r} is no percentage", param, ctx)
        return percent


class _Steps(click.ParamType[tuple[float, ...]]):
    """Percentages that rise."""

    name = "percent,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            steps = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} are no percentages: write 5,25,50,100", param, ctx)
        if not all(0 < step <= 100 for step in steps) or any(a >= b for a, b in pairwise(steps)):
            self.fail("steps rise, from above 0 to 100 at most", param, ctx)
        return steps


class _Guard(click.ParamType[tuple[str, float | None]]):
    """A guard, and perhaps its tolerance."""

    name = "guard[=tolerance]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float | None]:
        from gateway.aliases.rollout_guards import DEFAULT_TOLERANCES  # noqa: PLC0415 - only for those who ask

        name, _, tolerance = str(value).partition("=")
        if name != "none" and name not in DEFAULT_TOLERANCES:
            self.fail(f"there is no guard {name!r}: there are {', '.join(DEFAULT_TOLERANCES)}, and none", param, ctx)
        try:
            allowed = float(tolerance) if tolerance else None
        except ValueError:
            self.fail(f"{tolerance!r} is no number", param, ctx)
        if allowed is not None and (not 0 <= allowed < inf or name == "none"):
            self.fail("a tolerance is a fraction of 0 or more, of a guard", param, ctx)
        return name, allowed


@click.group()
def alias() -> None:
    """Point names at models: see, change, take back, roll out. Edits models.toml, as you could."""


@alias.command("list")
@config_option
@_json
def list_(config: Path | None, *, as_json: bool) -> None:
    """Every alias: what it stands for, and whether that is in force."""
    from gateway.cli.views import alias_view  # noqa: PLC0415 - rich takes its time

    _run(config, lambda desk: alias_view.show_all(desk, as_json=as_json))


@alias.command()
@click.argument("name")
@config_option
@_json
def show(name: str, config: Path | None, *, as_json: bool) -> None:
    """One alias, with everything the file says of it, where it is loaded, and its last changes."""
    from gateway.cli.views import alias_view  # noqa: PLC0415 - as above

    _run(config, lambda desk: alias_view.show_one(desk, name, as_json=as_json))


@alias.command()
@click.argument("name")
@config_option
@_json
def compare(name: str, config: Path | None, *, as_json: bool) -> None:
    """An alias beside its shadow: who is quicker, and who says the same. Asks the gateway, with the admin token."""
    from gateway.cli.views import compare_view  # noqa: PLC0415 - as above

    _run(config, lambda desk: compare_view.compare(desk, name, as_json=as_json))


@alias.command("set")
@click.argument("name")
@click.argument("target")
@click.option(
    "--weight",
    type=_Percent(0, 100, min_open=True),
    metavar="PERCENT",
    default=100.0,
    show_default=True,
    help="Give TARGET this share; the targets it has keep the rest, in their proportions.",
)
@click.option(
    "--cold/--warm",
    "is_cold",
    default=None,
    show_default="as the file says",
    help="Move at once, or once TARGET is loaded and has answered. Goes into the file, and stays there.",
)
@_wait
@config_option
def set_(name: str, target: str, weight: float, config: Path | None, *, is_cold: bool | None, wait: bool) -> None:
    """Point an alias at a model, or make it one; other keys of its table stay."""
    swap = None if is_cold is None else "cold" if is_cold else "warm"
    command = f"cortex alias set {name} {target}" + ("" if weight == 100 else f" --weight {weight:g}")
    command += "" if swap is None else f" --{swap}"

    def do(desk: AliasCommands) -> int:
        done = desk.point(name, target, weight, command, swap=swap)
        return desk.see_through(done, {name}, wait=wait)

    _run(config, do)


@alias.command()
@click.argument("name")
@config_option
def remove(name: str, config: Path | None) -> None:
    """Take an alias out. Requests for it get 404 then; those under way go on."""
    command = f"cortex alias remove {name}"
    _run(config, lambda desk: desk.see_through(desk.remove(name, command), set(), wait=False))


@alias.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, from the newest.")
@config_option
@_json
def history(name: str | None, limit: int, config: Path | None, *, as_json: bool) -> None:
    """What models.toml said, version by version; with NAME, the versions in which that alias changed."""
    from gateway.cli.views import alias_view  # noqa: PLC0415 - as above

    _run(config, lambda desk: alias_view.show_history(desk, name, limit, as_json=as_json))


@alias.command()
@click.argument("name", required=False)
@click.option(
    "--to", metavar="VERSION", help="A number or the beginning of a hash from `history`. Without it: one back."
)
@_wait
@config_option
def rollback(name: str | None, to: str | None, config: Path | None, *, wait: bool) -> None:
    """Put models.toml back as it was, byte by byte; with NAME, that alias only. Twice is there and back."""
    command = " ".join(["cortex alias rollback", *([name] if name else []), *(["--to", to] if to else [])])
    names = None if name is None else {name}
    _run(config, lambda desk: desk.see_through(desk.roll_back(name, to, command), names, wait=wait))


@alias.command()
@click.argument("name")
@click.argument("target", required=False)
@click.option("--steps", type=_Steps(), default="5,25,50,100", show_default=True, help="TARGET's share, step by step.")
@click.option("--every", type=_Seconds(), default="10m", show_default=True, help="How long a step lasts at least.")
@click.option(
    "--guard",
    "guards",
    type=_Guard(),
    multiple=True,
    show_default="all of them",
    help="What sends the alias back by itself: errors, ttft, speed, finish, tools; with how much worse TARGET may look"
    " (errors=0.05), or none. May be said several times.",
)
@click.option(
    "--min-requests",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="At either target, before a step may end or a guard may trip.",
)
@click.option("--status", is_flag=True, help="How far it is, and how the targets compare.")
@click.option("--abort", is_flag=True, help="End it, and put the alias back as it was.")
@config_option
@_json
def rollout(
    name: str, target: str | None, config: Path | None, *, status: bool, abort: bool, as_json: bool, **how: Any
) -> None:
    """Lead an alias to a model by steps that the gateway takes, and that a guard may take back.

    The gateway goes on with it by itself, through restarts too. An edit of the alias by somebody else ends it.
    """
    from gateway.cli.commands import rollout as rollout_desk  # noqa: PLC0415 - as above

    if sum((status, abort, target is not None)) != 1:
        raise click.UsageError("say one of TARGET, --status and --abort")
    if status:
        _run(config, lambda desk: rollout_desk.show(desk, name, as_json=as_json))
    elif abort:
        _run(config, lambda desk: rollout_desk.abort(desk, name))
    else:
        _run(config, lambda desk: rollout_desk.start(desk, name, target or "", **how))


def _run(config: Path | None, do: Callable[[AliasCommands], int]) -> None:
    """With the settings' file and gateway; a refusal is told on stderr."""
    from gateway.cli import alias_edit  # noqa: PLC0415 - `cortex --help` should not wait for httpx and TOML Kit

    desk = alias_edit.AliasCommands.of(load_settings(config).settings, click.echo)
    try:
        code = do(desk)
    except alias_edit.Refused as error:
        click.echo("\n".join(f"error: {line}" for line in str(error).splitlines()), err=True)
        code = alias_edit.REFUSED
    except KeyboardInterrupt:
        told = "what was begun goes on; only the watching has ended" if desk.has_begun else "nothing was written"
        click.echo(f"interrupted: {told}", err=True)
        code = 130
    sys.exit(code)
