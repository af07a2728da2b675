"""The rollout state file: each rollout's settings, its step and how it ended; and every change of that. Blocking.

A program that changes a rollout's state or its alias (a gateway, a second gateway, a shell) holds the edit lock of
`models.toml`, reads the state again, and does nothing if it changed meanwhile. So if a step, a rollback and an abort
coincide, exactly one of them happens. After a crash, the file says what is left to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import msgspec

from catalogue.diff import alias_json
from catalogue.load import parse
from catalogue.models import Alias
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.locked_edit import edit_models_locked
from gateway.aliases.files.toml_edit import restore_alias, set_alias
from gateway.aliases.rollout_guards import GuardName
from gateway.files import atomic_write
from gateway.files.config_file import read_config_file
from gateway.files.file_lock import locked
from gateway.files.state_directory import make_directory

__all__ = [
    "InvalidRolloutState",
    "Rollout",
    "RolloutAlreadyRunning",
    "RolloutState",
    "acknowledge",
    "advance",
    "alias_fingerprint",
    "begin",
    "end",
    "file_stamp",
    "has_targets",
    "mark_in_force",
    "read",
    "split_weights",
    "supersede_if_changed",
]

ENDED_KEPT = 50  # for `cortex rollout`; the audit log keeps all of them

RolloutState: TypeAlias = Literal["running", "done", "rolled_back", "aborted", "superseded"]
Ending: TypeAlias = Literal["rolled_back", "aborted"]


class RolloutAlreadyRunning(Exception):
    """The alias has a running rollout."""


class InvalidRolloutState(Exception):
    """The state file cannot be parsed; the text has its path and the reason."""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One alias on its way to a target. Times are unix seconds; steps and weights are percent.

    Args:
        alias, target: The alias, and the model that its requests move to.
        steps: The target's share in each step.
        every_s: The minimum duration of a step.
        guards: Tolerance by guard.
        minimum: How many requests each target must get before a step may end.
        who, started: Who started the rollout, and when.
        before: The hash of `models.toml` before the first step.
        old: Weight by target before the first step.
        state: Every value but "running" is final.
        ending: A decided rollback or abort that may not be in `models.toml` yet.
        step: The index of the step that is, or is being, written to `models.toml`; -1 before the first.
        since: When this step came into force; None if it has not yet.
        reason: Why the rollout ended.
        ended: When it ended.
        restored: The fingerprint of the alias as a rollback left it; see `alias_fingerprint`.
        acknowledged: When an operator acknowledged the rollback, or edited the alias after it; None if neither.
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
    state: RolloutState = "running"
    ending: Ending | None = None
    step: int = -1
    since: float | None = None
    reason: str | None = None
    ended: float | None = None
    restored: str | None = None
    acknowledged: float | None = None

    @property
    def is_unacknowledged_rollback(self) -> bool:
        """Whether it was rolled back and no operator has taken note of that."""
        return self.state == "rolled_back" and self.acknowledged is None

    @property
    def percent(self) -> float:
        """The target's share in this step; 0 before the first."""
        return self.steps[self.step] if self.step >= 0 else 0.0

    @property
    def is_last(self) -> bool:
        """Whether this is the last step."""
        return self.step == len(self.steps) - 1

    def targets(self, step: int) -> dict[str, float]:
        """Weight by target in a step; -1 is the state before the first."""
        return self.old if step < 0 else split_weights(self.old, self.target, self.steps[step])


def split_weights(old: Mapping[str, float], target: str, percent: float) -> dict[str, float]:
    """Give `target` that many percent, and divide the rest among the others in their old proportions.

    Raises:
        ValueError: `percent` is below 100, and there is no other target.
    """
    others = {model: weight for model, weight in old.items() if model != target and weight > 0}
    if percent >= 100:
        return {target: 100.0}
    if not others:
        raise ValueError(f"there is no other target to give the remaining {100 - percent:g} % to")
    total = sum(others.values())
    # Six digits, as they are written to the file; the rounding error is below one request in a million.
    return {
        **{model: float(f"{(100 - percent) * weight / total:g}") for model, weight in others.items()},
        target: percent,
    }


def has_targets(alias: Alias | None, targets: Mapping[str, float]) -> bool:
    """Whether an alias has these targets in these proportions."""
    if alias is None:
        return False
    actual = _proportions({target.model: target.weight for target in alias.targets})
    expected = _proportions(targets)
    return actual.keys() == expected.keys() and all(abs(actual[model] - expected[model]) < 1e-4 for model in expected)


def alias_fingerprint(alias: Alias | None) -> str:
    """A value that differs for aliases that differ in any key; for a missing alias too."""
    return "" if alias is None else digest_of(json.dumps(alias_json(alias), sort_keys=True).encode())


def _proportions(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {model: weight / total for model, weight in weights.items() if weight > 0}


# The file...


class _File(msgspec.Struct, frozen=True):
    rollouts: dict[str, Rollout] = {}
    version: Literal[1] = 1


def _decode(data: bytes) -> _File:
    return msgspec.json.decode(data, type=_File)


def read(files: CatalogueFiles) -> dict[str, Rollout]:
    """The running or else the last rollout of each alias. Raises InvalidRolloutState, OSError."""
    try:
        data = files.rollouts_path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return _decode(data).rollouts
    except msgspec.DecodeError as error:
        hint = "repair it, or move it away: then no rollout runs, and every alias stays where it is"
        raise InvalidRolloutState(f"{files.rollouts_path}: {error}; {hint}") from error


def file_stamp(files: CatalogueFiles) -> tuple[int, int, int] | None:
    """A value that changes whenever the state file changes; None without a file. Raises OSError."""
    try:
        status = os.stat(files.rollouts_path)  # noqa: PTH116 - Path.stat is the same, one call slower, once a second
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _write(files: CatalogueFiles, rollouts: Mapping[str, Rollout]) -> None:
    ended = sorted((each for each in rollouts.values() if each.state != "running"), key=lambda each: each.ended or 0)
    dropped = {each.alias for each in ended[:-ENDED_KEPT]}
    kept = {alias: each for alias, each in sorted(rollouts.items()) if alias not in dropped}
    data = msgspec.json.format(msgspec.json.encode(_File(kept)), indent=2)
    try:
        _decode(data)
    except msgspec.DecodeError as error:  # JSON has no infinity, and an unreadable file would stop every rollout
        raise ValueError(f"this rollout cannot be written to {files.rollouts_path}: {error}") from error
    make_directory(files.rollouts_path.parent)
    atomic_write.write(files.rollouts_path, data + b"\n")


def _store(files: CatalogueFiles, rollout: Rollout) -> Rollout:
    rollouts = read(files)
    if rollouts.get(rollout.alias) != rollout:
        _write(files, rollouts | {rollout.alias: rollout})
    return rollout


# Changes of state: each takes the lock and reads the state again. `known` is the state that the caller decided on...


def begin(files: CatalogueFiles, rollout: Rollout) -> None:
    """Store a new rollout; a running gateway starts it.

    Raises:
        RolloutAlreadyRunning, CannotSave, InvalidRolloutState, OSError: Nothing was stored.
        ValueError: The rollout has a value that cannot be stored.
    """
    with locked(files.models_path):
        stored = read(files).get(rollout.alias)
        if stored is not None and stored.state == "running":
            raise RolloutAlreadyRunning(f"'{rollout.alias}' is being rolled out to {stored.target} already")
        _store(files, rollout)


def advance(files: CatalogueFiles, known: Rollout, now: float) -> Rollout:
    """Write the next step to `models.toml`, or the current step again if a crash prevented that.

    Returns:
        The state that is stored now.

    Raises:
        CannotSave, FaultyFile, CannotEdit, InvalidRolloutState, OSError: The file is unchanged; try again.
    """

    def write_step() -> Rollout:
        step = known.step if known.since is None and known.step >= 0 else known.step + 1
        stored = _store(files, msgspec.structs.replace(known, step=step, since=None))
        targets = stored.targets(step)
        description = f"step {step + 1} of {len(known.steps)}: {known.target} gets {known.steps[step]:g} %"
        edit_models_locked(
            files,
            lambda data: set_alias(data, known.alias, targets),
            who=f"rollout ({known.who})",
            command=f"rollout {known.alias}: {description}",
        )
        return stored

    return _if_alias_unchanged(files, known, write_step, now)


def mark_in_force(files: CatalogueFiles, known: Rollout, now: float) -> Rollout:
    """Start the current step's clock. Returns and raises as `advance`."""
    return _if_state_unchanged(files, known, lambda: _store(files, msgspec.structs.replace(known, since=now)))


def end(files: CatalogueFiles, known: Rollout, state: RolloutState, reason: str, now: float) -> Rollout:
    """End the rollout: "done" leaves the alias as it is, "rolled_back" and "aborted" restore it.

    Returns and raises as `advance`.
    """
    if state == "done":
        done = msgspec.structs.replace(known, state="done", reason=reason, ended=now)
        return _if_state_unchanged(files, known, lambda: _store(files, done))
    if state not in {"rolled_back", "aborted"}:
        raise ValueError(state)

    how = reason if reason.startswith(state) else f"{state.replace('_', ' ')}: {reason}"

    def restore() -> Rollout:
        ending = _store(files, msgspec.structs.replace(known, ending=state, reason=reason))
        edit = edit_models_locked(
            files,
            lambda data: _restored(files, known, data),
            who=f"rollout ({known.who})",
            command=f"rollout {known.alias}: {how}",
        )
        fingerprint = alias_fingerprint(_alias_in(edit.after, files, known.alias))
        ended = msgspec.structs.replace(ending, state=state, ending=None, ended=now, restored=fingerprint)
        return _store(files, ended)

    return _if_alias_unchanged(files, known, restore, now)


def acknowledge(files: CatalogueFiles, alias: str, now: float) -> Rollout | None:
    """Record that an operator knows of the alias's rollback; None if it has none that is not acknowledged.

    Raises:
        CannotSave, InvalidRolloutState, OSError: Nothing was stored.
    """
    with locked(files.models_path):
        stored = read(files).get(alias)
        if stored is None or not stored.is_unacknowledged_rollback:
            return None
        return _store(files, msgspec.structs.replace(stored, acknowledged=now))


def supersede_if_changed(files: CatalogueFiles, known: Rollout, now: float) -> Rollout:
    """End the rollout if another edit changed the alias. Returns and raises as `advance`."""
    return _if_alias_unchanged(files, known, lambda: known, now)


def _restored(files: CatalogueFiles, rollout: Rollout, data: bytes) -> bytes:
    """The file with the alias as it was before the first step; its layout too, if the history has that file."""
    before = files.history.get(rollout.before)
    return set_alias(data, rollout.alias, rollout.old) if before is None else restore_alias(data, rollout.alias, before)


def _if_state_unchanged(files: CatalogueFiles, known: Rollout, act: Callable[[], Rollout]) -> Rollout:
    with locked(files.models_path):
        stored = read(files).get(known.alias, known)
        return act() if stored == known else stored


def _if_alias_unchanged(files: CatalogueFiles, known: Rollout, act: Callable[[], Rollout], now: float) -> Rollout:
    """Act if the state is unchanged and running. If another edit changed the alias, end the rollout instead."""
    with locked(files.models_path):
        stored = read(files).get(known.alias, known)
        if stored != known or stored.state != "running":
            return stored
        alias = _alias_in(read_config_file(files.models_path), files, known.alias)
        if any(has_targets(alias, targets) for targets in _possible_targets(known)):
            return act()
        reason = "the alias was removed" if alias is None else "another edit changed the alias"
        return _store(files, msgspec.structs.replace(known, state="superseded", reason=reason, ended=now))


def _alias_in(data: bytes, files: CatalogueFiles, name: str) -> Alias | None:
    return parse(data, path=str(files.models_path), generation=0, loaded_at=0.0).aliases.get(name)


def _possible_targets(known: Rollout) -> list[dict[str, float]]:
    """The targets that the rollout itself may have left in the file, a crash between two writes included."""
    possible = [known.targets(known.step)]
    if known.since is None:
        possible.append(known.targets(known.step - 1))
    if known.ending is not None:
        possible.append(known.old)
    return possible
