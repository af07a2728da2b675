"""Rollouts as their file has them: what is to happen, how far it is, how it ended; and every change of that. Blocking.

Whoever changes a rollout's state or its alias (a gateway, a second gateway, a shell) holds the lock on editing
`models.toml`, looks again, and does nothing if somebody else was quicker. So of a step, a rollback and an abort that
meet, one happens; and after a crash in between, the file says what is left to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import msgspec

from catalogue.load import parse
from catalogue.models import Alias
from gateway.aliases.files.locked_edit import change_locked
from gateway.aliases.files.paths import Records
from gateway.aliases.files.toml_edit import restore_alias, set_alias
from gateway.aliases.rollout_guards import GuardName
from gateway.files import atomic

__all__ = [
    "AlreadyRunning",
    "BrokenState",
    "Rollout",
    "advance",
    "begin",
    "end",
    "in_force",
    "is_at",
    "read",
    "stamp",
    "supersede_if_changed",
]

FINISHED_KEPT = 50  # for people to look at; the audit trail has them for ever

State: TypeAlias = Literal["running", "done", "rolled_back", "aborted", "superseded"]
Ending: TypeAlias = Literal["rolled_back", "aborted"]


class AlreadyRunning(Exception):
    """The alias has a rollout under way."""


class BrokenState(Exception):
    """The state file is not one; the text says where it is and why."""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One alias on its way to a target. Times are in unix seconds, weights and steps in percent.

    Args:
        alias, target: From where everybody asks, to where they are to be led.
        steps: What the target gets, step by step.
        every_s: How long a step lasts at least.
        guards: Tolerance by guard.
        minimum: Requests at either target before a step may end.
        who, started: Whose doing it is.
        before: The hash of the file at the beginning.
        old: The weight of each target then.
        state: As it says; all but "running" are ends.
        ending: An end that was decided upon, and may not have reached `models.toml` yet.
        step: Which of the steps `models.toml` has, or is about to have; -1 for none.
        since: When that came into force; None if it has not.
        reason: Why it ended.
        ended: And when.
    """

    alias: str
    target: str
    steps: tuple[float, ...]
    every_s: float
    guards: dict[GuardName, float]
    minimum: int
    who: str
    started: float
    before: str
    old: dict[str, float]
    state: State = "running"
    ending: Ending | None = None
    step: int = -1
    since: float | None = None
    reason: str | None = None
    ended: float | None = None

    @property
    def percent(self) -> float:
        """What the target gets in this step, beyond what it may have had before the first."""
        return self.steps[self.step] if self.step >= 0 else 0.0

    @property
    def is_last(self) -> bool:
        """Whether there is no further step."""
        return self.step == len(self.steps) - 1

    def targets(self, step: int) -> dict[str, float]:
        """The weights of a step; of -1, those of the beginning."""
        return self.old if step < 0 else shares(self.old, self.target, self.steps[step])


def shares(old: Mapping[str, float], target: str, percent: float) -> dict[str, float]:
    """Targets that give one of them so many percent, and what is left to the others in their old proportions.

    Raises:
        ValueError: There is something left, and nobody to give it to.
    """
    others = {model: weight for model, weight in old.items() if model != target and weight > 0}
    if percent >= 100:
        return {target: 100.0}
    if not others:
        raise ValueError(f"there is no other target to give the remaining {100 - percent:g} % to")
    total = sum(others.values())
    # Six digits are what is written; a rest lost in them moves nobody.
    return {
        **{model: float(f"{(100 - percent) * weight / total:g}") for model, weight in others.items()},
        target: percent,
    }


def is_at(alias: Alias | None, targets: Mapping[str, float]) -> bool:
    """Whether an alias has these targets in these proportions."""
    if alias is None:
        return False
    have = _proportions({target.model: target.weight for target in alias.targets})
    want = _proportions(targets)
    return have.keys() == want.keys() and all(abs(have[model] - want[model]) < 1e-4 for model in want)


def _proportions(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {model: weight / total for model, weight in weights.items() if weight > 0}


# The file...


class _File(msgspec.Struct, frozen=True):
    rollouts: dict[str, Rollout] = {}
    version: Literal[1] = 1


def _decode(data: bytes) -> _File:
    return msgspec.json.decode(data, type=_File)


def read(records: Records) -> dict[str, Rollout]:
    """Every rollout by its alias: one that runs, or the last that ended. Raises BrokenState, OSError."""
    try:
        data = records.rollouts.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return _decode(data).rollouts
    except msgspec.DecodeError as error:
        hint = "mend it, or move it away: then nothing is being rolled out, and aliases stay where they are"
        raise BrokenState(f"{records.rollouts}: {error}; {hint}") from error


def stamp(records: Records) -> tuple[int, int, int] | None:
    """What changes whenever the file does; None if there is none. Raises OSError."""
    try:
        status = os.stat(records.rollouts)  # noqa: PTH116 - Path.stat is the same, one call slower, once a second
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _write(records: Records, rollouts: Mapping[str, Rollout]) -> None:
    over = sorted((each for each in rollouts.values() if each.state != "running"), key=lambda each: each.ended or 0)
    forgotten = {each.alias for each in over[:-FINISHED_KEPT]}
    kept = {alias: each for alias, each in sorted(rollouts.items()) if alias not in forgotten}
    data = msgspec.json.format(msgspec.json.encode(_File(kept)), indent=2)
    try:
        _decode(data)
    except msgspec.DecodeError as error:  # JSON has no word for some floats, and one of them would stop every rollout
        raise ValueError(f"this rollout could not be read again: {error}") from error
    atomic.write(records.rollouts, data + b"\n")


def _put(records: Records, rollout: Rollout) -> Rollout:
    known = read(records)
    if known.get(rollout.alias) != rollout:
        _write(records, known | {rollout.alias: rollout})
    return rollout


# Changes of state: each under the lock, each after looking again...


def begin(records: Records, rollout: Rollout) -> None:
    """Write down a new rollout; a gateway begins with it.

    Raises:
        AlreadyRunning, CannotSave, BrokenState, OSError: As they say.
        ValueError: Something in it has no form in the file.
    """
    with atomic.locked(records.models):
        known = read(records).get(rollout.alias)
        if known is not None and known.state == "running":
            raise AlreadyRunning(f"'{rollout.alias}' is being rolled out to {known.target} already")
        _put(records, rollout)


def advance(records: Records, seen: Rollout, now: float) -> Rollout:
    """To the next step; and the same again, should the file not have got there. Returns what is known now.

    Raises:
        CannotSave, FaultyFile, CannotEdit, BrokenState, OSError: It is where it was; try again.
    """

    def go() -> Rollout:
        step = seen.step if seen.since is None and seen.step >= 0 else seen.step + 1
        moved = _put(records, msgspec.structs.replace(seen, step=step, since=None))
        targets = moved.targets(step)
        command = f"step {step + 1} of {len(seen.steps)}: {seen.target} gets {seen.steps[step]:g} %"
        change_locked(
            records,
            lambda data: set_alias(data, seen.alias, targets),
            who=f"rollout ({seen.who})",
            command=f"rollout {seen.alias}: {command}",
        )
        return moved

    return _if_unchanged(records, seen, go, now)


def in_force(records: Records, seen: Rollout, now: float) -> Rollout:
    """The step's time begins. Raises as `advance`."""
    return _if_same(records, seen, lambda: _put(records, msgspec.structs.replace(seen, since=now)))


def end(records: Records, seen: Rollout, how: State, reason: str, now: float) -> Rollout:
    """Over: "done" leaves the alias where it is, "rolled_back" and "aborted" put it back. Raises as `advance`."""
    if how == "done":
        over = msgspec.structs.replace(seen, state="done", reason=reason, ended=now)
        return _if_same(records, seen, lambda: _put(records, over))
    if how not in {"rolled_back", "aborted"}:
        raise ValueError(how)

    def go() -> Rollout:
        ending = _put(records, msgspec.structs.replace(seen, ending=how, reason=reason))
        change_locked(
            records,
            lambda data: _put_back(records, seen, data),
            who=f"rollout ({seen.who})",
            command=f"rollout {seen.alias}: {how.replace('_', ' ')}: {reason}",
        )
        return _put(records, msgspec.structs.replace(ending, state=how, ending=None, ended=now))

    return _if_unchanged(records, seen, go, now)


def supersede_if_changed(records: Records, seen: Rollout, now: float) -> Rollout:
    """Over, if somebody else has changed the alias in the file. Raises as `advance`."""
    return _if_unchanged(records, seen, lambda: seen, now)


def _put_back(records: Records, rollout: Rollout, data: bytes) -> bytes:
    """The alias as it stood at the beginning, layout and all, if that file is kept."""
    before = records.history.get(rollout.before)
    return set_alias(data, rollout.alias, rollout.old) if before is None else restore_alias(data, rollout.alias, before)


def _if_same(records: Records, seen: Rollout, go: Callable[[], Rollout]) -> Rollout:
    with atomic.locked(records.models):
        current = read(records).get(seen.alias, seen)
        return go() if current == seen else current


def _if_unchanged(records: Records, seen: Rollout, go: Callable[[], Rollout], now: float) -> Rollout:
    """`go`, if neither the state nor the alias was changed by anybody else; a change of the alias ends the rollout."""
    with atomic.locked(records.models):
        current = read(records).get(seen.alias, seen)
        if current != seen or current.state != "running":
            return current
        data = records.models.read_bytes()
        alias = parse(data, path=str(records.models), generation=0, loaded_at=0.0).aliases.get(seen.alias)
        if any(is_at(alias, targets) for targets in _expected(seen)):
            return go()
        reason = "the alias was removed" if alias is None else "somebody else changed the alias"
        return _put(records, msgspec.structs.replace(seen, state="superseded", reason=reason, ended=now))


def _expected(seen: Rollout) -> list[dict[str, float]]:
    """What the file may say of the alias: what the state says, or, if a crash came in between, what it said before."""
    expected = [seen.targets(seen.step)]
    if seen.since is None:
        expected.append(seen.targets(seen.step - 1))
    if seen.ending is not None:
        expected.append(seen.old)
    return expected
