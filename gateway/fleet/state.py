"""What the gateway knows of its neurons, and what it holds on them: the one mutable thing. No I/O, no decisions.

Every method but `wait_changed` is synchronous, hence atomic under Trio: nobody sees half a change and nothing needs a
lock. Facts come in through the poller (`answered`, `missed`), through requests (`missed`, `dropped`, `lease`) and
through the lifecycle (`loading`, `loaded`, `unloading`, `unchanged`). Deciding upon them is `routing.py`'s part.

Two kinds of knowledge meet here, and they age differently. What a poll says was true some time between its beginning
and its end; what we did ourselves is true at once. So a poll takes a `mark` before it asks, and what we have done to a
model since then outlives its answer (see `answered`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import trio

from gateway.config.settings import NeuronSettings
from gateway.fleet.node import ROUTABLE_STATUSES, Change, Node, NodeModel
from gateway.fleet.reports import ModelReport, NodeReport, not_ours, without_readings
from gateway.fleet.snapshot import FleetSnapshot, FleetStatistics, node_snapshot

ChangeKind = Literal[
    "neuron_up",
    "neuron_down",
    "model_seen",
    "model_gone",
    "status_changed",
    "breaker_opened",
    "breaker_tried",
    "breaker_closed",
    "draining",
    "undrained",
]


@dataclass(frozen=True, slots=True)
class PollMark:
    """The state of our own doings when a poll began; see `Fleet.mark`."""

    version: int
    leases: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FleetChange:
    """Something worth a log line. `before` and `after` are statuses; `detail` says why a neuron is down."""

    kind: ChangeKind
    node: str
    model: str | None = None
    before: str | None = None
    after: str | None = None
    detail: str | None = None


class Lease:
    """A held place at (node, model): `with` it in the same step as the decision. One at a time."""

    __slots__ = ("_fleet", "_held", "_is_trial", "_model_id", "_node")

    def __init__(self, fleet: Fleet, node: Node, model_id: str) -> None:
        self._fleet = fleet
        self._node = node
        self._model_id = model_id
        self._held: NodeModel | None = None
        self._is_trial = False

    def __enter__(self) -> None:
        if self._held is not None:
            raise RuntimeError("this lease is already taken")
        self._held = self._fleet._take(self._node, self._model_id)  # noqa: SLF001 - one class in two halves
        if not self._node.breaker.closed:
            self._is_trial = self._fleet._begin_trial(self._node)  # noqa: SLF001 - as above

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, self._held = self._held, None
        if self._is_trial:
            self._is_trial = False
            self._node.breaker.end_trial()
        if held is not None:
            self._fleet._give_back(held)  # noqa: SLF001 - as above


class Fleet:
    """All configured neurons.

    Args:
        neurons: In the operator's order; names are unique (settings see to that).
        misses: So many failures in a row make a node unhealthy; one answer makes it healthy.
        clock: Seconds, monotonic; Trio's unless a test has no Trio.

    `version` grows with every change that a reader could see, leases and device readings apart, so that windows can
    cache upon it. `observers` are called synchronously for every `FleetChange`, in order. `replica_observers` are
    called with a model's name (as its neurons have it) whenever there are other replicas of it than before, and
    `return_observers` whenever one of its leases came back. None of them may raise.
    """

    def __init__(
        self, neurons: Sequence[NeuronSettings], *, misses: int, clock: Callable[[], float] = trio.current_time
    ) -> None:
        # By name, so that every order we derive is by name and ties need no second look.
        self.nodes: dict[str, Node] = {
            settings.name: Node(settings) for settings in sorted(neurons, key=lambda settings: settings.name)
        }
        self.observers: list[Callable[[FleetChange], None]] = []
        self.replica_observers: list[Callable[[str], None]] = []
        self.return_observers: list[Callable[[str], None]] = []
        self.version = 1
        self.leases = 0
        self._misses = misses
        self._clock = clock
        self._replicas: dict[str, tuple[NodeModel, ...]] = {}
        self._waiters = trio.lowlevel.ParkingLot()

    # Asking ...........................................................................................................

    def replicas(self, model_id: str) -> tuple[NodeModel, ...]:
        """Where a request for the model may go now: routable, on healthy nodes that do not drain; by node name.

        One dict look-up: every request asks this.
        """
        return self._replicas.get(model_id, ())

    def holders(self, model_id: str) -> tuple[NodeModel, ...]:
        """Every node's entry for the model, whatever its state and its node's health; by node name."""
        held = (node.models.get(model_id) for node in self.nodes.values())
        return tuple(entry for entry in held if entry is not None and entry.status is not None)

    def any_healthy(self) -> bool:
        """Whether there is anybody to send anything to."""
        return any(node.healthy for node in self.nodes.values())

    def now(self) -> float:
        """The time by the fleet's clock, in seconds."""
        return self._clock()

    async def wait_changed(self) -> None:
        """Wait for the next change that may turn a "not now" into a "now": status, health, or a model falling idle.

        Check, then wait, without a checkpoint in between, in a loop: nothing is lost, and wake-ups may be in vain.
        """
        await self._waiters.park()

    def statistics(self) -> FleetStatistics:
        """The totals now."""
        nodes = self.nodes.values()
        return FleetStatistics(
            nodes_healthy=sum(node.healthy for node in nodes),
            nodes_total=len(nodes),
            leases=self.leases,
            ever_answered=any(node.ever_answered for node in nodes),
        )

    def snapshot(self) -> FleetSnapshot:
        """Everything now, for the status page, the admin API and the metrics."""
        now = self._clock()
        return FleetSnapshot(self.version, tuple(node_snapshot(node, now) for node in self.nodes.values()))

    def imagine(self) -> Fleet:
        """Another fleet in the same state, to think ahead on: nothing done to it reaches this one, or a neuron."""
        other = Fleet((), misses=self._misses, clock=self._clock)
        other.version, other.leases = self.version, self.leases
        for name, node in self.nodes.items():
            twin = other.nodes[name] = copy(node)
            twin.breaker, twin.own_changes, twin.models = copy(node.breaker), dict(node.own_changes), {}
            for model_id, held in node.models.items():
                twin.models[model_id] = copy(held)
                twin.models[model_id].node = twin
            other._reindex(twin.models)
        return other

    def assert_idle(self) -> None:
        """Raise AssertionError, naming who, unless every lease has come back."""
        held = [repr(entry) for node in self.nodes.values() for entry in node.models.values() if entry.leases]
        if held or self.leases:
            raise AssertionError(f"{self.leases} leases are out: {', '.join(held)}")

    # Leasing ..........................................................................................................

    def lease(self, node: str, model_id: str) -> Lease:
        """A place at (node, model), taken by `with` and given back on every way out of it."""
        return Lease(self, self.nodes[node], model_id)

    @contextlib.contextmanager
    def shadowing(self, node: str, model_id: str) -> Iterator[None]:
        """A request of ours that holds nothing: known only so that a poll does not count it as another's."""
        held = self._entry(self.nodes[node], model_id)
        held.shadows += 1
        try:
            yield
        finally:
            held.shadows -= 1
            self._forget_if_empty(held)
            self._waiters.unpark_all()

    def _take(self, home: Node, model_id: str) -> NodeModel:
        held = home.models.get(model_id) or self._entry(home, model_id)
        held.leases += 1
        held.last_used = self._clock()
        self.leases += 1
        return held

    def _begin_trial(self, home: Node) -> bool:
        is_trial = home.breaker.begin_trial(self._clock())
        if is_trial:
            self._announce(FleetChange("breaker_tried", home.name))
        return is_trial

    def _give_back(self, held: NodeModel) -> None:
        held.leases -= 1
        held.last_used = self._clock()
        self.leases -= 1
        if held.leases == 0:
            self._forget_if_empty(held)
            self._waiters.unpark_all()
        for observe in self.return_observers:
            observe(held.id)

    # Learning from polls and requests .................................................................................

    def mark(self, node: str) -> PollMark:
        """What to take before a poll asks its first question, and to hand back with the answer."""
        held = self.nodes[node].models.values()
        return PollMark(self.version, {entry.id: ours for entry in held if (ours := entry.leases + entry.shadows)})

    def answered(self, node: str, report: NodeReport, *, since: PollMark | None = None) -> None:
        """A poll succeeded: the node is healthy, and holds what it says and nothing else.

        What we did to a model after `since` (loaded it, unloaded it, saw it gone) is newer than this report and stays
        as it is until the next one. The same holds for a failed connection after `since`: it is not forgiven yet.
        None means that nothing can have happened in between. Polls of one node do not overlap.
        """
        home = self.nodes[node]
        since = since or self.mark(node)
        reports = {model.id: model for model in report.models}
        concerned = sorted(home.models.keys() | reports.keys())
        for model_id in concerned:
            if home.own_changes.get(model_id, 0) <= since.version:
                self._learn(home, model_id, reports.get(model_id), since)
        home.own_changes = {key: made for key, made in home.own_changes.items() if made > since.version}
        self._learn_surroundings(home, report)
        if home.urls_doubtful_since is None or home.urls_doubtful_since <= since.version:
            home.urls_doubtful_since = None
            self._mark_healthy(home)
        self._reindex(concerned)

    def missed(self, node: str, reason: str | None = None) -> None:
        """A poll failed, or a request's connection was refused or broke: one strike."""
        home = self.nodes[node]
        home.misses += 1
        self.version += 1
        home.urls_doubtful_since = self.version
        if home.misses == self._misses:  # also for one that never answered: an outage is announced once
            home.healthy = False
            self._announce(FleetChange("neuron_down", node, detail=reason))
            self._reindex(home.models.keys())

    def failed(self, node: str, reason: str) -> None:
        """A request could not be sent there, or its answer broke off or never came: a strike, and the breaker's."""
        self.at_fault(node, reason)
        self.missed(node, reason)

    def at_fault(self, node: str, reason: str) -> None:
        """A request failed there and it was not the request's fault: no strike, it answers, but the breaker's."""
        home = self.nodes[node]
        if home.healthy and home.breaker.failed(self._clock(), reason):
            self._announce(FleetChange("breaker_opened", node, detail=reason))

    def succeeded(self, node: str, model_id: str | None = None, *, answered: bool = False) -> None:
        """A neuron replied: strikes are forgiven. Only a poll brings an unhealthy node back.

        `answered` says that it was what the request asked for, and not a refusal: that proves the model.
        """
        home = self.nodes[node]
        if home.misses and home.healthy:
            home.misses = 0
        if not home.breaker.clean and home.breaker.succeeded():
            self._announce(FleetChange("breaker_closed", node))
        held = None if model_id is None else home.models.get(model_id)
        if held is not None:
            held.busy_until = 0.0
            held.proven = held.proven or (answered and held.routable)

    def busy(self, node: str, model_id: str, retry_after_s: int) -> None:
        """The model answered 503 with this Retry-After: until then others are asked first."""
        held = self.nodes[node].models.get(model_id)
        if held is not None:
            held.busy_until = self._clock() + retry_after_s

    def dropped(self, node: str, model_id: str) -> None:
        """The model is not on the node: we unloaded it, or the node answered 404 `not loaded`."""
        self._change(node, model_id, None, None)

    # Learning from the lifecycle ......................................................................................

    def loading(self, node: str, model_id: str) -> None:
        """We are about to ask the node to load the model. Ends with `loaded`, `dropped` or `unchanged`."""
        self._change(node, model_id, "loading", self._report(node, model_id))

    def unloading(self, node: str, model_id: str) -> None:
        """We are about to unload it: no request goes there from now on. Ends with `dropped` or `unchanged`."""
        self._change(node, model_id, "unloading", self._report(node, model_id))

    def overdue(self, node: str, model_id: str) -> None:
        """That load takes far too long: it may yet end well, but nobody should have to wait for it alone."""
        held = self._entry(self.nodes[node], model_id)
        held.is_overdue = True
        self.version += 1
        self._waiters.unpark_all()

    def loaded(self, node: str, report: ModelReport) -> None:
        """A load of ours ended well; `report` has the inference URL."""
        self._change(node, report.id, None, report)

    def unchanged(self, node: str, model_id: str) -> None:
        """A load or unload of ours failed: what the neuron last reported holds again.

        But for a `loading` that was our load's: that is over, and a neuron that died with it will not say so.
        """
        held, report = self.nodes[node].models.get(model_id), self._report(node, model_id)
        if held is not None and held.change == "loading" and report is not None and report.status == "loading":
            report = None
        self._change(node, model_id, None, report)

    def is_confirmed(self, node: str) -> bool:
        """Whether a poll that began after our last change to any of its models has answered.

        Until then readings and models may be of different times: memory still taken by who is gone, or the reverse.
        """
        return not self.nodes[node].own_changes

    def drain(self, node: str, *, draining: bool) -> None:
        """Keep new requests off the node, or let them on again. Running ones are not touched."""
        home = self.nodes[node]
        if home.draining == draining:
            return
        home.draining = draining
        self._announce(FleetChange("draining" if draining else "undrained", node))
        self._reindex(home.models.keys())

    def _report(self, node: str, model_id: str) -> ModelReport | None:
        held = self.nodes[node].models.get(model_id)
        return None if held is None else held.report

    def _change(self, node: str, model_id: str, change: Change | None, report: ModelReport | None) -> None:
        """Something of our own doing: true at once, and newer than any poll under way."""
        home = self.nodes[node]
        held = self._entry(home, model_id)
        before = held.status
        held.change, held.report, held.is_overdue = change, report, False
        self.version += 1
        home.own_changes[model_id] = self.version
        self._settle(held, before)
        self._reindex((model_id,))

    # Keeping the books ................................................................................................

    def _entry(self, home: Node, model_id: str) -> NodeModel:
        held = home.models.get(model_id)
        if held is None:
            held = home.models[model_id] = NodeModel(home, model_id)
        return held

    def _learn(self, home: Node, model_id: str, report: ModelReport | None, since: PollMark) -> None:
        held = self._entry(home, model_id)
        before, known = held.status, held.report
        held.report = report
        held.others = not_ours(report, max(held.leases + held.shadows, since.leases.get(model_id, 0)))
        if report != known:
            self.version += 1
        self._settle(held, before)

    def _learn_surroundings(self, home: Node, report: NodeReport) -> None:
        devices = report.devices if report.devices is not None else without_readings(home.devices)
        if without_readings(devices) != without_readings(home.devices):
            self.version += 1
        home.devices = devices
        home.max_prompt_tokens = report.max_prompt_tokens
        if report.uptime_s is not None:
            if home.uptime_s is not None and report.uptime_s < home.uptime_s:
                home.breaker.reset()  # a neuron that was restarted has not failed anybody yet
            home.uptime_s = report.uptime_s
        if report.activation is not None and report.activation != home.activation:
            home.activation = report.activation
            self.version += 1
            self._waiters.unpark_all()

    def _mark_healthy(self, home: Node) -> None:
        home.misses = 0
        if not home.healthy:
            home.healthy = home.ever_answered = True
            self._announce(FleetChange("neuron_up", home.name))

    def _settle(self, held: NodeModel, before: str | None) -> None:
        """After any change to an entry: its age, its announcement, and whether it is still needed at all."""
        after = held.status
        if after not in ROUTABLE_STATUSES:
            held.resident_since = None
            held.proven = False
        elif held.resident_since is None:
            held.resident_since = self._clock()
        if before != after:
            kind: ChangeKind = "model_seen" if before is None else "model_gone" if after is None else "status_changed"
            self._announce(FleetChange(kind, held.node.name, held.id, before, after))
        self._forget_if_empty(held)

    def _forget_if_empty(self, held: NodeModel) -> None:
        if held.status is None and not held.leases and not held.shadows:
            held.node.models.pop(held.id, None)

    def _announce(self, change: FleetChange) -> None:
        self.version += 1
        for observe in self.observers:
            observe(change)
        self._waiters.unpark_all()

    def _reindex(self, model_ids: Iterable[str]) -> None:
        for model_id in model_ids:
            found = tuple(self._find_replicas(model_id))
            if found == self._replicas.get(model_id, ()):
                continue
            if found:
                self._replicas[model_id] = found
            else:
                del self._replicas[model_id]
            self._waiters.unpark_all()
            for observe in self.replica_observers:
                observe(model_id)

    def _find_replicas(self, model_id: str) -> Iterable[NodeModel]:
        for node in self.nodes.values():
            held = node.models.get(model_id) if node.healthy and not node.draining else None
            if held is not None and held.routable:
                yield held
