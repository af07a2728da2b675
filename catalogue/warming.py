"""Warm swaps in a catalogue: which aliases of an accepted file keep their old targets for now. Pure.

The catalogue in force decides where requests go. Usually it equals the file. A warming alias still has its old targets
there, and `Catalogue.warming` has the alias as in the file. All other keys of the file are in force at once, the
alias's other keys included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from catalogue.models import Alias, Catalogue, Warming


class Readiness(Protocol):
    """Whether the fleet can serve a model, by its id in a catalogue."""

    def is_servable(self, model: str, catalogue: Catalogue) -> bool:
        """Whether some neuron could serve a request for it now, without a load."""
        ...

    def is_proven(self, model: str, catalogue: Catalogue) -> bool:
        """Whether it is servable on a neuron where it has answered a request since its load."""
        ...


def hold_back(new: Catalogue, in_force: Catalogue, readiness: Readiness) -> Catalogue:
    """`new`, but the aliases that must be warmed first keep their old targets."""
    aliases, warming = dict(new.aliases), {}
    for name, wanted in new.aliases.items():
        old = in_force.aliases.get(name)
        if old is None or not _must_wait(wanted, old, new, in_force, readiness):
            continue
        newcomers = tuple(target.model for target in wanted.targets if target.model in wanted.active - old.active)
        aliases[name] = replace(wanted, targets=old.targets)
        warming[name] = Warming(wanted, newcomers, protects=old.active)
    return replace(new, aliases=MappingProxyType(aliases), warming=MappingProxyType(warming))


def _must_wait(wanted: Alias, old: Alias, new: Catalogue, in_force: Catalogue, readiness: Readiness) -> bool:
    """Whether a new target may be cold while an old one can serve. Without the latter, waiting would not help."""
    newcomers = wanted.active - old.active
    if wanted.swap == "cold" or all(readiness.is_proven(model, new) for model in newcomers):
        return False
    return any(readiness.is_servable(model, in_force) for model in old.active)


# The ends of a warm swap. Each returns a new snapshot. Only `moved` changes where requests go, and counts a generation.


def moved(catalogue: Catalogue, alias: str) -> Catalogue:
    """The alias has the targets of the file, in a new generation."""
    wanted = catalogue.warming[alias].wanted
    return replace(
        catalogue,
        generation=catalogue.generation + 1,
        aliases=MappingProxyType({**catalogue.aliases, alias: wanted}),
        warming=_without(catalogue.warming, alias),
    )


def given_up(catalogue: Catalogue, alias: str, reason: str) -> Catalogue:
    """The alias keeps its old targets until `tried_again`; no models are guarded for it."""
    return _with(catalogue, replace(catalogue.warming[alias], failed=reason))


def tried_again(catalogue: Catalogue, alias: str) -> Catalogue:
    """The alias is warming again."""
    return _with(catalogue, replace(catalogue.warming[alias], failed=None))


def _with(catalogue: Catalogue, changed: Warming) -> Catalogue:
    return replace(catalogue, warming=MappingProxyType({**catalogue.warming, changed.wanted.name: changed}))


def _without(warming: Mapping[str, Warming], alias: str) -> Mapping[str, Warming]:
    return MappingProxyType({name: entry for name, entry in warming.items() if name != alias})
