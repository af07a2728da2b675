"""Cold loads and evictions: one job at a time per neuron, in a task of its own that outlives whoever asked.

`routing.choose` says that a model is worth loading and where; here it is loaded, once, whoever and however many ask.
A waiter that leaves changes nothing: the neuron cannot be told to stop, so the load runs to its end and serves the
next. Loads are jobs of the gateway's nursery, never of a request's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NoReturn, Protocol

import structlog
import trio

from catalogue.models import Catalogue, ModelProfile
from gateway import eviction
from gateway.errors import ColdLoadFailed, NoRoom, ServiceUnavailable
from gateway.fleet import Fleet, FleetChange, Node, NodeModel
from gateway.metrics import Metrics
from gateway.neuron import ControlApi, Health, NeuronError
from gateway.poller import model_report
from gateway.routing import Candidate, ColdLoad, Decision, Fit, WaitForLoad, own_name
from gateway.settings import Settings

__all__ = ["Lifecycle", "LoadView", "Loader"]

RECHECK_S = 1.0  # how long to wait for news before looking again: VRAM changes without anybody telling us
SETTLE_S = 0.05  # after news: a hundred waiters that wake together look once, not at every lease that comes back
IDLE_LOOK_INTERVAL_S = 1.0
UNLOAD_DEADLINE_S = 60.0
QUIET_DEADLINE_S = 10.0  # for a victim's last request, already gone from here, to leave the neuron too
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0
NO_ROOM_RETRY_S = 30  # contract section 13
DEFAULT_ESTIMATE_S = 30  # Retry-After for a load that nobody has timed yet

log = structlog.get_logger("cortex.lifecycle")


class Loader(ControlApi, Protocol):
    """What lifecycle needs of a neuron beyond what the poller asks."""

    async def load(
        self,
        model_id: str,
        harness: str,
        *,
        quant: str | None = None,
        tensor_parallel: int | None = None,
        devices: Sequence[int] | None = None,
    ) -> None:
        """See NeuronClient."""
        ...

    async def unload(self, model_id: str) -> None:
        """See NeuronClient."""
        ...


class CatalogueSource(Protocol):
    """Whoever holds the catalogue in force."""

    @property
    def current(self) -> Catalogue:
        """The snapshot now."""
        ...


@dataclass(frozen=True, slots=True)
class LoadView:
    """A load under way, for status: seconds so far, and how long earlier ones took (None if there were none)."""

    node: str
    model: str
    elapsed_s: float
    estimate_s: float | None
    waiters: int


class _Load:
    """One load of one model on one neuron, from the decision to its end."""

    __slots__ = ("began", "done", "model", "node", "waiters")

    def __init__(self, node: str, model: str) -> None:
        self.node = node
        self.model = model
        self.began = trio.current_time()
        self.done = trio.Event()
        self.waiters = 0


class _Backoff:
    """A pair of neuron and model that failed: how often in a row, why, and until when it is left alone."""

    __slots__ = ("failures", "reason", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.reason = ""
        self.until = 0.0


class Lifecycle:
    """Makes models become loaded, and unloads them.

    Args:
        fleet: Read for deciding, told of every step.
        catalogue: For profiles and residency classes.
        neurons: One control API per node, by name. Not closed here.
        settings: `[eviction]` and `[deadlines]`.
        metrics: Counts evictions and cold starts.
        poke: Asks for a poll of a node.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        catalogue: CatalogueSource,
        neurons: Mapping[str, Loader],
        settings: Settings,
        metrics: Metrics,
        poke: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._neurons = neurons
        self._settings = settings
        self._metrics = metrics
        self._poke = poke
        self._nursery: trio.Nursery | None = None
        self._busy: set[str] = set()  # nodes with a job: two models that want one room take turns
        self._loads: dict[tuple[str, str], _Load] = {}
        self._backoffs: dict[tuple[str, str], _Backoff] = {}
        self._took_s: dict[tuple[str, str], deque[float]] = {}
        self._cycles: Counter[str] = Counter()
        fleet.observers.append(self._release_waiters_of_a_dead_node)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the jobs and look for idle models, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._unload_the_idle_for_ever()

    def loads(self) -> list[LoadView]:
        """What is being loaded now."""
        now = trio.current_time()
        return [
            LoadView(load.node, load.model, now - load.began, self.estimate_s(load.node, load.model), load.waiters)
            for load in self._loads.values()
        ]

    def estimate_s(self, node: str, model: str) -> float | None:
        """How long loading this model on this node takes, from the last times; None if it never was."""
        took = self._took_s.get((node, model))
        return sum(took) / len(took) if took else None

    def retry_after_s(self, model: str) -> int:
        """When to ask again for a model that is being loaded, in whole seconds."""
        now = trio.current_time()
        left = [
            (self.estimate_s(load.node, model) or DEFAULT_ESTIMATE_S) - (now - load.began)
            for load in self._loads.values()
            if load.model == model
        ]
        return max(1, ceil(min(left, default=DEFAULT_ESTIMATE_S)))

    # Waiting for a model ..............................................................................................

    async def wait_until_routable(self, decision: Decision) -> None:
        """Wait for the load that `decision` speaks of, starting it if nobody has. Then it is worth choosing again.

        Raises:
            ColdLoadFailed: Every feasible neuron has tried and failed; each says when it may be tried again.
            NoRoom: Only models that this one may not displace hold the room.
        """
        load = self._join(decision) if isinstance(decision, ColdLoad) else self._under_way(decision)
        if load is None:
            await self._wait_for_news()
            return
        load.waiters += 1
        try:
            await load.done.wait()
        finally:
            load.waiters -= 1

    def _under_way(self, decision: Decision) -> _Load | None:
        if not isinstance(decision, WaitForLoad):
            return None
        found = (self._loads.get((node, decision.model_id)) for node in decision.nodes)
        return next((load for load in found if load is not None and not load.done.is_set()), None)

    async def _wait_for_news(self) -> None:
        with trio.move_on_after(RECHECK_S):
            await self._fleet.wait_changed()
        await trio.sleep(SETTLE_S)

    def _release_waiters_of_a_dead_node(self, change: FleetChange) -> None:
        """They look for another neuron; the job notices by itself when its call breaks."""
        if change.kind == "neuron_down":
            for load in self._loads.values():
                if load.node == change.node:
                    load.done.set()

    # Deciding, in one synchronous step ................................................................................

    def _join(self, wanted: ColdLoad) -> _Load | None:
        """The load to wait for, started now if need be; None to wait for room or for a busy neuron first."""
        profile = wanted.profile
        under_way = next((load for load in self._loads.values() if load.model == profile.id), None)
        if under_way is not None and not under_way.done.is_set():
            return under_way
        usable = [candidate for candidate in wanted.candidates if not self._is_backing_off(candidate.node, profile.id)]
        if not usable:
            raise self._all_failed(wanted)
        ready = [candidate for candidate in usable if candidate.fit is not Fit.FULL]
        if not ready:
            self._refuse_unless_room_may_come(profile, usable)
            return None
        best = min(ready, key=lambda candidate: self._preference(profile, candidate))
        equals = [candidate for candidate in ready if candidate.fit == best.fit and candidate.node not in self._busy]
        if not equals:
            return None
        return self._start(profile, min(equals, key=lambda candidate: self._preference(profile, candidate)))

    def _preference(self, profile: ModelProfile, candidate: Candidate) -> tuple[int, bool, int, str]:
        """As routing has it, but among evictions those that spare the young (thrash) come first."""
        node = self._fleet.nodes[candidate.node]
        thrashes = candidate.fit is Fit.AFTER_EVICTION and not self._spares_the_young(profile, node, candidate)
        return candidate.fit, thrashes, -(candidate.free_mb or 0), candidate.node

    def _spares_the_young(self, profile: ModelProfile, node: Node, candidate: Candidate) -> bool:
        free_mb = _free_mb(node, candidate.devices)
        catalogue = self._catalogue.current
        return eviction.plan(profile, node, free_mb, catalogue, resident_before=self._old_enough()) is not None

    def _old_enough(self) -> float:
        return trio.current_time() - self._settings.eviction.min_residency_seconds

    def _refuse_unless_room_may_come(self, profile: ModelProfile, candidates: list[Candidate]) -> None:
        catalogue = self._catalogue.current
        nodes = [self._fleet.nodes[candidate.node] for candidate in candidates]
        free = [_free_mb(node, candidate.devices) for node, candidate in zip(nodes, candidates, strict=True)]
        if any(eviction.room_may_come(profile, node, mb, catalogue) for node, mb in zip(nodes, free, strict=True)):
            for node in nodes:
                self._poke(node.name)
            return
        holders = ", ".join(
            f"{', '.join(eviction.holders_of_room(profile, node, catalogue)) or 'others'} on {node.name}"
            for node in nodes
        )
        raise NoRoom(
            f"no room for model '{profile.id}' ({profile.vram_mb} MB): the room is held by {holders}, which it may not"
            " displace",
            retry_after_s=NO_ROOM_RETRY_S,
        )

    def _start(self, profile: ModelProfile, candidate: Candidate) -> _Load:
        if self._nursery is None:
            raise ServiceUnavailable("this gateway cannot load models yet", retry_after_s=1)
        load = self._loads[candidate.node, profile.id] = _Load(candidate.node, profile.id)
        self._busy.add(candidate.node)
        self._fleet.loading(candidate.node, profile.id)
        self._metrics.cold_starts(profile.id, candidate.node).inc()
        self._nursery.start_soon(self._run_load, load, profile, candidate)
        return load

    # A load, step by step .............................................................................................

    async def _run_load(self, load: _Load, profile: ModelProfile, candidate: Candidate) -> None:
        """The job. Whatever happens, the fleet is told how it ended, the node is free again and the waiters wake."""
        log.info("load_started", node=load.node, model=load.model, devices=candidate.devices)
        reason: str | None = "the gateway is stopping"
        try:
            with trio.move_on_after(2 * self._settings.deadlines.load_seconds) as scope:
                reason = await self._try_load(load, profile, candidate)
            if scope.cancelled_caught:
                reason = f"no answer to the load call within {2 * self._settings.deadlines.load_seconds:g} s"
        finally:
            self._finish(load, reason)

    async def _try_load(self, load: _Load, profile: ModelProfile, candidate: Candidate) -> str | None:
        """Why it failed, or None."""
        neuron = self._neurons[load.node]
        try:
            if (reason := await self._make_room(profile, candidate)) is not None:
                return reason
            await neuron.load(
                own_name(profile),
                profile.harness,
                quant=profile.quant,
                tensor_parallel=profile.min_devices if profile.min_devices > 1 else None,
                devices=candidate.devices,
            )
            await self._introduce(load, profile, neuron)
        except NeuronError as error:
            return str(error)
        return None

    async def _introduce(self, load: _Load, profile: ModelProfile, neuron: Loader) -> None:
        """Find out what the neuron calls the model now, and where it serves it: then it is routable."""
        names = {profile.id, own_name(profile)}
        for model in await neuron.models():
            if model.id in names:
                report = model_report(model, None, await neuron.endpoint(model.id))
                if report.id != profile.id:
                    self._fleet.dropped(load.node, profile.id)
                self._fleet.loaded(load.node, report)
                return
        raise NeuronError(f"it said that '{profile.id}' is loaded, but does not list it")

    def _finish(self, load: _Load, reason: str | None) -> None:
        pair = (load.node, load.model)
        took_s = trio.current_time() - load.began
        if reason is None:
            self._took_s.setdefault(pair, deque(maxlen=5)).append(took_s)
            self._backoffs.pop(pair, None)
            log.info("load_finished", node=load.node, model=load.model, took_s=round(took_s, 3))
        else:
            self._fleet.unchanged(load.node, load.model)
            self._back_off(pair, reason)
            log.warning("load_failed", node=load.node, model=load.model, took_s=round(took_s, 3), reason=reason)
        if self._loads.get(pair) is load:
            del self._loads[pair]
        self._busy.discard(load.node)
        self._poke(load.node)
        load.done.set()

    # Failing pairs ....................................................................................................

    def _back_off(self, pair: tuple[str, str], reason: str) -> None:
        backoff = self._backoffs.setdefault(pair, _Backoff())
        backoff.failures += 1
        backoff.reason = reason
        wait_s = min(FIRST_BACKOFF_S * 2 ** (backoff.failures - 1), LONGEST_BACKOFF_S)
        backoff.until = trio.current_time() + wait_s

    def _is_backing_off(self, node: str, model: str) -> bool:
        backoff = self._backoffs.get((node, model))
        return backoff is not None and backoff.until > trio.current_time()

    def _all_failed(self, wanted: ColdLoad) -> ColdLoadFailed:
        model = wanted.profile.id
        backoffs = [(candidate.node, self._backoffs[candidate.node, model]) for candidate in wanted.candidates]
        now = trio.current_time()
        told = "; ".join(
            f"{node}: {backoff.reason} (failed {backoff.failures} times, tried again in {ceil(backoff.until - now)} s)"
            for node, backoff in backoffs
        )
        soonest_s = min(backoff.until for _, backoff in backoffs) - now
        return ColdLoadFailed(f"model '{model}' could not be loaded: {told}", retry_after_s=max(1, ceil(soonest_s)))

    # Making room ......................................................................................................

    async def _make_room(self, profile: ModelProfile, candidate: Candidate) -> str | None:
        """Unload who must go. Readings are asked for now: a poll may be ten seconds and one load old."""
        node = self._fleet.nodes[candidate.node]
        health = await self._neurons[candidate.node].health()
        free_mb = _free_now_mb(health, candidate.devices)
        if len(free_mb) < len(candidate.devices):
            return None  # unknown is not "none": the neuron will say if it does not fit
        victims = self._plan(profile, node, free_mb)
        if victims is None:
            return f"no room: {profile.vram_mb} MB needed, {sum(free_mb.values())} MB free, and nothing may be evicted"
        for held in victims:
            self._fleet.unloading(node.name, held.id)
        unloaded = 0
        try:
            await self._until_quiet(node, {held.id for held in victims})
            for held in victims:
                await self._unload(node.name, held.id)
                unloaded += 1
        finally:
            for held in victims[unloaded:]:
                self._fleet.unchanged(node.name, held.id)
        return None

    def _plan(self, profile: ModelProfile, node: Node, free_mb: Mapping[int, int]) -> tuple[NodeModel, ...] | None:
        """Sparing the young if that is enough; nothing else can serve here, so they too may go."""
        catalogue = self._catalogue.current
        sparing = eviction.plan(profile, node, free_mb, catalogue, resident_before=self._old_enough())
        return sparing if sparing is not None else eviction.plan(profile, node, free_mb, catalogue)

    async def _until_quiet(self, node: Node, victims: set[str]) -> None:
        """Nothing of ours is in them, and nothing new goes there; the neuron may still be ending what was cancelled."""
        with trio.move_on_after(QUIET_DEADLINE_S) as scope:
            # ASYNC110: it is another machine that is waited for, and it sends no events
            while any(counter.id in victims and counter.in_flight for counter in await self._counters(node)):  # noqa: ASYNC110
                await trio.sleep(SETTLE_S)
        if scope.cancelled_caught:
            raise NeuronError(f"{', '.join(sorted(victims))} still busy after {QUIET_DEADLINE_S:g} s, not evicted")

    async def _counters(self, node: Node) -> Sequence[_Counter]:
        health = await self._neurons[node.name].health()
        return health.models or ()

    async def _unload(self, node: str, model: str) -> None:
        with trio.move_on_after(UNLOAD_DEADLINE_S) as scope:
            await self._neurons[node].unload(model)
        if scope.cancelled_caught:
            raise NeuronError(f"no answer to the unload of {model} within {UNLOAD_DEADLINE_S:g} s")
        self._fleet.dropped(node, model)
        self._metrics.evictions(model, node).inc()
        self._count_cycle(node)
        log.info("evicted", node=node, model=model)

    def _count_cycle(self, node: str) -> None:
        self._cycles[node] += 1
        every = self._settings.eviction.defrag_after_cycles
        if every and self._cycles[node] % every == 0:
            log.warning(
                "defrag_advised", node=node, cycles=self._cycles[node], advice="restart the neuron when it is idle"
            )

    # At an operator's word ............................................................................................

    def unload(self, node: str, model: str) -> None:
        """Unload a model from a node, in a job of our own. Raises ServiceUnavailable if it cannot begin now."""
        held = self._fleet.nodes[node].models.get(model)
        if held is None or held.status != "loaded" or held.leases or node in self._busy or self._nursery is None:
            raise ServiceUnavailable(f"'{model}' on {node} is not loaded, in use, or the node is busy", retry_after_s=5)
        self._begin_unload(held)

    def load(self, profile: ModelProfile, candidate: Candidate) -> None:
        """Load a model on a node, in a job of our own. Raises ServiceUnavailable if it cannot begin now."""
        if candidate.node in self._busy:
            raise ServiceUnavailable(f"{candidate.node} is busy with another load", retry_after_s=5)
        self._start(profile, candidate)

    # Idle models ......................................................................................................

    async def _unload_the_idle_for_ever(self) -> NoReturn:
        while True:
            await trio.sleep(IDLE_LOOK_INTERVAL_S)
            now = trio.current_time()
            for node in self._fleet.nodes.values():
                if node.healthy and node.name not in self._busy:
                    for held in eviction.expired(node, now, self._ttl_s)[:1]:
                        self._begin_unload(held)

    def _ttl_s(self, model: str) -> float:
        profile = self._catalogue.current.models.get(model)
        if profile is not None and profile.idle_ttl_seconds is not None:
            return profile.idle_ttl_seconds
        if profile is not None and profile.pinned_on:
            return 0.0  # who pins a model wants it there; a TTL of its own says otherwise
        return self._settings.eviction.idle_ttl_seconds

    def _begin_unload(self, held: NodeModel) -> None:
        if self._nursery is None:
            return
        self._busy.add(held.node.name)
        self._fleet.unloading(held.node.name, held.id)
        self._nursery.start_soon(self._run_unload, held.node.name, held.id)

    async def _run_unload(self, node: str, model: str) -> None:
        done = False
        try:
            await self._until_quiet(self._fleet.nodes[node], {model})
            await self._unload(node, model)
            done = True
        except NeuronError as error:
            log.warning("unload_failed", node=node, model=model, reason=str(error))
        finally:
            if not done:
                self._fleet.unchanged(node, model)
            self._busy.discard(node)
            self._poke(node)


class _Counter(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def in_flight(self) -> float | None: ...


def _free_mb(node: Node, devices: Sequence[int]) -> dict[int, int]:
    """As last polled; a device whose reading is unknown is left out."""
    return {
        device.index: device.vram_free_mb
        for device in node.devices or ()
        if device.index in devices and device.vram_free_mb is not None
    }


def _free_now_mb(health: Health, devices: Sequence[int]) -> dict[int, int]:
    readings = {int(reading.index): reading.vram_free_mb for reading in health.devices or ()}
    return {index: int(free) for index in devices if (free := readings.get(index)) is not None}
