"""A configured neuron and the models on it: what it reports, and what we hold there. Written by the fleet alone."""

from __future__ import annotations

from typing import Literal

from gateway.config.engine_traits import ENGINES_WITH_TOKENIZER, ENGINES_WITH_USAGE, Backend
from gateway.config.settings import NeuronSettings
from gateway.fleet.circuit_breaker import Breaker
from gateway.fleet.engine_access import EngineAccess
from gateway.fleet.reports import Activation, Device, ModelReport

ROUTABLE_STATUSES = frozenset({"loaded", "reloading"})  # contract section 2; whatever else a neuron says is not

# Either it serves, or that will be over: by our doing or by the neuron's.
_PASSING_STATUSES = ROUTABLE_STATUSES | {None, "unloaded", "loading", "unloading", "recovering"}

Change = Literal["loading", "unloading"]


class NodeModel:
    """One model on one node: the neuron's facts about it and our own. Owned and written by the fleet; read by all.

    Lives as long as either the neuron reports it, or we are changing it, or somebody holds a lease: so a model that
    vanishes and comes back within a request's life keeps one counter.

    Times are Trio's clock in seconds. `resident_since` is when we first knew it loaded in this stay; `last_used` the
    last beginning or end of a lease, None if we never used it; `busy_until` is the end of the last Retry-After that it
    answered with, 0 if none is remembered. `is_overdue` says of a load of ours that it takes far longer than it should;
    `proven`, that the model has answered a request well in this stay.
    """

    __slots__ = (
        "busy_until",
        "change",
        "id",
        "is_overdue",
        "last_used",
        "leases",
        "node",
        "others",
        "proven",
        "report",
        "resident_since",
        "shadows",
    )

    def __init__(self, node: Node, model_id: str) -> None:
        self.node = node
        self.id = model_id
        self.report: ModelReport | None = None
        self.change: Change | None = None
        self.leases = 0
        self.shadows = 0  # of ours too, but nobody's: they give way, so no decision is made upon them
        self.others = 0
        self.last_used: float | None = None
        self.resident_since: float | None = None
        self.busy_until = 0.0
        self.is_overdue = False
        self.proven = False

    @property
    def status(self) -> str | None:
        """What it is as far as we know, our own change under way included; None is "not on this node"."""
        reported = None if self.report is None else self.report.status
        if self.change == "loading" and reported in ROUTABLE_STATUSES:
            return reported  # the neuron is ahead of its own answer to our load call
        return self.change or reported

    @property
    def url(self) -> str | None:
        """The base of its inference API, None while unknown."""
        return None if self.report is None else self.report.url

    @property
    def servable(self) -> bool:
        """False if the neuron says that it holds the model but cannot serve it."""
        return self.report is None or self.report.servable_ok

    @property
    def is_stuck(self) -> bool:
        """Whether it is there and will neither serve nor go of itself: `poisoned`, or a status we do not know."""
        return self.status not in _PASSING_STATUSES

    @property
    def routable(self) -> bool:
        """Whether a request may be sent to it, its node's health apart."""
        return self.status in ROUTABLE_STATUSES and self.servable and self.url is not None

    @property
    def troubled(self) -> bool:
        """Whether routing must look at the clock before it sends a request there."""
        return self.busy_until > 0.0 or not self.node.breaker.closed

    @property
    def load(self) -> int:
        """How many requests it has, as far as we can know: ours now, plus others' when last reported.

        A neuron's counters are up to one poll old and contain our own requests. Adding them to our leases would count
        ours twice; using them alone would send a whole interval's requests to whoever looked idle (the herd of
        lessons.md). So a poll keeps only what is not ours, `others`, and our part is always live.
        """
        return self.leases + self.others

    def __repr__(self) -> str:
        return f"<NodeModel {self.id} on {self.node.name}: {self.status}, {self.leases}+{self.others}>"


class Node:
    """One configured neuron. Owned and written by the fleet; read by all.

    `devices` is None until a `/discovery` was read: unknown, which is not "none". `misses` counts failures in a row.
    `urls_doubtful` says that a connection failed since the last poll, so that cached inference URLs are asked anew.
    `max_prompt_tokens` is the longest prompt it takes for any model, None if it does not say.
    `access` is None for a neuron; a server of another kind wants to be spoken to in its own way. `backend` is what
    either takes beyond plain chat completions.
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
        "healthy",
        "kind",
        "max_prompt_tokens",
        "misses",
        "models",
        "name",
        "own_changes",
        "uptime_s",
        "urls_doubtful_since",
    )

    def __init__(self, settings: NeuronSettings) -> None:
        self.name = settings.name
        self.endpoint = settings.endpoint
        self.kind = settings.kind
        self.access = EngineAccess.of(settings)
        self.backend = Backend(
            dialects=frozenset(settings.dialects),
            reasoning_content=settings.reasoning_content,
            system_anywhere=settings.system_anywhere,
            thinking_switch=settings.thinking,
            ask_usage=settings.engine in ENGINES_WITH_USAGE if settings.ask_usage is None else settings.ask_usage,
            tokenizer=settings.engine in ENGINES_WITH_TOKENIZER,
        )
        self.healthy = False
        self.ever_answered = False
        self.draining = False
        self.misses = 0
        self.devices: tuple[Device, ...] | None = None
        self.models: dict[str, NodeModel] = {}
        self.activation = Activation()
        self.uptime_s: float | None = None
        self.max_prompt_tokens: int | None = None
        self.own_changes: dict[str, int] = {}
        self.urls_doubtful_since: int | None = None
        self.breaker = Breaker()

    @property
    def urls_doubtful(self) -> bool:
        """Whether a connection failed since the last good poll."""
        return self.urls_doubtful_since is not None

    @property
    def takes_placements(self) -> bool:
        """Whether it is for us to say which models it holds. An engine (`kind = "openai"`) sees to that itself."""
        return self.access is None

    @property
    def leases(self) -> int:
        """How many requests of ours it has right now."""
        return sum(held.leases for held in self.models.values())

    def is_loading(self, model_id: str) -> bool:
        """Whether it is loading the model or about to, at our word, another's, or its own; and is worth waiting for."""
        held = self.models.get(model_id)
        if held is not None and held.is_overdue:
            return False
        status = None if held is None else held.status
        return status == "loading" or (status in (None, "unloaded") and model_id in self.activation.awaited)
