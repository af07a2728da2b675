"""The entries of `/v1/models`, from a catalogue and the fleet. No HTTP, no waiting.

The list is built in four passes: profiles, models on nodes, models that nodes are about to load, aliases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import structlog

from catalogue.models import Catalogue, Cost, Limit, ModelProfile
from gateway.fleet.model_names import catalogue_id
from gateway.fleet.reports import ModelReport
from gateway.fleet.routing.placement import devices_for
from gateway.fleet.state import Fleet

__all__ = ["Entry", "Location", "ModelsApi"]

log = structlog.get_logger("cortex.models_api")

T = TypeVar("T")

# An id keeps its `created` for as long as the process runs, so that an evicted model returns with the same value. Ids
# come from operators and neurons, not from clients: the limit only guards against a faulty neuron.
REMEMBERED_IDS = 10_000


# The status of every model on a neuron that is down. What the neuron last reported may not be true any more.
UNREACHABLE = "unreachable"


class Location(msgspec.Struct, frozen=True):
    """A model on a node. `vram_estimate_mb` is None while it is unknown."""

    node: str
    status: str
    vram_estimate_mb: int | None


class Entry(msgspec.Struct, frozen=True):
    """One model or alias; its fields are sent in this order. Encode it with msgspec, which omits UNSET fields.

    `created` is when this gateway first listed the id, in unix seconds. `max_model_len` repeats `limit.context` under
    the name that vLLM uses and clients look for.
    """

    id: str
    object: str
    created: int
    owned_by: str
    loaded: bool
    feasible_on: tuple[str, ...]
    locations: tuple[Location, ...]
    capabilities: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    limit: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    cost: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    tool_call: bool | msgspec.UnsetType = msgspec.UNSET
    reasoning: bool | msgspec.UnsetType = msgspec.UNSET
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET
    alias_of: str | msgspec.UnsetType = msgspec.UNSET


class ModelsApi:
    """Builds the entries of `/v1/models`. Caches the last list until the catalogue or the fleet changes.

    Args:
        owned_by: The `owned_by` of every entry.
        unix_time: Returns seconds since 1970.
    """

    def __init__(self, *, owned_by: str, unix_time: Callable[[], float] = time.time) -> None:
        self._owned_by = owned_by
        self._unix_time = unix_time
        self._created: dict[str, int] = {}
        self._warned_generation = -1
        self._listed: dict[str, Entry] = {}
        self._listed_for: tuple[Catalogue, int] | None = None

    def list_models(self, catalogue: Catalogue, fleet: Fleet) -> list[Entry]:
        """Every model and alias, sorted by id. The caller owns the list; its entries are shared and frozen."""
        return list(self._current(catalogue, fleet).values())

    def model_entry(self, catalogue: Catalogue, fleet: Fleet, model_id: str) -> Entry | None:
        """The entry of a model or an alias; None if `list_models` does not list it."""
        return self._current(catalogue, fleet).get(model_id)

    def _current(self, catalogue: Catalogue, fleet: Fleet) -> dict[str, Entry]:
        # The catalogue is compared by identity: its generation number is not unique among catalogues.
        if self._listed_for is None or self._listed_for[0] is not catalogue or self._listed_for[1] != fleet.version:
            self._listed = self._build(catalogue, fleet)
            self._listed_for = (catalogue, fleet.version)
        return self._listed

    def _build(self, catalogue: Catalogue, fleet: Fleet) -> dict[str, Entry]:
        drafts = _topology(catalogue, fleet)
        _add_node_state(drafts, fleet, catalogue)
        _add_prewarming(drafts, fleet, catalogue)
        entries = {model_id: self._entry(model_id, draft) for model_id, draft in drafts.items()}
        entries |= self._alias_entries(catalogue, entries)
        self._forget_beyond_limit(entries)
        return dict(sorted(entries.items()))

    def _entry(self, model_id: str, draft: _Draft) -> Entry:
        return Entry(
            id=model_id,
            object="model",
            created=self._created_at(model_id),
            owned_by=self._owned_by,
            loaded=any(location.status == "loaded" for location in draft.locations),
            feasible_on=draft.feasible_on,
            locations=tuple(draft.locations),
            **_additions(draft.profile, draft.reports),
        )

    def _alias_entries(self, catalogue: Catalogue, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Pass 4. An alias with a model's name replaces that model's entry, as it does for requests.

        An alias of several models is shown as the listed one with the greatest weight.
        """
        shown_as = {
            alias.name: next(filter(entries.__contains__, alias.by_weight), None)
            for alias in catalogue.aliases.values()
        }
        dead = sorted(name for name, model in shown_as.items() if model is None)
        if dead and self._warned_generation != catalogue.generation:
            self._warned_generation = catalogue.generation
            log.warning("dead_aliases", aliases=dead, generation=catalogue.generation)
        return {
            name: msgspec.structs.replace(entries[model], id=name, created=self._created_at(name), alias_of=model)
            for name, model in shown_as.items()
            if model is not None
        }

    def _created_at(self, model_id: str) -> int:
        return self._created.setdefault(model_id, int(self._unix_time()))

    def _forget_beyond_limit(self, listed: Mapping[str, Entry]) -> None:
        if len(self._created) > REMEMBERED_IDS:
            self._created = {key: created for key, created in self._created.items() if key in listed}


# The passes ...........................................................................................................


class _Draft:
    """An entry while the passes collect it."""

    __slots__ = ("feasible_on", "locations", "profile", "reports")

    def __init__(self, profile: ModelProfile | None = None, feasible_on: tuple[str, ...] = ()) -> None:
        self.profile = profile
        self.feasible_on = feasible_on
        self.locations: list[Location] = []
        self.reports: list[ModelReport] = []


def _topology(catalogue: Catalogue, fleet: Fleet) -> dict[str, _Draft]:
    """Pass 1: every profile, and the nodes that could hold it."""
    healthy = [node for node in fleet.nodes.values() if node.healthy]
    return {
        profile.id: _Draft(profile, tuple(node.name for node in healthy if devices_for(profile, node) is not None))
        for profile in catalogue.models.values()
    }


def _add_node_state(drafts: dict[str, _Draft], fleet: Fleet, catalogue: Catalogue) -> None:
    """Pass 2: the models that every node reports, healthy or not."""
    for node in fleet.nodes.values():
        for replica in node.models.values():
            if replica.status is None:
                continue
            draft = drafts.setdefault(catalogue_id(replica.id, catalogue), _Draft())
            vram_mb = None if replica.report is None else replica.report.vram_used_mb
            status = replica.status if node.healthy else UNREACHABLE
            draft.locations.append(Location(node.name, status, vram_mb))
            if replica.report is not None:
                draft.reports.append(replica.report)


def _add_prewarming(drafts: dict[str, _Draft], fleet: Fleet, catalogue: Catalogue) -> None:
    """Pass 3: the models that a node is about to load, unless it reports a status for them already."""
    for node in fleet.nodes.values():
        for model_id in node.activation.awaited if node.healthy else ():
            draft = drafts.setdefault(catalogue_id(model_id, catalogue), _Draft())
            if all(location.node != node.name for location in draft.locations):
                draft.locations.append(Location(node.name, "loading", None))


def _additions(profile: ModelProfile | None, reports: list[ModelReport]) -> dict[str, Any]:
    """The optional fields: from the operator's profile, else from the first neuron that reports them."""
    capabilities = (profile and profile.capabilities) or _first(report.capabilities for report in reports)
    limit = (profile and profile.limit) or _first(report.limit for report in reports)
    known = {
        "capabilities": capabilities,
        "limit": None if limit is None else _limit(limit),
        "cost": None if profile is None or profile.cost is None else _cost(profile.cost),
        "tool_call": _first(report.tool_call for report in reports),
        "reasoning": _first(report.reasoning for report in reports),
        "max_model_len": None if limit is None else limit.context,
    }
    return {key: value for key, value in known.items() if value is not None}


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _limit(limit: Limit) -> dict[str, int]:
    known = {"context": limit.context, "input": limit.input, "output": limit.output}
    return {key: tokens for key, tokens in known.items() if tokens is not None}


def _cost(cost: Cost) -> dict[str, float]:
    """Unknown prices are omitted; 0.0 is a price."""
    known = {
        "input": cost.input,
        "output": cost.output,
        "cache_read": cost.cache_read,
        "cache_write": cost.cache_write,
    }
    return {key: usd for key, usd in known.items() if usd is not None}
