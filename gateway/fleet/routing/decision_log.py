"""Why a request went where it went: what is noted of a decision when it is made, since the fleet is another one later.

Most decisions are trivial: one replica, well and with room. Of these nothing is noted; that it was asked says it all.
With several replicas it is which they were and how busy: a microsecond or two. Only where something stood in the way (a
cold model, a neuron that failed this request, an open breaker, a Retry-After, nobody at all) every neuron is looked at
and gets a verdict, which takes a few microseconds per neuron; such a request waits for seconds, or ends in an error.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from catalogue.models import Catalogue
from gateway.errors import GatewayError
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.choose import (
    ColdLoad,
    Decision,
    Fit,
    Route,
    WaitForLoad,
    WaitForPlace,
    neuron_model_id,
    replicas_of,
)
from gateway.fleet.state import Fleet

__all__ = ["Choice", "Verdict", "note"]

LIMIT = 12  # per request: the retries there are by default take six
_DETAIL_CHARACTERS = 200


class Verdict(NamedTuple):
    """What one neuron was, to this request: `state` is from a closed list, `detail` for a person."""

    node: str
    state: str
    detail: str = ""


class Choice(NamedTuple):
    """One decision on a model, at a time by Trio's clock.

    `decision` is what was to be done, `node` where, if it was to be somewhere. `verdicts` are on all neurons, where
    something stood in the way. Otherwise `rivals` are those that were as good, and `loads` their requests.
    """

    at: float
    model: str
    decision: str
    node: str | None
    verdicts: tuple[Verdict, ...] = ()
    rivals: tuple[NodeModel, ...] = ()
    loads: tuple[int, ...] = ()

    def told(self) -> tuple[Verdict, ...]:
        """The verdicts, also on rivals."""
        return self.verdicts or tuple(map(self._on_rival, self.rivals, self.loads))

    def _on_rival(self, held: NodeModel, load: int) -> Verdict:
        node = held.node.name
        return Verdict(node, "chosen" if node == self.node else "passed over", f"{load} requests")


def note(
    noted: list[Choice],
    made: Decision | GatewayError,
    *,
    model: str,
    fleet: Fleet,
    catalogue: Catalogue,
    failed_on: Collection[str],
) -> None:
    """Note a decision, or the error that was made instead, in the step in which it was made.

    Args:
        noted: What was noted of this request so far.
        made: What `routing.choose` has returned or raised.
        model: As `routing.choose`, which see.
        fleet: As above.
        catalogue: As above.
        failed_on: Who has failed this request.
    """
    if len(noted) >= LIMIT:
        return
    if isinstance(made, Route) and not failed_on:
        found = replicas_of(model, fleet, catalogue)
        if len(found) == 1 and not found[0].troubled:
            return
        if not any(held.troubled for held in found):
            noted.append(
                Choice(fleet.now(), model, "route", made.node, (), found, tuple([held.load for held in found]))
            )
            return
    look = _Look(made, _names(model, catalogue), failed_on, fleet.now())
    chosen = made.node if isinstance(made, Route) else None
    noted.append(Choice(look.now, model, _word_for(made), chosen, tuple(map(look.verdict, fleet.nodes.values()))))


def _word_for(made: Decision | GatewayError) -> str:
    if isinstance(made, GatewayError):
        return made.code or "refused"
    return _WORDS[type(made)]


_WORDS: dict[type, str] = {
    Route: "route",
    ColdLoad: "load",
    WaitForLoad: "wait for the load",
    WaitForPlace: "wait for a place",
}


def _names(model: str, catalogue: Catalogue) -> tuple[str, ...]:
    profile = catalogue.models.get(model)
    return (model,) if profile is None else (model, neuron_model_id(profile))


class _Look(NamedTuple):
    """At every neuron, for one decision."""

    made: Decision | GatewayError
    names: tuple[str, ...]
    failed_on: Collection[str]
    now: float

    def verdict(self, node: Node) -> Verdict:
        """In the order in which routing asks."""
        name = node.name
        if isinstance(self.made, Route) and self.made.node == name:
            return Verdict(name, "chosen")
        if name in self.failed_on:
            return Verdict(name, "failed before", "this request")
        if not node.healthy:
            return Verdict(name, "unhealthy", f"{node.misses} misses in a row" if node.misses else "not heard of yet")
        if node.draining:
            return Verdict(name, "draining")
        held = next((held for own in self.names if (held := node.models.get(own)) is not None and held.status), None)
        return self._cold(name) if held is None else self._held(held)

    def _cold(self, node: str) -> Verdict:
        if not isinstance(self.made, ColdLoad):
            return Verdict(node, "not loaded")
        place = next((candidate for candidate in self.made.candidates if candidate.node == node), None)
        if place is None:
            return Verdict(node, "not loaded", "cannot hold it")
        free = "" if place.free_mb is None else f", {place.free_mb} MB free"
        return Verdict(node, "not loaded", _FITS[place.fit] + free)

    def _held(self, held: NodeModel) -> Verdict:
        node, name = held.node, held.node.name
        if not held.servable:
            return Verdict(name, "not servable", _clipped((held.report and held.report.servable_reason) or ""))
        if not held.routable:
            return Verdict(name, held.status or "not loaded", "" if held.url else "no address known")
        if not node.breaker.admits(self.now):
            return Verdict(name, "breaker open", _clipped(node.breaker.reason))
        if held.busy_until > self.now:
            return Verdict(name, "busy", f"said so for another {held.busy_until - self.now:.0f} s")
        return Verdict(name, "passed over" if isinstance(self.made, Route) else "waited for", f"{held.load} requests")


_FITS = {
    Fit.FREE: "it fits",
    Fit.AFTER_EVICTION: "it fits once others are unloaded",
    Fit.UNKNOWN: "whether it fits is not known",
    Fit.FULL: "no room",
}


def _clipped(text: str) -> str:
    return text[:_DETAIL_CHARACTERS]
