"""`LoadScheduler`: loads and unloads models, one job at a time per node. Jobs outlive the requests that asked for them.

`routing/choose.py` decides that a model should be loaded and which nodes could have it. Here the model is loaded once,
however many requests wait for it. A request that leaves changes nothing: a neuron cannot abort a load, so the load runs
to its end and serves the next request. Jobs run in the gateway's nursery, never in a request's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

import structlog
import trio

from catalogue.models import ModelProfile
from catalogue.source import CatalogueSource
from gateway.config.settings import Settings
from gateway.errors import NoRoom, ServiceUnavailable
from gateway.fleet.changes import FleetChange
from gateway.fleet.control.types import LoadingApi, NeuronError
from gateway.fleet.loading import eviction
from gateway.fleet.loading.backoff import FailedLoadView, LoadBackoffs
from gateway.fleet.loading.load import Loader
from gateway.fleet.loading.load_history import (
    Load,
    LoadHistory,
    LoadPostponed,
    LoadProgress,
    LoadRecord,
    LoadView,
)
from gateway.fleet.loading.make_room import RoomMaker
from gateway.fleet.loading.unload import Unloader
from gateway.fleet.model_names import holders_of, names_on_neurons, profile_of
from gateway.fleet.node import NodeModel
from gateway.fleet.routing.choose import ColdLoad, Decision, WaitForLoad
from gateway.fleet.routing.placement import Candidate, Fit
from gateway.fleet.routing.victims import is_guarded
from gateway.fleet.state import Fleet

__all__ = ["LoadScheduler"]

RECHECK_S = 1.0  # free memory changes without an event, so waiting requests also decide again after this time
SETTLE_S = 0.05  # after an event: a hundred requests that wake together decide once, not at every lease that ends
IDLE_CHECK_INTERVAL_S = 1.0
# A load is overdue after this many times the longest of the last ones, but not sooner than this: the first load after a
# reboot reads from the disk what later ones find in memory. Without earlier loads: half of `deadlines.load_seconds`.
OVERDUE_FACTOR, OVERDUE_AT_LEAST_S = 4, 120.0
PATIENCE_S = 30.0  # while the job on a better node is younger than this, a load waits for it; an older job may hang
NO_ROOM_RETRY_S = 30

log = structlog.get_logger("cortex.lifecycle")


class LoadScheduler:
    """Loads and unloads the models of one fleet.

    Args:
        fleet: Read for decisions, updated at every step.
        catalogue: For profiles and residency priorities.
        neurons: One control API per node, by name. Not closed here.
        settings: `[eviction]` and `[deadlines]`.
        count_cold_start: Called with model and node when a load begins.
        count_eviction: Called with model and node after each unload.
        poll_soon: Asks for a poll of a node.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        catalogue: CatalogueSource,
        neurons: Mapping[str, LoadingApi],
        settings: Settings,
        count_cold_start: Callable[[str, str], None],
        count_eviction: Callable[[str, str], None],
        poll_soon: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._settings = settings
        self._count_cold_start = count_cold_start
        self._poll_soon = poll_soon
        self._nursery: trio.Nursery | None = None
        self._unloads_idle = True
        self._busy_since: dict[str, float] = {}  # nodes with a job; loads that compete for memory must not overlap
        self._history = LoadHistory()
        self._backoffs = LoadBackoffs()
        self._unloader = Unloader(
            fleet,
            neurons=neurons,
            count_eviction=count_eviction,
            defrag_after_cycles=settings.eviction.defrag_after_cycles,
        )
        self._loader = Loader(
            fleet,
            neurons=neurons,
            room_maker=RoomMaker(
                fleet,
                catalogue=catalogue,
                neurons=neurons,
                unloader=self._unloader,
                min_residency_s=settings.eviction.min_residency_seconds,
            ),
            history=self._history,
            backoffs=self._backoffs,
            load_s=settings.deadlines.load_seconds,
            poll_soon=poll_soon,
        )
        fleet.observers.append(self._fleet_changed)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the jobs and unload idle models, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._unload_idle_models()

    # Reading ..........................................................................................................

    def loads(self) -> list[LoadView]:
        """The loads under way."""
        return self._history.views(self._reported_progress)

    def failing(self) -> list[FailedLoadView]:
        """The nodes and models whose last load failed."""
        return self._backoffs.views()

    def is_busy(self, node: str) -> bool:
        """Whether a load or an unload runs on this node."""
        return node in self._busy_since

    @property
    def times(self) -> LoadHistory:
        """How long loads took. For plans."""
        return self._history

    def estimate_s(self, node: str, model: str) -> float | None:
        """How long loading this model on this node takes, None if it was never timed."""
        load = self._history.under_way.get((node, model))
        return self._history.estimate_s(node, model, wakes=load is not None and load.wakes)

    def retry_after_s(self, model: str) -> int:
        """When to ask again for a model that is being loaded, in whole seconds."""
        return self._history.retry_after_s(model, self._reported_progress)

    def progress(self, model: str) -> LoadProgress | None:
        """How far the load of the model is, ours or another's; None if there is none, and the model waits for one."""
        ours = self._history.progress(model, self._reported_progress)
        if ours is not None:
            return ours
        holders = holders_of(model, self._fleet, self._catalogue.current)
        reports = [holder.report for holder in holders if holder.status == "loading" and holder.report is not None]
        known = [report.progress for report in reports if report.progress is not None]
        return LoadProgress(False, max(known, default=None), None, None) if reports else None

    def _reported_progress(self, node: str, model: str) -> float | None:
        """The fraction that the node reported of the load of the model, at its last poll."""
        names = names_on_neurons(model, self._catalogue.current)
        entries = (self._fleet.nodes[node].models.get(name) for name in names)
        reports = (entry.report for entry in entries if entry is not None and entry.report is not None)
        return next((report.progress for report in reports if report.status == "loading"), None)

    def earlier_loads(self, model: str) -> str:
        """How long earlier loads of the model took, as the end of a sentence; empty if there were none."""
        return self._history.earlier(model)

    def loads_between(self, model: str, since: float, until: float) -> list[LoadRecord]:
        """The loads of the model that were under way in this time (Trio's clock), oldest first."""
        return self._history.between(model, since, until)

    # Waiting for a model ..............................................................................................

    async def wait_until_routable(self, decision: Decision) -> None:
        """Wait for the load that `decision` names, and start it if it is not under way. Then choose again.

        Raises:
            ColdLoadFailed: The load failed on every feasible node, and none may be tried again yet.
            NoRoom: The memory is taken by models that this one may not displace.
            ServiceUnavailable: `run` has not started.
        """
        if isinstance(decision, ColdLoad):
            load = self._find_or_start_load(decision)
        elif isinstance(decision, WaitForLoad):
            load = self._history.to_wait_for(decision.model_id, decision.nodes)
        else:
            load = None
        if load is None:
            await self._wait_for_change()
            return
        load.waiters += 1
        try:
            await load.done.wait()
        finally:
            self._stop_waiting(load)

    def _stop_waiting(self, load: Load) -> None:
        """The last request that waited for a finished load frees the node.

        Each request takes its lease before its next checkpoint, so no other job can evict the model before that.
        """
        load.waiters -= 1
        if load.is_over and not load.waiters:
            self._busy_since.pop(load.node, None)

    async def _wait_for_change(self) -> None:
        with trio.move_on_after(RECHECK_S):
            await self._fleet.wait_changed()
        await trio.sleep(SETTLE_S)

    def _fleet_changed(self, change: FleetChange) -> None:
        """Handle a node that goes down or comes back during a load.

        Down: the requests look for another node, and the job ends when its call breaks. The call may never break: a
        host that loses its power sends nothing. So when the node is back, and has been up for less time than the load,
        the neuron has forgotten the load, and the job is cancelled. Removed: no request would use the model there.
        """
        for load in [load for load in self._history.under_way.values() if load.node == change.node]:
            if change.kind == "neuron_down":
                load.done.set()
            elif change.kind == "neuron_removed":
                load.done.set()
                load.cancelled_for = "the neuron was removed"
                load.scope.cancel()
            elif change.kind == "neuron_up" and self._was_restarted_since(load):
                load.cancelled_for = "the neuron was restarted"
                load.scope.cancel()

    def _was_restarted_since(self, load: Load) -> bool:
        uptime_s = self._fleet.nodes[load.node].uptime_s
        # 2: neurons count whole seconds, and may begin to count a little after the start.
        return uptime_s is not None and uptime_s + 2 < trio.current_time() - load.began_at

    # Deciding, in one synchronous step ................................................................................

    def _find_or_start_load(self, wanted: ColdLoad) -> Load | None:
        """The load to wait for, started if need be; None to wait for memory or for a busy node first."""
        profile = wanted.profile
        # A load on another node does not count: that node drains, or this request cannot use it.
        nodes = [candidate.node for candidate in wanted.candidates]
        if (under_way := self._history.to_wait_for(profile.id, nodes)) is not None:
            return under_way
        backoffs = self._backoffs
        usable = [
            candidate for candidate in wanted.candidates if not backoffs.is_backing_off(candidate.node, profile.id)
        ]
        if not usable:
            raise backoffs.all_failed(profile.id, nodes)
        ready = [candidate for candidate in usable if candidate.fit is not Fit.FULL]
        if not ready:
            self._refuse_unless_room_may_come(profile, usable, set(wanted.candidates) - set(usable))
            return None
        candidate = self._choose_candidate(profile, ready)
        return None if candidate is None else self._start(profile, candidate)

    def _choose_candidate(self, profile: ModelProfile, ready: Sequence[Candidate]) -> Candidate | None:
        """The best candidate without a job; None to wait for a better one whose job is not old."""
        loaded_before = trio.current_time() - self._settings.eviction.min_residency_seconds
        ranked = eviction.rank_candidates(
            profile,
            ready,
            self._fleet,
            self._catalogue.current,
            loaded_before=loaded_before,
            times=self._history,
        )
        best_rank, best = ranked[0]
        free = next(((rank, candidate) for rank, candidate in ranked if candidate.node not in self._busy_since), None)
        if free is None:
            return None
        rank, candidate = free
        is_worse = rank[:3] > best_rank[:3]
        if is_worse and trio.current_time() - self._busy_since[best.node] < PATIENCE_S:
            return None
        return candidate

    def _refuse_unless_room_may_come(
        self, profile: ModelProfile, candidates: Sequence[Candidate], failed: Collection[Candidate]
    ) -> None:
        """Return if memory may become free on a candidate. `failed` are those that back off after a failed load.

        Raises:
            ColdLoadFailed: Not here, but a node in `failed` has room.
            NoRoom: On no node.
        """
        nodes = [candidate.node for candidate in candidates]
        unsettled = any(node in self._busy_since or not self._fleet.is_confirmed(node) for node in nodes)
        places, catalogue = [self._fleet.nodes[name] for name in nodes], self._catalogue.current
        if unsettled or any(eviction.room_may_come(profile, node, catalogue) for node in places):
            for name in nodes:
                if name not in self._busy_since:  # a job asks for a poll when it ends
                    self._poll_soon(name)
            return
        reasons = "; ".join(eviction.why_no_room(profile, node, catalogue) for node in places)
        if failed:
            raise self._backoffs.all_failed(profile.id, [candidate.node for candidate in failed], f"; {reasons}")
        raise NoRoom(
            f"no room for model '{profile.id}' ({profile.vram_mb} MB): {reasons}", retry_after_s=NO_ROOM_RETRY_S
        )

    # Load jobs ........................................................................................................

    def _start(self, profile: ModelProfile, candidate: Candidate) -> Load:
        if self._nursery is None:
            raise ServiceUnavailable("this gateway is starting and cannot load models yet", retry_after_s=1)
        load = self._history.begin(candidate.node, profile.id, wakes=candidate.wakes, devices=candidate.devices)
        self._busy_since[candidate.node] = load.began_at
        self._fleet.loading(candidate.node, profile.id)
        self._poll_soon(candidate.node)  # from then on it is polled more often, for the progress of the load
        self._count_cold_start(profile.id, candidate.node)
        self._nursery.start_soon(self._run_load, load, profile, candidate)
        self._nursery.start_soon(self._watch_for_overdue, load)
        return load

    async def _run_load(self, load: Load, profile: ModelProfile, candidate: Candidate) -> None:
        try:
            await self._loader.load(load, profile, candidate)
        finally:
            self._end(load)

    def _end(self, load: Load) -> None:
        """With any outcome: wake the requests that wait. The last one of them frees the node."""
        model = self._fleet.nodes[load.node].models.get(load.model)
        if (
            model is not None and model.change == "loading"
        ):  # the load neither succeeded nor failed in the fleet's books
            self._fleet.unchanged(load.node, load.model)
        self._history.end(load)
        if not load.waiters:
            self._busy_since.pop(load.node, None)
        self._poll_soon(load.node)
        load.done.set()

    async def _watch_for_overdue(self, load: Load) -> None:
        """Let the requests of an overdue load look for another node. Its job goes on: it has not failed yet."""
        with trio.move_on_after(self._overdue_s(load)):
            await load.done.wait()
            return
        log.warning("load_overdue", node=load.node, model=load.model, elapsed_s=trio.current_time() - load.began_at)
        load.is_overdue = True
        self._fleet.overdue(load.node, load.model)
        load.done.set()

    def _overdue_s(self, load: Load) -> float:
        latest_s = self._settings.deadlines.load_seconds / 2
        longest_s = self._history.longest_s(load.node, load.model, wakes=load.wakes)
        return latest_s if longest_s is None else min(max(OVERDUE_FACTOR * longest_s, OVERDUE_AT_LEAST_S), latest_s)

    # For operators ....................................................................................................

    def load(self, wanted: ColdLoad) -> str:
        """Start a load, or find the one under way; returns the node's name.

        Raises:
            ServiceUnavailable: No node can begin now: each has another job, or its memory is in use.
            ColdLoadFailed, NoRoom: As `wait_until_routable`.
        """
        load = self._find_or_start_load(wanted)
        if load is None:
            nodes = ", ".join(candidate.node for candidate in wanted.candidates)
            raise ServiceUnavailable(
                f"'{wanted.profile.id}' cannot be loaded now: another job runs on {nodes}, or the memory is in use",
                retry_after_s=5,
            )
        return load.node

    def load_at_engine(self, node: str, model: str) -> None:
        """Start loading an engine's own model into its memory. The engine serves the model meanwhile.

        Raises:
            ServiceUnavailable: The node has another job.
        """
        if node in self._busy_since:
            raise ServiceUnavailable(f"{node} is busy with another load", retry_after_s=5)
        self._start(ModelProfile(model, "openai"), Candidate(node, (), Fit.UNKNOWN, None))

    def unload(self, node: str, model: str) -> None:
        """Start unloading a model. `model` is the node's name for it.

        Raises:
            ServiceUnavailable: It is not loaded, or in use, or guarded, or the node has another job.
        """
        resident = self._fleet.nodes[node].models.get(model)
        if self._nursery is None:
            raise ServiceUnavailable("this gateway is starting and cannot unload models yet", retry_after_s=1)
        if node in self._busy_since:
            raise ServiceUnavailable(f"{node} is busy with another load or unload", retry_after_s=5)
        if resident is None:
            raise ServiceUnavailable(f"'{model}' is not on {node}", retry_after_s=5)
        if resident.status not in {"loaded", "asleep", "poisoned"}:
            raise ServiceUnavailable(f"'{model}' on {node} is {resident.status}, not loaded", retry_after_s=5)
        if resident.leases:
            requests = f"{resident.leases} request{'s' * (resident.leases != 1)}"
            raise ServiceUnavailable(f"'{model}' on {node} is in use by {requests} of this gateway", retry_after_s=5)
        if is_guarded(model, self._catalogue.current):
            raise ServiceUnavailable(f"'{model}' is needed by an alias that is being swapped", retry_after_s=30)
        self._begin_unload(resident)

    # Unload jobs ......................................................................................................

    def drain(self) -> None:
        """Unload no more idle models: another process may use those that this one does not."""
        self._unloads_idle = False

    async def _unload_idle_models(self) -> NoReturn:
        while True:
            await trio.sleep(IDLE_CHECK_INTERVAL_S)
            now = trio.current_time()
            for node in self._fleet.nodes.values():
                if self._unloads_idle and node.healthy and node.takes_placements and node.name not in self._busy_since:
                    for resident in eviction.idle_models(node, now, self._ttl_s)[:1]:
                        self._begin_unload(resident)

    def _ttl_s(self, model: str) -> float:
        if is_guarded(model, self._catalogue.current):
            return 0.0
        profile = profile_of(model, self._catalogue.current)
        if profile is not None and profile.idle_ttl_seconds is not None:
            return profile.idle_ttl_seconds
        if profile is not None and profile.pinned_on:
            return 0.0  # a pin means that the model is to stay, unless the profile has a TTL of its own
        return self._settings.eviction.idle_ttl_seconds

    def _begin_unload(self, resident: NodeModel) -> None:
        if self._nursery is None:
            return
        self._busy_since[resident.node.name] = trio.current_time()
        self._fleet.unloading(resident.node.name, resident.id)
        self._nursery.start_soon(self._run_unload, resident.node.name, resident.id)

    async def _run_unload(self, node: str, model: str) -> None:
        is_done = False
        try:
            await self._unloader.wait_until_quiet(self._fleet.nodes[node], {model})
            await self._unloader.unload(node, model)
            is_done = True
        except (NeuronError, LoadPostponed) as error:
            log.warning("unload_failed", node=node, model=model, reason=str(error))
        finally:
            if not is_done:
                self._fleet.unchanged(node, model)
            self._busy_since.pop(node, None)
            self._poll_soon(node)
