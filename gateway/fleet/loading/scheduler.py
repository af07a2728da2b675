"""Cold loads and evictions: one job at a time per neuron, in a task of its own that outlives whoever asked.

`routing.choose` says that a model is worth loading and where; here it is loaded, once, whoever and however many ask.
A waiter that leaves changes nothing: the neuron cannot be told to stop, so the load runs to its end and serves the
next. Loads are jobs of the gateway's nursery, never of a request's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

import structlog
import trio

from catalogue.models import ModelProfile
from catalogue.source import CatalogueSource
from gateway.config.settings import Settings
from gateway.errors import NoRoom, ServiceUnavailable
from gateway.fleet.control.types import LoadingApi, NeuronError
from gateway.fleet.loading import eviction
from gateway.fleet.loading.backoff import Backoffs, FailingView
from gateway.fleet.loading.load import Loader
from gateway.fleet.loading.load_history import Load, Loads, LoadStory, LoadView, Postponed
from gateway.fleet.loading.make_room import Room
from gateway.fleet.loading.unload import Unloader
from gateway.fleet.node import NodeModel
from gateway.fleet.routing.choose import Candidate, ColdLoad, Decision, Fit, WaitForLoad, is_guarded
from gateway.fleet.state import Fleet, FleetChange
from gateway.telemetry.metrics import Metrics

__all__ = ["Lifecycle"]

RECHECK_S = 1.0  # how long to wait for news before looking again: VRAM changes without anybody telling us
SETTLE_S = 0.05  # after news: a hundred waiters that wake together look once, not at every lease that comes back
IDLE_LOOK_INTERVAL_S = 1.0
# A load is overdue after so many times the longest of the last ones, but not before this: the first one after a reboot
# reads from the disk what later ones find in memory. Without earlier ones, after half of `deadlines.load_seconds`.
OVERDUE_FACTOR, OVERDUE_AT_LEAST_S = 4, 120.0
PATIENCE_S = 30.0  # how old the job of a better place may be before we take the next best; a job that hangs is older
NO_ROOM_RETRY_S = 30  # contract section 13

log = structlog.get_logger("cortex.lifecycle")


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
        neurons: Mapping[str, LoadingApi],
        settings: Settings,
        metrics: Metrics,
        poll_soon: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._settings = settings
        self._metrics = metrics
        self._poke = poll_soon
        self._nursery: trio.Nursery | None = None
        self._busy: dict[str, float] = {}  # nodes with a job, since when: two models that want one room take turns
        self._loads = Loads()
        self._backoffs = Backoffs()
        self._unloader = Unloader(
            fleet, neurons=neurons, metrics=metrics, defrag_after_cycles=settings.eviction.defrag_after_cycles
        )
        self._room = Room(
            fleet,
            catalogue=catalogue,
            neurons=neurons,
            unloader=self._unloader,
            min_residency_s=settings.eviction.min_residency_seconds,
        )
        self._loader = Loader(
            fleet,
            neurons=neurons,
            room=self._room,
            loads=self._loads,
            backoffs=self._backoffs,
            load_s=settings.deadlines.load_seconds,
            poll_soon=poll_soon,
        )
        fleet.observers.append(self._look_after_loads)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the jobs and look for idle models, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._unload_the_idle_for_ever()

    # What is known ....................................................................................................

    def loads(self) -> list[LoadView]:
        """What is being loaded now."""
        return self._loads.views()

    def failing(self) -> list[FailingView]:
        """What could not be loaded, the last time it was tried."""
        return self._backoffs.views()

    def estimate_s(self, node: str, model: str) -> float | None:
        """See Loads."""
        return self._loads.estimate_s(node, model)

    def retry_after_s(self, model: str) -> int:
        """See Loads."""
        return self._loads.retry_after_s(model)

    def earlier_loads(self, model: str) -> str:
        """See Loads."""
        return self._loads.earlier(model)

    def loads_between(self, model: str, since: float, until: float) -> list[LoadStory]:
        """See Loads."""
        return self._loads.between(model, since, until)

    # Waiting for a model ..............................................................................................

    async def wait_until_routable(self, decision: Decision) -> None:
        """Wait for the load that `decision` speaks of, starting it if nobody has. Then it is worth choosing again.

        Raises:
            ColdLoadFailed: Every feasible neuron has tried and failed; each says when it may be tried again.
            NoRoom: Only models that this one may not displace hold the room.
        """
        load = self._join(decision) if isinstance(decision, ColdLoad) else self._awaited(decision)
        if load is None:
            await self._wait_for_news()
            return
        load.waiters += 1
        try:
            await load.done.wait()
        finally:
            self._leave(load)

    def _leave(self, load: Load) -> None:
        """The last one of a load that is over frees the node: nobody takes the model from under those who waited.

        Whoever goes on from here takes its lease before the next checkpoint, hence before anybody can decide to evict.
        """
        load.waiters -= 1
        if load.over and not load.waiters:
            self._busy.pop(load.node, None)

    def _awaited(self, decision: Decision) -> Load | None:
        return self._loads.to_wait_for(decision.model_id, decision.nodes) if isinstance(decision, WaitForLoad) else None

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
        for load in [load for load in self._loads.under_way.values() if load.node == change.node]:
            if change.kind == "neuron_down":
                load.done.set()
            elif change.kind == "neuron_up" and self._was_restarted_since(load):
                load.cancelled_for = "the neuron was restarted"
                load.scope.cancel()

    def _was_restarted_since(self, load: Load) -> bool:
        uptime_s = self._fleet.nodes[load.node].uptime_s
        # Neurons count whole seconds, and from when they felt like it.
        return uptime_s is not None and uptime_s + 2 < trio.current_time() - load.began

    # Deciding, in one synchronous step ................................................................................

    def _join(self, wanted: ColdLoad) -> Load | None:
        """The load to wait for, started now if need be; None to wait for room or for a busy neuron first."""
        profile = wanted.profile
        # Not one on a neuron that is no candidate: it is being drained, or somebody wants the model elsewhere too.
        places = [candidate.node for candidate in wanted.candidates]
        if (under_way := self._loads.to_wait_for(profile.id, places)) is not None:
            return under_way
        failing = self._backoffs
        usable = [place for place in wanted.candidates if not failing.is_backing_off(place.node, profile.id)]
        if not usable:
            raise failing.all_failed(profile.id, places)
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

    def _is_worth_waiting_for(self, node: str) -> bool:
        """Whether the job on a better place began lately: one that hangs must not keep a model from all the others."""
        return trio.current_time() - self._busy[node] < PATIENCE_S

    def _preference(self, profile: ModelProfile, candidate: Candidate) -> tuple[int, bool, int, str]:
        """As routing has it, but among evictions those that spare the young (thrash) come first."""
        thrashes = candidate.fit is Fit.AFTER_EVICTION and not self._room.spares_the_young(profile, candidate)
        return candidate.fit, thrashes, -(candidate.free_mb or 0), candidate.node

    def _refuse_unless_room_may_come(
        self, profile: ModelProfile, candidates: list[Candidate], failed: Collection[Candidate]
    ) -> None:
        nodes = [candidate.node for candidate in candidates]
        unsettled = any(node in self._busy or not self._fleet.is_confirmed(node) for node in nodes)
        if unsettled or self._room.may_come(profile, candidates):
            for node in nodes:
                if node not in self._busy:  # a job pokes when it ends
                    self._poke(node)
            return
        told = self._room.why_none(profile, candidates)
        if failed:  # there would be room where it failed lately, and is tried again before long
            raise self._backoffs.all_failed(profile.id, [candidate.node for candidate in failed], f"; {told}")
        raise NoRoom(f"no room for model '{profile.id}' ({profile.vram_mb} MB): {told}", retry_after_s=NO_ROOM_RETRY_S)

    def _start(self, profile: ModelProfile, candidate: Candidate) -> Load:
        if self._nursery is None:
            raise ServiceUnavailable("this gateway cannot load models yet", retry_after_s=1)
        load = self._loads.begin(candidate.node, profile.id)
        self._busy[candidate.node] = load.began
        self._fleet.loading(candidate.node, profile.id)
        self._metrics.cold_starts(profile.id, candidate.node).inc()
        self._nursery.start_soon(self._run_load, load, profile, candidate)
        self._nursery.start_soon(self._watch_for_overdue, load)
        return load

    async def _watch_for_overdue(self, load: Load) -> None:
        """A load that hangs is no failure yet, and its job goes on; but the model may be had elsewhere meanwhile."""
        with trio.move_on_after(self._overdue_s(load)):
            await load.done.wait()
            return
        log.warning("load_overdue", node=load.node, model=load.model, elapsed_s=trio.current_time() - load.began)
        load.overdue = True
        self._fleet.overdue(load.node, load.model)
        load.done.set()

    def _overdue_s(self, load: Load) -> float:
        latest_s = self._settings.deadlines.load_seconds / 2
        longest_s = self._loads.longest_s(load.node, load.model)
        return latest_s if longest_s is None else min(max(OVERDUE_FACTOR * longest_s, OVERDUE_AT_LEAST_S), latest_s)

    async def _run_load(self, load: Load, profile: ModelProfile, candidate: Candidate) -> None:
        """The job. Whatever happens, the fleet is told how it ended, the node is free again and the waiters wake."""
        try:
            await self._loader.load(load, profile, candidate)
        finally:
            self._end(load)

    def _end(self, load: Load) -> None:
        """However it went: the waiters wake, and the node is free when the last of them has gone on."""
        held = self._fleet.nodes[load.node].models.get(load.model)
        if held is not None and held.change == "loading":  # it did not come to an end that the fleet was told of
            self._fleet.unchanged(load.node, load.model)
        self._loads.end(load)
        if not load.waiters:
            self._busy.pop(load.node, None)
        self._poke(load.node)
        load.done.set()

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
            await self._unloader.until_quiet(self._fleet.nodes[node], {model})
            await self._unloader.unload(node, model)
            done = True
        except (NeuronError, Postponed) as error:
            log.warning("unload_failed", node=node, model=model, reason=str(error))
        finally:
            if not done:
                self._fleet.unchanged(node, model)
            self._busy.pop(node, None)
            self._poke(node)
