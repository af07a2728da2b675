"""`Fleet`: what is known of all nodes and what this gateway does on them. No I/O, no decisions.

Every method except `wait_changed` is synchronous, hence atomic under Trio: no task sees half a change, and there are no
locks. Facts come from the poller (`answered`, `missed`), from requests (`lease`, `succeeded`, `at_fault`, ...) and from
loads and unloads (`loading`, `loaded`, `unloading`, `unchanged`). Deciding by them is `routing` and `loading`.

A poll's answer was true at some time between its beginning and its end; our own loads and unloads are true at once.
So a poll takes a `mark` before it asks, and what we did to a model after the mark outlives the answer (see `answered`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import trio

from gateway.config.settings import NeuronSettings
from gateway.fleet.changes import ChangeKind, FleetChange
from gateway.fleet.lease import GpuUse, Lease, LeaseCounter
from gateway.fleet.node import ROUTABLE_STATUSES, Node, NodeModel, OwnChange
from gateway.fleet.nodes_by_name import NodesByName
from gateway.fleet.reports import ModelReport, NodeReport, PollMark, requests_of_others, without_readings
from gateway.fleet.snapshot import FleetSnapshot, FleetStatistics, fleet_statistics, node_snapshot
from gateway.http.phase_deadlines import PhaseDeadlines

__all__ = ["Fleet"]


class Fleet:
    """All nodes: those configured at the start, and what `add`, `remove` and `move` made of them since.

    Args:
        neurons: The `[[neurons]]` tables; names are unique.
        misses: After this many failures in a row a node is unhealthy; one good poll makes it healthy again.
        clock: Seconds, monotonic; Trio's clock unless a test runs without Trio.

    Attributes:
        nodes: By name, sorted by name: every order derived from it is by name too. Replaced whole when a neuron comes
            or goes, so a loop over it may wait.
        leaving: The removed nodes that still have requests of ours.
        version: Grows with every change that a reader can see, except leases and device readings. For caches.
        observers: Called synchronously with every `FleetChange`, in order. None of the observers may raise.
        replica_observers: Called with a model's id on its nodes whenever its set of replicas has changed.
        return_observers: Called with a model's id on its node whenever a lease has ended.
    """

    def __init__(
        self, neurons: Sequence[NeuronSettings], *, misses: int, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self.leaving: dict[str, Node] = {}
        self.nodes = NodesByName(map(Node, neurons), self.leaving)
        self.observers: list[Callable[[FleetChange], None]] = []
        self.replica_observers: list[Callable[[str], None]] = []
        self.version = 1
        self.neuron_dialects: frozenset[str] = frozenset().union(
            *(node.backend.dialects for node in self.nodes.values())
        )
        """The dialects that at least one neuron speaks, or one of its engines has spoken."""
        self._misses = misses
        self._clock = clock
        self._replicas: dict[str, tuple[NodeModel, ...]] = {}
        self._waiters = trio.lowlevel.ParkingLot()
        self._leases = LeaseCounter(clock, self._waiters, self._announce)
        self.return_observers = self._leases.return_observers

    # Neurons that come, go and move ...................................................................................

    def add(self, settings: NeuronSettings) -> None:
        """A new neuron, of which nothing is known until it is polled; or one that was leaving: it stays as it was."""
        node = self.leaving.pop(settings.name, None) or Node(settings)
        self.nodes = NodesByName((*self.nodes.values(), node), self.leaving)
        self.neuron_dialects |= node.backend.dialects
        self._announce(FleetChange("neuron_added", node.name))
        self._reindex(node.models.keys())

    def remove(self, node: str) -> None:
        """Send it nothing any more. It is among `leaving` until `forget`, since requests may run there."""
        home = self.leaving[node] = self.nodes[node]
        self.nodes = NodesByName((other for other in self.nodes.values() if other is not home), self.leaving)
        home.draining = False  # an operator's drain ends with the neuron
        self._announce(FleetChange("neuron_removed", node))
        self._reindex(home.models.keys())

    def forget(self, node: str) -> None:
        """The last request of ours at a removed neuron has ended."""
        del self.leaving[node]

    def move(self, settings: NeuronSettings, report: NodeReport | None) -> None:
        """From now on the neuron is reached as these settings say. Requests that run at the old address go on there.

        `report` is its first answer at the new address. None means that it has not answered: then it is down.
        """
        home, name = self.nodes[settings.name], settings.name
        models = set(home.models)
        home.move(settings)
        self.neuron_dialects |= home.backend.dialects
        self._announce(FleetChange("neuron_moved", name))
        for model in list(home.models.values()):
            home.forget_if_unused(model)
        if report is not None:
            self.answered(name, report)
        self._reindex(models)

    # Reading ..........................................................................................................

    def replicas(self, model_id: str) -> tuple[NodeModel, ...]:
        """Where a request for the model can go now: routable, on healthy nodes that do not drain; by node name."""
        return self._replicas.get(model_id, ())

    def holders(self, model_id: str) -> tuple[NodeModel, ...]:
        """Every node's entry for the model, in any state and on nodes in any health; by node name."""
        models = (node.models.get(model_id) for node in self.nodes.values())
        return tuple(model for model in models if model is not None and model.status is not None)

    @property
    def leases(self) -> int:
        """How many requests of ours the nodes have now."""
        return self._leases.count

    def any_healthy(self) -> bool:
        """Whether a node is healthy."""
        return any(node.healthy for node in self.nodes.values())

    def any_open(self) -> bool:
        """Whether a node can take requests: it is healthy and not drained."""
        return any(node.healthy and not node.draining for node in self.nodes.values())

    def now(self) -> float:
        """The time by the fleet's clock, in seconds."""
        return self._clock()

    async def wait_changed(self) -> None:
        """Wait for the next change that may make a request possible: a status, a node's health, or an idle model.

        Check, then wait, without a checkpoint in between, in a loop: no change is missed, but a wake-up may be in vain.
        """
        await self._waiters.park()

    def statistics(self) -> FleetStatistics:
        """The totals now."""
        return fleet_statistics(self.nodes.values(), self.leases)

    def snapshot(self) -> FleetSnapshot:
        """Everything now."""
        now = self._clock()
        return FleetSnapshot(self.version, tuple(node_snapshot(node, now) for node in self.nodes.values()))

    def copy_for_planning(self) -> Fleet:
        """An independent copy: changing it affects neither this fleet nor a neuron."""
        other = Fleet((), misses=self._misses, clock=self._clock)
        other.version = self.version
        other._leases.count = self._leases.count
        other.nodes = NodesByName((node.twin() for node in self.nodes.values()), other.leaving)
        other._reindex({model_id for node in self.nodes.values() for model_id in node.models})
        return other

    # Requests of ours .................................................................................................

    def lease(
        self, node: str, model_id: str, phases: PhaseDeadlines | None = None, gpu_use: GpuUse | None = None,
        *, now: float | None = None,
    ) -> Lease:  # fmt: skip
        """A lease on the model at the node, taken by `with` and given back on every way out of it; see `Lease`."""
        return Lease(self._leases, self.nodes[node], model_id, phases, gpu_use, now)

    @contextlib.contextmanager
    def shadowing(self, node: str, model_id: str) -> Iterator[None]:
        """A shadow request: not a lease, but counted so that a poll does not take it for a request of others."""
        home = self.nodes[node]
        model = home.entry(model_id)
        model.shadows += 1
        try:
            yield
        finally:
            model.shadows -= 1
            home.forget_if_unused(model)
            self._waiters.unpark_all()

    def succeeded(self, node: str, model_id: str | None = None, *, answered: bool = False) -> None:
        """The node replied to a request: its misses are forgiven. Only a poll makes an unhealthy node healthy.

        `answered` is whether the reply was a good answer and not an error response: then the model is proven.
        """
        home = self.nodes[node]
        if home.misses and home.healthy:
            home.misses = 0
        if home.failing_models:
            home.failing_models.clear()
        closed = not home.breaker.clean and home.breaker.succeeded()
        if model_id is not None and model_id in home.models:
            model = home.models[model_id]
            closed = (not model.breaker.clean and model.breaker.succeeded()) or closed
            model.busy_until = 0.0
            model.proven = model.proven or (answered and model.routable)
        if closed:
            self._announce(FleetChange("breaker_closed", node, model_id))

    def unreachable(self, node: str, model_id: str, reason: str, url: str | None = None) -> None:
        """No connection could be opened for a request. `url` as in `at_fault`.

        If the model is served at the neuron's own endpoint, the neuron itself is unreachable: a miss. An inference URL
        elsewhere is one engine's, and the neuron may be well: only the model failed there.
        """
        home = self.nodes[node]
        if home.has_moved_from(url, model_id):
            return
        self.at_fault(node, model_id, reason)
        model = home.models.get(model_id)
        if model is None or model.url is None or home.is_at(model.url):
            self.missed(node, reason)

    def at_fault(self, node: str, model_id: str, reason: str, url: str | None = None) -> None:
        """A request failed because of the node or the model on it: the answer broke off, never came, or was a 5xx.

        `url` is where the request was sent: a failure at an address that the model has left counts for nothing. It
        counts for the model's circuit breaker: one broken model does not keep requests away from the others. It also
        counts for the node's if every model that the node serves has failed since it last answered any request.
        """
        home = self.nodes[node]
        if home.has_moved_from(url, model_id):
            return
        self.version += 1
        home.urls_doubtful_since = self.version
        if not home.healthy:
            return
        home.failing_models.add(model_id)
        model, now = home.models.get(model_id), self._clock()
        opened = model is not None and model.breaker.failed(now, reason)
        if all(other.id in home.failing_models for other in home.models.values() if other.routable):
            opened = home.breaker.failed(now, reason) or opened
        if opened:
            self._announce(FleetChange("breaker_opened", node, model_id, detail=reason))

    def busy(self, node: str, model_id: str, retry_after_s: int) -> None:
        """The model answered 503 with this Retry-After: until then other replicas are preferred."""
        model = self.nodes[node].models.get(model_id)
        if model is not None:
            model.busy_until = self._clock() + retry_after_s

    def dropped(self, node: str, model_id: str, url: str | None = None) -> None:
        """The model is not on the node any more: we unloaded it, or the node answered 404 `not loaded` at this URL."""
        if self.nodes[node].has_moved_from(url, model_id):
            return
        self._change(node, model_id, None, None)

    # Polls ............................................................................................................

    def mark(self, node: str) -> PollMark:
        """Take this before a poll's first question, and pass it to `answered`."""
        models = self.nodes[node].models.values()
        return PollMark(self.version, {model.id: ours for model in models if (ours := model.leases + model.shadows)})

    def answered(self, node: str, report: NodeReport, *, since: PollMark | None = None) -> None:
        """A poll succeeded: the node is healthy and holds exactly the models of the report.

        What we did to a model after `since` (loaded it, unloaded it, saw it gone) is newer than the report and stays
        until the next one. Likewise a connection that failed after `since` is not forgiven yet. None means that nothing
        can have happened in between. Polls of one node must not overlap.
        """
        home = self.nodes[node]
        since = since or self.mark(node)
        reports = {model.id: model for model in report.models}
        concerned = sorted(home.models.keys() | reports.keys())
        for model_id in concerned:
            if home.own_changes.get(model_id, 0) <= since.version:
                self._learn_model(home, model_id, reports.get(model_id), since)
        home.own_changes = {key: version for key, version in home.own_changes.items() if version > since.version}
        self._learn_node(home, report)
        if home.urls_doubtful_since is None or home.urls_doubtful_since <= since.version:
            home.urls_doubtful_since = None
            self._mark_healthy(home)
        self._reindex(concerned)

    def is_receiving(self, node: str, since: float) -> bool:
        """Whether the node has sent something for a running request at or after `since` (the fleet's clock, s)."""
        return any(request.received_at >= since for request in self.nodes[node].running)

    def poll_overdue(self, node: str, reason: str) -> None:
        """A poll failed, but the node is sending answers: it is alive and too busy for polls, so it is no miss."""
        home = self.nodes[node]
        home.failure = reason
        home.misses = 0
        if home.ever_answered and not home.healthy:
            self._mark_healthy(home)
            self._reindex(home.models.keys())

    def missed(self, node: str, reason: str | None = None) -> None:
        """A poll failed, or a connection for a request to the neuron's own endpoint could not be opened: one miss."""
        home = self.nodes[node]
        home.misses += 1
        home.failure = reason
        self.version += 1
        home.urls_doubtful_since = self.version
        if home.misses == self._misses:  # `==`: an outage is announced once, also of a node that never answered
            home.healthy = False
            self._announce(FleetChange("neuron_down", node, detail=reason))
            self._reindex(home.models.keys())

    def is_confirmed(self, node: str) -> bool:
        """Whether a poll that began after our last change to a model there has answered.

        Until then readings and models may be of different times: an unloaded model's memory may still show as taken.
        """
        return not self.nodes[node].own_changes

    def _learn_model(self, home: Node, model_id: str, report: ModelReport | None, since: PollMark) -> None:
        model = home.entry(model_id)
        before, known = model.status, model.report
        self._describe(model, report)
        own_requests = max(model.leases + model.shadows, since.leases.get(model_id, 0))
        model.other_requests = requests_of_others(report, own_requests)
        if report != known:
            self.version += 1
        self._settle(model, before)

    def _describe(self, model: NodeModel, report: ModelReport | None) -> None:
        if model.describe(report):
            self.neuron_dialects |= model.route.backend.dialects

    def _learn_node(self, home: Node, report: NodeReport) -> None:
        devices = report.devices if report.devices is not None else without_readings(home.devices)
        if without_readings(devices) != without_readings(home.devices):
            self.version += 1
        home.devices = devices
        now = self._clock()
        for model in home.models.values():
            model.learn_power(now)
        home.max_prompt_tokens = report.max_prompt_tokens
        home.models_left_out = report.models_left_out
        home.failure = None
        if report.uptime_s is not None:
            if home.uptime_s is not None and report.uptime_s < home.uptime_s:
                home.reset_breakers()  # the neuron was restarted
            home.uptime_s = report.uptime_s
        if report.activation is not None and report.activation != home.activation:
            home.activation = report.activation
            self.version += 1
            self._waiters.unpark_all()

    def _mark_healthy(self, home: Node) -> None:
        home.misses = 0
        home.failure = None
        if not home.healthy:
            home.healthy = home.ever_answered = True
            home.reset_breakers()  # it was away: what failed before says nothing about it now
            self._announce(FleetChange("neuron_up", home.name))

    # Loads, unloads and drains of ours ................................................................................

    def loading(self, node: str, model_id: str) -> None:
        """We are about to ask the node to load the model. Ends with `loaded`, `dropped` or `unchanged`."""
        self._change(node, model_id, "loading", self._report(node, model_id))

    def unloading(self, node: str, model_id: str) -> None:
        """We are about to unload it: no request goes there from now on. Ends with `dropped` or `unchanged`."""
        self._change(node, model_id, "unloading", self._report(node, model_id))

    def overdue(self, node: str, model_id: str) -> None:
        """Our load takes far too long: it may still succeed, but requests should not wait for it alone."""
        model = self.nodes[node].entry(model_id)
        model.is_overdue = True
        self.version += 1
        self._waiters.unpark_all()

    def loaded(self, node: str, report: ModelReport) -> None:
        """Our load succeeded; `report` has the inference URL."""
        self._change(node, report.id, None, report)

    def unchanged(self, node: str, model_id: str) -> None:
        """Our load or unload failed: the neuron's last report holds again.

        Except a reported `loading` during our load: that was our load, which is over. A neuron that died with it does
        not report the end.
        """
        model, report = self.nodes[node].models.get(model_id), self._report(node, model_id)
        if model is not None and model.change == "loading" and report is not None and report.status == "loading":
            report = None
        self._change(node, model_id, None, report)

    def drain(self, node: str, *, draining: bool) -> None:
        """Keep new requests off the node, or let them on again. Requests under way are not touched."""
        home = self.nodes[node]
        if home.draining == draining:
            return
        home.draining = draining
        self._announce(FleetChange("draining" if draining else "undrained", node))
        self._reindex(home.models.keys())

    def _report(self, node: str, model_id: str) -> ModelReport | None:
        model = self.nodes[node].models.get(model_id)
        return None if model is None else model.report

    def _change(self, node: str, model_id: str, change: OwnChange | None, report: ModelReport | None) -> None:
        """A change of ours: true at once, and newer than any poll under way."""
        home = self.nodes[node]
        model = home.entry(model_id)
        before = model.status
        model.change, model.is_overdue = change, False
        self._describe(model, report)
        self.version += 1
        home.own_changes[model_id] = self.version
        self._settle(model, before)
        self._reindex((model_id,))

    # After every change ...............................................................................................

    def _settle(self, model: NodeModel, before: str | None) -> None:
        """Update the entry's age, announce a change of its status, and drop it if it is not needed any more."""
        after = model.status
        if after not in ROUTABLE_STATUSES:
            model.resident_since = None
            model.proven = False
            if not model.breaker.clean:
                model.breaker.reset()
        elif model.resident_since is None:
            model.resident_since = self._clock()
            if not model.node.breaker.clean:
                model.node.breaker.reset()  # it is open because every model failed, and this one has not
        if before != after:
            kind: ChangeKind = "model_seen" if before is None else "model_gone" if after is None else "status_changed"
            self._announce(FleetChange(kind, model.node.name, model.id, before, after))
        model.node.forget_if_unused(model)

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
            model = node.models.get(model_id) if node.healthy and not node.draining else None
            if model is not None and model.routable:
                yield model
