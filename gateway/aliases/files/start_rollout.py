"""Starting a rollout: every step is tried on the file first, then the rollout is stored for a gateway. Blocking."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from catalogue.load import parse
from catalogue.nearest import did_you_mean
from gateway.aliases.files import locked_edit, rollout_state, toml_edit
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.rollout_state import Rollout
from gateway.aliases.rollout_guards import DEFAULT_TOLERANCES, GuardName

__all__ = ["DEFAULT_MIN_REQUESTS", "CannotStartRollout", "RolloutPlan", "start_rollout"]

DEFAULT_MIN_REQUESTS = 20


class CannotStartRollout(Exception):
    """The rollout makes no sense for this alias; the text says why."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What an operator asks for. Steps are percent; `guards` has the tolerance of each guard.

    `min_requests` is None for the default: 20 if there are guards, else 0.
    """

    alias: str
    target: str
    steps: tuple[float, ...] = (5, 25, 50, 100)
    every_s: float = 600.0
    guards: Mapping[GuardName, float] = field(default_factory=lambda: dict(DEFAULT_TOLERANCES))
    min_requests: int | None = None


def start_rollout(files: CatalogueFiles, plan: RolloutPlan, data: bytes, *, who: str) -> Rollout:
    """Check every step on the file's content, and store the rollout; a running gateway begins it.

    Raises:
        CannotStartRollout: There is no such alias, or nothing to do.
        FaultyFile: A step would make the file faulty.
        RolloutAlreadyRunning, InvalidRolloutState, CannotSave, CannotEdit, ValueError, OSError: Nothing was stored.
    """
    path = str(files.models_path)
    catalogue = parse(data, path=path, generation=0, loaded_at=0.0)
    alias = catalogue.aliases.get(plan.alias)
    if alias is None:
        hint = did_you_mean(plan.alias, catalogue.aliases)
        raise CannotStartRollout(f"{path} has no alias '{plan.alias}'{hint}")
    if alias.active == {plan.target}:
        raise CannotStartRollout(f"{plan.alias} points at {plan.target} already")
    default_minimum = DEFAULT_MIN_REQUESTS if plan.guards else 0
    rollout = Rollout(
        alias=plan.alias,
        target=plan.target,
        steps=plan.steps,
        every_s=plan.every_s,
        guards=dict(plan.guards),
        minimum=default_minimum if plan.min_requests is None else plan.min_requests,
        who=who,
        started=time.time(),
        before=files.history.keep(data),
        old={each.model: each.weight for each in alias.targets},
    )
    for step in range(len(rollout.steps)):
        edited = toml_edit.set_alias(data, rollout.alias, rollout.targets(step))
        locked_edit.check(edited, path=path)
    rollout_state.begin(files, rollout)
    return rollout
