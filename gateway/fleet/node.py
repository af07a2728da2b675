"""A configured node and the models on it: what its neuron reports, and what this gateway does there. No I/O.

Only the fleet (`state.py`) writes these; everything else reads them.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import Literal, Self
from urllib.parse import urlsplit

from gateway.config.settings import NeuronSettings
from gateway.fleet.circuit_breaker import CircuitBreaker
from gateway.fleet.engine_access import EngineAccess, backend_of
from gateway.fleet.reports import ActivationReport, DeviceReport, ModelReport
from gateway.fleet.route import Route
from gateway.http.phase_deadlines import PhaseDeadlines

__all__ = ["ROUTABLE_STATUSES", "Node", "NodeModel", "OwnChange"]

ROUTABLE_STATUSES = frozenset({"loaded", "reloading"})  # every other status, known or not, takes no requests

# The model serves, or this state will end: by our doing or the neuron's.
_PASSING_STATUSES = ROUTABLE_STATUSES | {None, "unloaded", "asleep", "loading", "unloading", "recovering"}

OwnChange = Literal["loading", "unloading"]


class NodeModel:
    """One model on one node. Written by the fleet only.

    Exists as long as the neuron reports the model, or this gateway changes it, or a lease on it is out. So a model that
    vanishes and comes back while a request runs keeps one counter.

    Attributes (times are Trio's clock in seconds):
        report: The neuron's last description; None if it does not list the model.
        change: Our load or unload under way.
        device_count: How many devices it is on; 1 if the neuron does not say.
        leases: Our requests there now.
        shadows: Our shadow requests there now. They give way to requests, so no decision counts them.
        other_requests: Requests of other clients of the neuron, as last reported.
        last_used: When a lease last began or ended; None if never.
        resident_since: When this gateway first saw the model loaded, since it was last away.
        busy_until: When the model's last Retry-After ends; 0 for none.
        is_overdue: Our load of it takes far longer than it should.
        breaker: Opens when requests for this model keep failing here, while other models of the node go on.
        proven: It has answered a request since it was loaded.
        share_s: Grows with time divided by the leases of that time: its growth during a lease is the lease's share.
        share_j: The same for the energy of its devices, in joules.
        shared_at: When both were last brought up to date.
        power_w: The power draw of its devices, as last polled; None if the neuron reports none.
        route: How a request reaches it. The URL is empty while it is unknown.
    """

    __slots__ = (
        "breaker",
        "busy_until",
        "change",
        "device_count",
        "id",
        "is_overdue",
        "last_used",
        "leases",
        "node",
        "other_requests",
        "power_w",
        "proven",
        "report",
        "resident_since",
        "route",
        "shadows",
        "share_j",
        "share_s",
        "shared_at",
    )

    def __init__(self, node: Node, model_id: str) -> None:
        self.node = node
        self.id = model_id
        self.report: ModelReport | None = None
        self.change: OwnChange | None = None
        self.device_count = 1
        self.leases = 0
        self.shadows = 0
        self.other_requests = 0
        self.last_used: float | None = None
        self.resident_since: float | None = None
        self.busy_until = 0.0
        self.breaker = CircuitBreaker()
        self.is_overdue = False
        self.proven = False
        self.share_s = self.share_j = self.shared_at = 0.0
        self.power_w: float | None = None
        self.route = Route(node.name, model_id, "", node.access, node.backend)

    def describe(self, report: ModelReport | None) -> bool:
        """Store the neuron's description. Returns whether it changes how the engine is addressed."""
        known, self.report = self.report, report
        self.device_count = 1 if report is None else len(report.devices) or 1
        before = (None, None, None) if known is None else (known.engine, known.serves, known.dialects)
        after = before if report is None else (report.engine, report.serves, report.dialects)
        route, settings = self.route, self.node.settings
        access, backend = route.access, route.backend
        is_readdressed = report is not None and after != before
        if report is not None and is_readdressed:
            access, backend = EngineAccess.of(settings, report), backend_of(settings, report.engine, report.dialects)
        self.route = Route(route.node, self.id, self.url or "", access, backend)
        return is_readdressed

    def share(self, now: float) -> None:
        """Bring the shares up to date. Call it before leases or power change."""
        if self.leases:
            share_s = (now - self.shared_at) / self.leases
            self.share_s += share_s
            if self.power_w:
                self.share_j += share_s * self.power_w
        self.shared_at = now

    def learn_power(self, now: float) -> None:
        """The readings of its node's devices have changed."""
        self.share(now)
        indices = () if self.report is None else self.report.devices
        draws = [device.power_w for device in self.node.devices or () if device.index in indices]
        known = [draw for draw in draws if draw is not None]
        self.power_w = sum(known) if known and len(known) == len(draws) else None

    @property
    def status(self) -> str | None:
        """The reported status, or our change under way; None if the model is not on this node."""
        reported = None if self.report is None else self.report.status
        if self.change == "loading" and reported in ROUTABLE_STATUSES:
            return reported  # a poll saw the load finish before the load call returned
        return self.change or reported

    @property
    def reason(self) -> str | None:
        """Why it is in its status, by its neuron: one line. None if the neuron does not say, or its status is ours."""
        reason = None if self.report is None or self.change is not None else self.report.reason
        return None if reason is None else reason.partition("\n")[0]

    @property
    def url(self) -> str | None:
        """The base URL of its inference API; None while unknown."""
        return None if self.report is None else self.report.url

    @property
    def servable(self) -> bool:
        """False if the neuron reports that it holds the model but cannot serve it."""
        return self.report is None or self.report.servable_ok

    @property
    def is_stuck(self) -> bool:
        """Whether it neither serves nor goes away by itself: `poisoned`, or an unknown status."""
        return self.status not in _PASSING_STATUSES

    @property
    def routable(self) -> bool:
        """Whether it can take requests, if its node is healthy."""
        return self.status in ROUTABLE_STATUSES and self.servable and self.url is not None

    @property
    def troubled(self) -> bool:
        """Whether a Retry-After or an open circuit breaker may keep requests away; routing then checks the time."""
        return self.busy_until > 0.0 or not (self.breaker.closed and self.node.breaker.closed)

    @property
    def breakers_closed(self) -> bool:
        """Whether neither its own circuit breaker nor its node's keeps requests away."""
        return self.breaker.closed and self.node.breaker.closed

    def admits(self, now: float) -> bool:
        """Whether its own circuit breaker and its node's let one more request pass, freely or as a trial."""
        return self.breaker.admits(now) and self.node.breaker.admits(now)

    @property
    def open_breaker(self) -> CircuitBreaker:
        """Of its own circuit breaker and its node's, the one that keeps requests away longer."""
        return max(self.node.breaker, self.breaker, key=lambda breaker: (not breaker.closed, breaker.until))

    @property
    def load(self) -> int:
        """How many requests it has, as far as known: our leases now, plus `other_requests`.

        The neuron's counters include our requests and are up to one poll old. Adding them to our leases would count
        ours twice. Using them alone would send every request of one poll interval to the node that looked idle at its
        beginning. So a poll keeps only the requests of others, and our part is always current.
        """
        return self.leases + self.other_requests

    def __repr__(self) -> str:
        return f"<NodeModel {self.id} on {self.node.name}: {self.status}, {self.leases}+{self.other_requests}>"


class Node:
    """One configured neuron or engine. Written by the fleet only.

    Attributes:
        settings: Its `[[neurons]]` table.
        access: How its engine is addressed; None for a neuron without a token.
        backend: What it supports beyond plain chat completions, unless it reports more of a model's engine.
        devices: None until a `/discovery` was read. That means unknown, not "no devices".
        misses: Failures in a row.
        failure: Why the last poll or connection failed; None since the neuron has answered.
        failing_models: The models whose requests failed here since any request was answered here.
        running: Of the requests that are sent under a lease now: they know when the neuron last sent something.
        models_left_out: How many models it lists beyond the number that the gateway takes from one neuron.
        models: By the neuron's own id.
        max_prompt_tokens: The longest prompt it takes for any model; None if it reports no limit.
        own_changes: The fleet's version at our last change to a model, for changes newer than the last poll.
        urls_doubtful_since: The fleet's version at the last connection failure since the last good poll.
    """

    __slots__ = (
        "access",
        "activation",
        "backend",
        "breaker",
        "devices",
        "draining",
        "endpoint",
        "ever_answered",
        "failing_models",
        "failure",
        "healthy",
        "kind",
        "max_prompt_tokens",
        "misses",
        "models",
        "models_left_out",
        "name",
        "own_changes",
        "running",
        "settings",
        "uptime_s",
        "urls_doubtful_since",
    )

    def __init__(self, settings: NeuronSettings) -> None:
        self.name = settings.name
        self.configure(settings)
        self.healthy = False
        self.ever_answered = False
        self.draining = False
        self.misses = 0
        self.failure: str | None = None
        self.failing_models: set[str] = set()
        self.running: set[PhaseDeadlines] = set()
        self.models_left_out = 0
        self.devices: tuple[DeviceReport, ...] | None = None
        self.models: dict[str, NodeModel] = {}
        self.activation = ActivationReport()
        self.uptime_s: float | None = None
        self.max_prompt_tokens: int | None = None
        self.own_changes: dict[str, int] = {}
        self.urls_doubtful_since: int | None = None
        self.breaker = CircuitBreaker()

    def configure(self, settings: NeuronSettings) -> None:
        """Use this table from now on. It has the same name."""
        self.settings = settings
        self.endpoint = settings.endpoint
        self.kind = settings.kind
        self.access = EngineAccess.of(settings)
        self.backend = backend_of(settings)

    def move(self, settings: NeuronSettings) -> None:
        """Use this table, and forget what was learnt at the old address. Requests that run there keep their leases."""
        self.configure(settings)
        self.healthy = self.ever_answered = False
        self.misses, self.failure, self.uptime_s, self.urls_doubtful_since = 0, None, None, None
        self.devices, self.running = None, set()
        for model in self.models.values():
            model.report, model.resident_since, model.proven, model.busy_until = None, None, False, 0.0
            model.device_count = 1
            model.route = Route(self.name, model.id, "", self.access, self.backend)
        self.reset_breakers()

    def reset_breakers(self) -> None:
        """Forget all failures of requests."""
        self.breaker.reset()
        self.failing_models.clear()
        for model in self.models.values():
            model.breaker.reset()

    def twin(self) -> Self:
        """An independent copy."""
        other = copy(self)
        other.breaker, other.own_changes, other.models = copy(self.breaker), dict(self.own_changes), {}
        other.failing_models, other.running = set(self.failing_models), set()
        for model_id, model in self.models.items():
            other.models[model_id] = copy(model)
            other.models[model_id].node, other.models[model_id].breaker = other, copy(model.breaker)
        return other

    def is_at(self, url: str) -> bool:
        """Whether this URL and the endpoint name the same host and port."""
        try:
            servers = {(parts.hostname, parts.port or parts.scheme) for parts in map(urlsplit, (url, self.endpoint))}
        except ValueError:
            return False
        return len(servers) == 1

    def has_moved_from(self, url: str | None, model_id: str) -> bool:
        """Whether the model is served at another URL than this one by now."""
        model = self.models.get(model_id)
        return url is not None and model is not None and model.url not in {None, url}

    @property
    def urls_doubtful(self) -> bool:
        """Whether a connection failed since the last good poll, so that the poller asks for inference URLs again."""
        return self.urls_doubtful_since is not None

    @property
    def takes_placements(self) -> bool:
        """Whether this gateway decides which models it holds. An engine (`kind = "openai"`) decides by itself."""
        return self.kind == "neuron"

    @property
    def leases(self) -> int:
        """How many requests of ours it has now."""
        return sum(model.leases for model in self.models.values())

    def entry(self, model_id: str) -> NodeModel:
        """The entry of the model, made if there is none."""
        model = self.models.get(model_id)
        if model is None:
            model = self.models[model_id] = NodeModel(self, model_id)
        return model

    def forget_if_unused(self, model: NodeModel) -> None:
        """Drop the entry unless the neuron reports the model, we change it, or a request of ours is there."""
        if model.status is None and not model.leases and not model.shadows:
            self.models.pop(model.id, None)

    def free_mb(self, devices: Collection[int]) -> dict[int, int]:
        """Free memory in MB by device index, as last polled; devices without a reading are left out."""
        return {
            device.index: device.vram_free_mb
            for device in self.devices or ()
            if device.index in devices and device.vram_free_mb is not None
        }

    def is_loading(self, model_id: str) -> bool:
        """Whether it loads the model or is about to, no matter at whose request, and the load is not overdue."""
        model = self.models.get(model_id)
        if model is not None and model.is_overdue:
            return False
        status = None if model is None else model.status
        return status == "loading" or (status in (None, "unloaded") and model_id in self.activation.awaited)
