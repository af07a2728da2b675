"""Which aliases of an accepted file do not move yet, because what they are to stand for cannot serve. Pure.

The catalogue in force says where requests go. Usually that is what the file says; an alias that is warming still has
its old targets there, and `Catalogue.warming` has what the file says of it. Everything else of the file is in force at
once, the alias's other keys included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from catalogue.models import Alias, Catalogue, Warming


class Readiness(Protocol):
    """What somebody who watches the fleet knows of a model, by its id in a catalogue."""

    def is_servable(self, model: str, catalogue: Catalogue) -> bool:
        """Whether a request for it could be sent somewhere right now, without a load."""
        ...

    def is_proven(self, model: str, catalogue: Catalogue) -> bool:
        """Whether it is servable where it has answered well since it was loaded."""
        ...


def hold_back(new: Catalogue, in_force: Catalogue, readiness: Readiness) -> Catalogue:
    """`new`, but with those aliases at their old targets that have to be warmed first."""
    aliases, warming = dict(new.aliases), {}
    for name, wanted in new.aliases.items():
        old = in_force.aliases.get(name)
        if old is None or not _has_to_wait(wanted, old, new, in_force, readiness):
            continue
        newcomers = tuple(target.model for target in wanted.targets if target.model in wanted.active - old.active)
        aliases[name] = replace(wanted, targets=old.targets)
        warming[name] = Warming(wanted, newcomers, protects=old.active)
    return replace(new, aliases=MappingProxyType(aliases), warming=MappingProxyType(warming))


def _has_to_wait(wanted: Alias, old: Alias, new: Catalogue, in_force: Catalogue, readiness: Readiness) -> bool:
    """A newcomer may be cold, and there is somebody to serve meanwhile: else waiting would protect nobody."""
    newcomers = wanted.active - old.active
    if wanted.swap == "cold" or all(readiness.is_proven(model, new) for model in newcomers):
        return False
    return any(readiness.is_servable(model, in_force) for model in old.active)


# What becomes of an alias that waits. Each is another snapshot; only the first moves requests and so counts on.


def moved(catalogue: Catalogue, alias: str) -> Catalogue:
    """With the alias where its file wants it: a new generation."""
    wanted = catalogue.warming[alias].wanted
    return replace(
        catalogue,
        generation=catalogue.generation + 1,
        aliases=MappingProxyType({**catalogue.aliases, alias: wanted}),
        warming=_without(catalogue.warming, alias),
    )


def given_up(catalogue: Catalogue, alias: str, reason: str) -> Catalogue:
    """With the alias where it is for good, or until somebody has it tried again; nothing is guarded for it."""
    return _with(catalogue, replace(catalogue.warming[alias], failed=reason))


def tried_again(catalogue: Catalogue, alias: str) -> Catalogue:
    """With the alias warming once more."""
    return _with(catalogue, replace(catalogue.warming[alias], failed=None))


def _with(catalogue: Catalogue, changed: Warming) -> Catalogue:
    return replace(catalogue, warming=MappingProxyType({**catalogue.warming, changed.wanted.name: changed}))


def _without(warming: Mapping[str, Warming], alias: str) -> Mapping[str, Warming]:
    return MappingProxyType({name: entry for name, entry in warming.items() if name != alias})
