"""Cold loads and evictions: one job at a time per neuron, in a task of its own that outlives whoever asked.

`routing.choose` says that a model is worth loading and where; here it is loaded, once, whoever and however many ask.
A waiter that leaves changes nothing: the neuron cannot be told to stop, so the load runs to its end and serves the
next. Loads are jobs of the gateway's nursery, never of a request's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NoReturn, Protocol

import structlog
import trio

from catalogue.models import ModelProfile
from gateway import eviction
from gateway.catalogue_source import CatalogueSource
from gateway.control_api import Health, Loader, NeuronError, NeuronRefused
from gateway.errors import ColdLoadFailed, NoRoom, ServiceUnavailable
from gateway.fleet import Fleet, FleetChange
from gateway.metrics import Metrics
from gateway.node import ROUTABLE_STATUSES, Node, NodeModel
from gateway.poller import model_report
from gateway.routing import Candidate, ColdLoad, Decision, Fit, WaitForLoad, is_guarded, own_name
from gateway.settings import Settings

__all__ = ["FailingView", "Lifecycle", "LoadStory", "LoadView"]

RECHECK_S = 1.0  # how long to wait for news before looking again: VRAM changes without anybody telling us
SETTLE_S = 0.05  # after news: a hundred waiters that wake together look once, not at every lease that comes back
IDLE_LOOK_INTERVAL_S = 1.0
UNLOAD_DEADLINE_S = 60.0
QUIET_DEADLINE_S = 10.0  # for a victim's last request, already gone from here, to leave the neuron too
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0
CONTROL_DEADLINE_S = 10.0  # for the short questions around a load: readings, what it calls the model, and where
ROOM_DEADLINE_S = 5.0  # for the memory of evicted models to be free
# A load is overdue after so many times the longest of the last ones, but not before this: the first one after a reboot
# reads from the disk what later ones find in memory. Without earlier ones, after half of `deadlines.load_seconds`.
OVERDUE_FACTOR, OVERDUE_AT_LEAST_S = 4, 120.0
PATIENCE_S = 30.0  # how old the job of a better place may be before we take the next best; a job that hangs is older
NO_ROOM_RETRY_S = 30  # contract section 13
DEFAULT_ESTIMATE_S = 30  # Retry-After for a load that nobody has timed yet
STORIES = 256  # of the last loads, for `cortex explain`; a fleet of ten neurons seldom has that many in a day

LoadOutcome = Literal["loaded", "failed", "postponed"]

log = structlog.get_logger("cortex.lifecycle")


@dataclass(frozen=True, slots=True)
class LoadView:
    """A load under way, for status: seconds so far, and how long earlier ones took (None if there were none).

    `overdue`: it takes so long that those who want the model look for it elsewhere, too.
    """

    node: str
    model: str
    elapsed_s: float
    estimate_s: float | None
    waiters: int
    overdue: bool


@dataclass(slots=True)
class LoadStory:
    """What became of a load, for whoever asks later. Times are Trio's clock.

    `outcome` is None while it is under way, then `loaded`, `failed` or `postponed` (what was free when it was decided
    upon was so no more); `reason` says why, where it did not load. `evicted` are the models that made room for it.
    """

    node: str
    model: str
    began_at: float
    ended_at: float | None = None
    outcome: LoadOutcome | None = None
    reason: str | None = None
    evicted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FailingView:
    """A pair of neuron and model whose last load failed, for status.

    How often in a row, why, and when it is tried again at the earliest, in seconds from now.
    """

    node: str
    model: str
    failures: int
    reason: str
    retry_in_s: float


class _Load:
    """One load of one model on one neuron, from the decision to its end.

    `done` wakes the waiters, `over` says that the job has ended: the first without the second when the node is down, or
    the load `overdue`.
    `scope` is around the job's calls; cancelling it makes the load fail with `cancelled_for`. `story` outlives it.
    """

    __slots__ = ("began", "cancelled_for", "done", "model", "node", "over", "overdue", "scope", "story", "waiters")

    def __init__(self, node: str, model: str) -> None:
        self.node = node
        self.model = model
        self.began = trio.current_time()
        self.story = LoadStory(node, model, self.began)
        self.done = trio.Event()
        self.over = False
        self.overdue = False
        self.scope = trio.CancelScope()
        self.cancelled_for: str | None = None
        self.waiters = 0


class _Postponed(Exception):
    """The room that a load was decided upon is not there: no failure, but a reason to decide again."""


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
        self._busy: dict[str, float] = {}  # nodes with a job, since when: two models that want one room take turns
        self._loads: dict[tuple[str, str], _Load] = {}
        self._backoffs: dict[tuple[str, str], _Backoff] = {}
        self._took_s: dict[tuple[str, str], deque[float]] = {}
        self._cycles: Counter[str] = Counter()
        self._stories: deque[LoadStory] = deque(maxlen=STORIES)
        fleet.observers.append(self._look_after_loads)

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
            LoadView(
                load.node,
                load.model,
                now - load.began,
                self.estimate_s(load.node, load.model),
                load.waiters,
                load.overdue,
            )
            for load in self._loads.values()
        ]

    def failing(self) -> list[FailingView]:
        """What could not be loaded, the last time it was tried."""
        now = trio.current_time()
        return [
            FailingView(node, model, backoff.failures, backoff.reason, max(backoff.until - now, 0.0))
            for (node, model), backoff in sorted(self._backoffs.items())
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
        return _whole_s(min(left, default=DEFAULT_ESTIMATE_S))

    def earlier_loads(self, model: str) -> str:
        """How long loads of the model took before, as the rest of a sentence; empty if nobody knows."""
        known = {node: self.estimate_s(node, model) for node, name in self._took_s if name == model}
        told = ", ".join(f"{took_s:.0f} s on {node}" for node, took_s in sorted(known.items()) if took_s is not None)
        return f"; earlier loads took {told}" if told else ""

    def loads_between(self, model: str, since: float, until: float) -> list[LoadStory]:
        """The loads of the model that were under way in between, by Trio's clock; the oldest first."""
        stories = (story for story in self._stories if story.model == model and story.began_at <= until)
        return [story for story in stories if story.ended_at is None or story.ended_at >= since]

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
            self._leave(load)

    def _leave(self, load: _Load) -> None:
        """The last one of a load that is over frees the node: nobody takes the model from under those who waited.

        Whoever goes on from here takes its lease before the next checkpoint, hence before anybody can decide to evict.
        """
        load.waiters -= 1
        if load.over and not load.waiters:
            self._busy.pop(load.node, None)

    def _under_way(self, decision: Decision) -> _Load | None:
        if not isinstance(decision, WaitForLoad):
            return None
        found = (self._loads.get((node, decision.model_id)) for node in decision.nodes)
        return next((load for load in found if load is not None and not load.done.is_set()), None)

    async def _wait_for_news(self) -> None:
        with trio.move_on_after(RECHECK_S):
            await self._fleet.wait_changed()
        await trio.sleep(SETTLE_S)

    def _look_after_loads(self, change: FleetChange) -> None:
        """When a node goes down, or comes back.

        Down: the waiters look for another neuron, while the job notices by itself when its call breaks. It may not:
        a host that lost its power says nothing. So when the node is back and has been up for less time than our load
        has taken, that load is forgotten there, and its job would wait for nothing.
        """
        for load in [load for load in self._loads.values() if load.node == change.node]:
            if change.kind == "neuron_down":
                load.done.set()
            elif change.kind == "neuron_up" and self._was_restarted_since(load):
                load.cancelled_for = "the neuron was restarted"
                load.scope.cancel()

    def _was_restarted_since(self, load: _Load) -> bool:
        uptime_s = self._fleet.nodes[load.node].uptime_s
        # Neurons count whole seconds, and from when they felt like it.
        return uptime_s is not None and uptime_s + 2 < trio.current_time() - load.began

    # Deciding, in one synchronous step ................................................................................

    def _join(self, wanted: ColdLoad) -> _Load | None:
        """The load to wait for, started now if need be; None to wait for room or for a busy neuron first."""
        profile = wanted.profile
        if (under_way := self._under_way_at(wanted)) is not None:
            return under_way
        usable = [candidate for candidate in wanted.candidates if not self._is_backing_off(candidate.node, profile.id)]
        if not usable:
            raise self._all_failed(profile.id, wanted.candidates)
        ready = [candidate for candidate in usable if candidate.fit is not Fit.FULL]
        if not ready:
            self._refuse_unless_room_may_come(profile, usable, set(wanted.candidates) - set(usable))
            return None
        ranked = sorted((self._preference(profile, candidate), candidate) for candidate in ready)
        best = ranked[0][1]
        idle = [(rank, candidate) for rank, candidate in ranked if candidate.node not in self._busy]
        if not idle:
            return None
        rank, candidate = idle[0]
        if rank[:2] > ranked[0][0][:2] and self._is_worth_waiting_for(best.node):
            return None
        return self._start(profile, candidate)

    def _under_way_at(self, wanted: ColdLoad) -> _Load | None:
        """Not one on a neuron that is no candidate: it is being drained, or somebody wants the model elsewhere too."""
        found = (self._loads.get((candidate.node, wanted.profile.id)) for candidate in wanted.candidates)
        return next((load for load in found if load is not None and not load.done.is_set()), None)

    def _is_worth_waiting_for(self, node: str) -> bool:
        """Whether the job on a better place began lately: one that hangs must not keep a model from all the others."""
        return trio.current_time() - self._busy[node] < PATIENCE_S

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

    def _refuse_unless_room_may_come(
        self, profile: ModelProfile, candidates: list[Candidate], failed: Collection[Candidate]
    ) -> None:
        catalogue = self._catalogue.current
        nodes = [self._fleet.nodes[candidate.node] for candidate in candidates]
        free = [_free_mb(node, candidate.devices) for node, candidate in zip(nodes, candidates, strict=True)]
        unsettled = any(node.name in self._busy or not self._fleet.is_confirmed(node.name) for node in nodes)
        if unsettled or any(
            eviction.room_may_come(profile, node, mb, catalogue) for node, mb in zip(nodes, free, strict=True)
        ):
            for node in nodes:
                if node.name not in self._busy:  # a job pokes when it ends
                    self._poke(node.name)
            return
        told = "; ".join(
            eviction.why_no_room(profile, node, mb, catalogue) for node, mb in zip(nodes, free, strict=True)
        )
        if failed:  # there would be room where it failed lately, and is tried again before long
            raise self._all_failed(profile.id, failed, f"; {told}")
        raise NoRoom(f"no room for model '{profile.id}' ({profile.vram_mb} MB): {told}", retry_after_s=NO_ROOM_RETRY_S)

    def _start(self, profile: ModelProfile, candidate: Candidate) -> _Load:
        if self._nursery is None:
            raise ServiceUnavailable("this gateway cannot load models yet", retry_after_s=1)
        load = self._loads[candidate.node, profile.id] = _Load(candidate.node, profile.id)
        self._stories.append(load.story)
        self._busy[candidate.node] = load.began
        self._fleet.loading(candidate.node, profile.id)
        self._metrics.cold_starts(profile.id, candidate.node).inc()
        self._nursery.start_soon(self._run_load, load, profile, candidate)
        self._nursery.start_soon(self._watch_for_overdue, load)
        return load

    async def _watch_for_overdue(self, load: _Load) -> None:
        """A load that hangs is no failure yet, and its job goes on; but the model may be had elsewhere meanwhile."""
        with trio.move_on_after(self._overdue_s(load)):
            await load.done.wait()
            return
        log.warning("load_overdue", node=load.node, model=load.model, elapsed_s=trio.current_time() - load.began)
        load.overdue = True
        self._fleet.overdue(load.node, load.model)
        load.done.set()

    def _overdue_s(self, load: _Load) -> float:
        latest_s = self._settings.deadlines.load_seconds / 2
        took_s = self._took_s.get((load.node, load.model))
        return min(max(OVERDUE_FACTOR * max(took_s), OVERDUE_AT_LEAST_S), latest_s) if took_s else latest_s

    # A load, step by step .............................................................................................

    async def _run_load(self, load: _Load, profile: ModelProfile, candidate: Candidate) -> None:
        """The job. Whatever happens, the fleet is told how it ended, the node is free again and the waiters wake."""
        log.info("load_started", node=load.node, model=load.model, devices=candidate.devices)
        allowed_s = 2 * self._settings.deadlines.load_seconds
        reason: str | None = None
        try:
            load.scope.deadline = trio.current_time() + allowed_s
            with load.scope:
                reason = await self._try_load(load, profile, candidate)
            if load.scope.cancelled_caught:
                reason = load.cancelled_for or f"no answer to the load call within {allowed_s:g} s"
            self._note_outcome(load, reason)
        except _Postponed as news:
            log.info("load_postponed", node=load.node, model=load.model, reason=str(news))
            load.story.outcome, load.story.reason = "postponed", str(news)
            await self._look_again(load)
        finally:
            self._end(load)

    async def _try_load(self, load: _Load, profile: ModelProfile, candidate: Candidate) -> str | None:
        """Why it failed, or None. Raises _Postponed."""
        neuron = self._neurons[load.node]
        try:
            await self._make_room(load, profile, candidate)
            await neuron.load(
                own_name(profile),
                profile.harness,
                quant=profile.quant,
                tensor_parallel=profile.min_devices if profile.min_devices > 1 else None,
                devices=candidate.devices,
            )
            with trio.fail_after(CONTROL_DEADLINE_S):
                await self._introduce(load, profile, neuron)
        except NeuronError as error:
            return str(error)
        except trio.TooSlowError:
            return f"it loaded the model, but did not say where within {CONTROL_DEADLINE_S:g} s"
        return None

    async def _introduce(self, load: _Load, profile: ModelProfile, neuron: Loader) -> None:
        """Find out what the neuron calls the model now, and where it serves it: then it is routable."""
        names = {profile.id, own_name(profile)}
        for model in await neuron.models():
            if model.id in names and model.status in ROUTABLE_STATUSES:
                report = model_report(model, None, await neuron.endpoint(model.id))
                if report.id != profile.id:
                    self._fleet.dropped(load.node, profile.id)
                self._fleet.loaded(load.node, report)
                return
        raise NeuronError(f"it said that '{profile.id}' is loaded, but does not list it")

    async def _look_again(self, load: _Load) -> None:
        """Wait for a poll, so that those who wait decide anew on what is, not on what was: it may even be there."""
        self._fleet.unchanged(load.node, load.model)
        self._poke(load.node)
        with trio.move_on_after(CONTROL_DEADLINE_S):
            while True:  # a poll is not an event of the fleet's, and this path is rare
                await trio.sleep(SETTLE_S)
                if self._fleet.is_confirmed(load.node):
                    return

    def _note_outcome(self, load: _Load, reason: str | None) -> None:
        pair = (load.node, load.model)
        took_s = trio.current_time() - load.began
        load.story.outcome, load.story.reason = "failed" if reason else "loaded", reason
        if reason is None:
            self._took_s.setdefault(pair, deque(maxlen=5)).append(took_s)
            self._backoffs.pop(pair, None)
            log.info("load_finished", node=load.node, model=load.model, took_s=round(took_s, 3))
        else:
            self._back_off(pair, reason)
            log.warning("load_failed", node=load.node, model=load.model, took_s=round(took_s, 3), reason=reason)

    def _end(self, load: _Load) -> None:
        """However it went: the waiters wake, and the node is free when the last of them has gone on."""
        held = self._fleet.nodes[load.node].models.get(load.model)
        if held is not None and held.change == "loading":  # it did not come to an end that the fleet was told of
            self._fleet.unchanged(load.node, load.model)
        del self._loads[load.node, load.model]
        load.story.ended_at = trio.current_time()
        load.over = True
        if not load.waiters:
            self._busy.pop(load.node, None)
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

    def _all_failed(self, model: str, candidates: Iterable[Candidate], others: str = "") -> ColdLoadFailed:
        backoffs = sorted((candidate.node, self._backoffs[candidate.node, model]) for candidate in candidates)
        now = trio.current_time()
        told = "; ".join(
            f"{node}: {backoff.reason} (failures in a row: {backoff.failures}; tried again in"
            f" {_whole_s(backoff.until - now)} s)"
            for node, backoff in backoffs
        )
        soonest_s = min(backoff.until for _, backoff in backoffs) - now
        return ColdLoadFailed(f"model '{model}' could not be loaded: {told}{others}", retry_after_s=_whole_s(soonest_s))

    # Making room ......................................................................................................

    async def _make_room(self, load: _Load, profile: ModelProfile, candidate: Candidate) -> None:
        """Unload who must go. Readings are asked for now: a poll may be ten seconds and one load old.

        Raises:
            _Postponed: What is free now is not what the decision was made upon.
            NeuronError: It would not unload.
        """
        node = self._fleet.nodes[candidate.node]
        free_mb = await self._measure(candidate)
        if len(free_mb) < len(candidate.devices):
            return  # unknown is not "none": the neuron will say if it does not fit
        victims = self._plan(profile, node, free_mb)
        if victims is None or (victims and candidate.fit is Fit.FREE):
            # What the poll saw free is taken meanwhile. There may be a better place than this, or a time.
            raise _Postponed(f"{profile.vram_mb} MB needed, {sum(free_mb.values())} MB free")
        if victims:
            await self._evict(node, victims)
            load.story.evicted = tuple(held.id for held in victims)
            await self._until_room(profile, candidate)

    async def _until_room(self, profile: ModelProfile, candidate: Candidate) -> None:
        """A driver may take a moment to give memory back; or a victim had none left: somebody else unloaded it."""
        with trio.move_on_after(ROOM_DEADLINE_S):
            while True:
                if eviction.fits(profile, await self._measure(candidate), over=len(candidate.devices)):
                    return
                await trio.sleep(SETTLE_S)
        raise _Postponed(f"{profile.vram_mb} MB needed, and not free {ROOM_DEADLINE_S:g} s after the evictions")

    async def _measure(self, candidate: Candidate) -> dict[int, int]:
        """What is free now, in MB by device; what cannot be read is left out."""
        try:
            with trio.move_on_after(CONTROL_DEADLINE_S):
                return _free_now_mb(await self._neurons[candidate.node].health(), candidate.devices)
        except NeuronError as error:
            log.debug("readings_unknown", node=candidate.node, error=str(error))
        return {}

    async def _evict(self, node: Node, victims: Sequence[NodeModel]) -> None:
        """All of a plan, or as many as the neuron lets go; no new request goes to any of them from the start."""
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
            raise _Postponed(f"{', '.join(sorted(victims))} still busy after {QUIET_DEADLINE_S:g} s, not evicted")

    async def _counters(self, node: Node) -> Sequence[_Counter]:
        health = await self._neurons[node.name].health()
        return health.models or ()

    async def _unload(self, node: str, model: str) -> None:
        with trio.move_on_after(UNLOAD_DEADLINE_S) as scope:
            refusal = await self._ask_to_unload(node, model)
            if refusal is not None and not await self._is_gone(node, model, refusal):
                raise refusal
        if scope.cancelled_caught:
            raise NeuronError(f"no answer to the unload of {model} within {UNLOAD_DEADLINE_S:g} s")
        self._fleet.dropped(node, model)
        self._metrics.evictions(model, node).inc()
        self._count_cycle(node)
        log.info("evicted", node=node, model=model)

    async def _ask_to_unload(self, node: str, model: str) -> NeuronRefused | None:
        try:
            await self._neurons[node].unload(model)
        except NeuronRefused as refusal:
            return refusal
        return None

    async def _is_gone(self, node: str, model: str, refusal: NeuronRefused) -> bool:
        """404 is both "not here", which is what we want, and "I will not": its list tells which."""
        if refusal.status != 404:
            return False
        return all(entry.id != model or entry.status == "unloaded" for entry in await self._neurons[node].models())

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
        if self._nursery is None:
            raise ServiceUnavailable("this gateway cannot unload models yet", retry_after_s=1)
        if node in self._busy:
            raise ServiceUnavailable(f"{node} is busy with another load or unload", retry_after_s=5)
        if held is None or held.status != "loaded":
            state = "gone" if held is None else held.status
            raise ServiceUnavailable(f"'{model}' on {node} is {state}, not loaded", retry_after_s=5)
        if held.leases:
            under_way = f"{held.leases} request{'s' * (held.leases != 1)} of ours under way"
            raise ServiceUnavailable(f"'{model}' on {node} is in use: {under_way}", retry_after_s=5)
        if is_guarded(model, self._catalogue.current):
            raise ServiceUnavailable(f"'{model}' is needed by an alias that is being swapped", retry_after_s=30)
        self._begin_unload(held)

    def load(self, wanted: ColdLoad) -> str:
        """Load a model in a job of our own, or find the job that does; the node.

        Raises:
            ServiceUnavailable: It cannot begin now: the neurons are busy, or their room is in use.
            ColdLoadFailed, NoRoom: As `wait_until_routable` does.
        """
        load = self._join(wanted)
        if load is None:
            named = ", ".join(candidate.node for candidate in wanted.candidates)
            raise ServiceUnavailable(
                f"'{wanted.profile.id}' cannot be loaded now: {named} busy, or the room in use", retry_after_s=5
            )
        return load.node

    def load_at_engine(self, node: str, model: str) -> None:
        """Have an engine take one of its models into memory. Raises ServiceUnavailable if it cannot begin now.

        Which models it lists and whether they are in memory are two things: it goes on serving them meanwhile.
        """
        if node in self._busy:
            raise ServiceUnavailable(f"{node} is busy with another load", retry_after_s=5)
        self._start(ModelProfile(model, "openai"), Candidate(node, (), Fit.UNKNOWN, None))

    # Idle models ......................................................................................................

    async def _unload_the_idle_for_ever(self) -> NoReturn:
        while True:
            await trio.sleep(IDLE_LOOK_INTERVAL_S)
            now = trio.current_time()
            for node in self._fleet.nodes.values():
                if node.healthy and node.takes_placements and node.name not in self._busy:
                    for held in eviction.expired(node, now, self._ttl_s)[:1]:
                        self._begin_unload(held)

    def _ttl_s(self, model: str) -> float:
        if is_guarded(model, self._catalogue.current):
            return 0.0
        profile = self._catalogue.current.models.get(model)
        if profile is not None and profile.idle_ttl_seconds is not None:
            return profile.idle_ttl_seconds
        if profile is not None and profile.pinned_on:
            return 0.0  # who pins a model wants it there; a TTL of its own says otherwise
        return self._settings.eviction.idle_ttl_seconds

    def _begin_unload(self, held: NodeModel) -> None:
        if self._nursery is None:
            return
        self._busy[held.node.name] = trio.current_time()
        self._fleet.unloading(held.node.name, held.id)
        self._nursery.start_soon(self._run_unload, held.node.name, held.id)

    async def _run_unload(self, node: str, model: str) -> None:
        done = False
        try:
            await self._until_quiet(self._fleet.nodes[node], {model})
            await self._unload(node, model)
            done = True
        except (NeuronError, _Postponed) as error:
            log.warning("unload_failed", node=node, model=model, reason=str(error))
        finally:
            if not done:
                self._fleet.unchanged(node, model)
            self._busy.pop(node, None)
            self._poke(node)


def _whole_s(seconds: float) -> int:
    """For a Retry-After: at least 1, and 5.0000001 is 5."""
    return max(1, ceil(round(seconds, 3)))


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
