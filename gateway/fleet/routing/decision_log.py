"""Notes on routing decisions, taken when they are made, because the fleet has changed by the time an operator asks.

The common decision is not noted: one replica, well and with a free slot. With several well replicas the note has them
and their load, which costs a microsecond or two. Only where something stands in the way (a cold model, a node that
failed this request, an open circuit breaker, a Retry-After, no replica) does every node get a verdict, at a few
microseconds per node; such a request waits for seconds or ends in an error.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from catalogue.models import Catalogue
from gateway.errors import GatewayError
from gateway.fleet.model_names import names_on_neurons, replicas_of
from gateway.fleet.node import ROUTABLE_STATUSES, Node, NodeModel
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import ColdLoad, Decision, WaitForLoad, WaitForSlot, least_busy
from gateway.fleet.routing.placement import Fit
from gateway.fleet.state import Fleet

__all__ = ["LIMIT", "NodeVerdict", "NotedDecision", "note_decision", "route_to_one_of"]

LIMIT = 12  # notes per request; with the default retries there are at most six
_DETAIL_CHARACTERS = 200


class NodeVerdict(NamedTuple):
    """What one node could do for the request. `state` is from a closed list, `detail` is for people."""

    node: str
    state: str
    detail: str = ""


class NotedDecision(NamedTuple):
    """One decision for a model, at a time of Trio's clock.

    `decision` says what to do, `node` where, if it is a route. `verdicts` cover all nodes if something stood in the
    way. Otherwise `rivals` are the replicas to choose from, and `loads` how many requests each had.
    """

    at: float
    model: str
    decision: str
    node: str | None
    verdicts: tuple[NodeVerdict, ...] = ()
    rivals: tuple[NodeModel, ...] = ()
    loads: tuple[int, ...] = ()

    def node_verdicts(self) -> tuple[NodeVerdict, ...]:
        """The verdicts, made from `rivals` if there are none."""
        return self.verdicts or tuple(map(self._verdict_on_rival, self.rivals, self.loads))

    def _verdict_on_rival(self, rival: NodeModel, load: int) -> NodeVerdict:
        node = rival.node.name
        return NodeVerdict(node, "chosen" if node == self.node else "passed over", f"{load} requests")


def route_to_one_of(
    model: str, replicas: tuple[NodeModel, ...], notes: list[NotedDecision], now: float
) -> Route | None:
    """As `choose` of well replicas without a limit, and `note_decision`. None if there is none, or one is not well."""
    for replica in replicas:
        if replica.troubled:
            return None
    if not replicas:
        return None
    loads = tuple([replica.load for replica in replicas])
    best = least_busy(replicas, loads)
    if len(notes) < LIMIT:
        notes.append(NotedDecision(now, model, "route", best.node.name, (), replicas, loads))
    return best.route


def note_decision(
    notes: list[NotedDecision],
    made: Decision | GatewayError,
    *,
    model: str,
    fleet: Fleet,
    catalogue: Catalogue,
    failed_on: Collection[str],
) -> None:
    """Note a decision, or the error raised instead of one. Call it in the step in which the decision was made.

    Args:
        notes: The request's notes so far.
        made: What `choose` returned or raised.
        model: As given to `choose`.
        fleet: As given to `choose`.
        catalogue: As given to `choose`.
        failed_on: The names of the nodes that have failed this request.
    """
    if len(notes) >= LIMIT:
        return
    if isinstance(made, Route) and not failed_on:
        replicas = replicas_of(model, fleet, catalogue)
        if len(replicas) == 1 and not replicas[0].troubled:
            return
        if not any(replica.troubled for replica in replicas):
            loads = tuple([replica.load for replica in replicas])
            notes.append(NotedDecision(fleet.now(), model, "route", made.node, (), replicas, loads))
            return
    judge = _NodeJudge(made, names_on_neurons(model, catalogue), failed_on, fleet.now())
    node = made.node if isinstance(made, Route) else None
    verdicts = tuple(map(judge.verdict, fleet.nodes.values()))
    notes.append(NotedDecision(judge.now, model, _word_for(made), node, verdicts))


def _word_for(made: Decision | GatewayError) -> str:
    if isinstance(made, GatewayError):
        return made.code or "refused"
    return _WORDS[type(made)]


_WORDS: dict[type, str] = {
    Route: "route",
    ColdLoad: "load",
    WaitForLoad: "wait for the load",
    WaitForSlot: "wait for a place",
}


class _NodeJudge(NamedTuple):
    """Gives each node its verdict on one decision."""

    made: Decision | GatewayError
    names: tuple[str, ...]
    failed_on: Collection[str]
    now: float

    def verdict(self, node: Node) -> NodeVerdict:
        """In the order of the checks of `choose`."""
        name = node.name
        if isinstance(self.made, Route) and self.made.node == name:
            return NodeVerdict(name, "chosen")
        if name in self.failed_on:
            return NodeVerdict(name, "failed before", "this request")
        if not node.healthy:
            misses = f"{node.misses} misses in a row" if node.misses else "never answered"
            return NodeVerdict(name, "unhealthy", _clipped(misses + (f": {node.failure}" if node.failure else "")))
        if node.draining:
            return NodeVerdict(name, "draining")
        models = (node.models.get(model_id) for model_id in self.names)
        model = next((model for model in models if model is not None and model.status), None)
        return self._without_model(name) if model is None else self._with_model(model)

    def _without_model(self, node: str) -> NodeVerdict:
        if not isinstance(self.made, ColdLoad):
            return NodeVerdict(node, "not loaded")
        return NodeVerdict(node, "not loaded", self._room_on(node) or "cannot hold it")

    def _room_on(self, node: str) -> str:
        """Whether a load of the model fits there; empty if this is no candidate for a load."""
        candidates = self.made.candidates if isinstance(self.made, ColdLoad) else ()
        candidate = next((candidate for candidate in candidates if candidate.node == node), None)
        if candidate is None:
            return ""
        free = "" if candidate.free_mb is None else f", {candidate.free_mb} MB free"
        return ("to be woken: " if candidate.wakes else "") + _FITS[candidate.fit] + free

    def _with_model(self, model: NodeModel) -> NodeVerdict:
        name = model.node.name
        if not model.servable:
            return NodeVerdict(name, "not servable", _clipped((model.report and model.report.servable_reason) or ""))
        if not model.routable:
            unknown_url = "inference URL unknown" if model.status in ROUTABLE_STATUSES and not model.url else ""
            progress = model.report and model.report.progress
            done = "" if progress is None or model.status != "loading" else f"{progress:.0%} done"
            facts = [_clipped(model.reason or ""), unknown_url, done, self._room_on(name)]
            return NodeVerdict(name, model.status or "not loaded", "; ".join(filter(None, facts)))
        if not model.admits(self.now):
            return NodeVerdict(name, "breaker open", _clipped(model.open_breaker.reason))
        if model.busy_until > self.now:
            return NodeVerdict(name, "busy", f"its Retry-After ends in {model.busy_until - self.now:.0f} s")
        state = "passed over" if isinstance(self.made, Route) else "waited for"
        return NodeVerdict(name, state, f"{model.load} requests")


_FITS = {
    Fit.FREE: "it fits",
    Fit.AFTER_EVICTION: "it fits once others are unloaded",
    Fit.UNKNOWN: "whether it fits is not known",
    Fit.FULL: "no room",
}


def _clipped(text: str) -> str:
    return text[:_DETAIL_CHARACTERS]
