"""Warm swaps: an alias moves when what it is to stand for has been loaded and has answered, not before.

The keeper holds such aliases back (`catalogue.warming`); here each gets a task that makes its new targets ready and
then has the keeper move it, in one assignment:

    accepted file -> [alias warming: choose -> wait for the load -> probe, per newcomer] -> move | give up

A newer file supersedes the task. Loads are the lifecycle's: one that nobody waits for any more runs on to its end. What
an alias that is warming stands for is guarded from eviction (`Catalogue.guarded`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import structlog
import trio

from catalogue.diff import CatalogueDiff, shown_targets
from catalogue.models import Alias, Catalogue, Warming
from gateway import errors
from gateway.aliases import probe
from gateway.aliases.probe import ProbeFailed, ProbePostponed
from gateway.config.settings import Settings
from gateway.fleet.node import NodeModel
from gateway.fleet.routing.choose import Decision, Route, absent_homes, choose, replicas_of
from gateway.fleet.state import Fleet
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.telemetry.metrics import Metrics

__all__ = ["FleetReadiness", "SwapView", "WarmSwaps"]

RECHECK_S = 1.0  # how long to wait for news of the fleet before looking again
SETTLE_S = 0.05  # after news, so that a burst of them is one

Phase: TypeAlias = Literal["wait", "load", "probe"]
Result: TypeAlias = Literal["done", "at_once", "failed", "superseded"]

log = structlog.get_logger("cortex.swaps")


class FleetReadiness:
    """What the fleet says of a model; see `catalogue.warming.Readiness`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def is_servable(self, model: str, catalogue: Catalogue) -> bool:
        """Whether a request for it could be sent somewhere right now."""
        return bool(replicas_of(model, self._fleet, catalogue))

    def is_proven(self, model: str, catalogue: Catalogue) -> bool:
        """Whether some replica has answered well since it was loaded, and its neuron is not in trouble."""
        return any(held.proven and held.node.breaker.closed for held in replicas_of(model, self._fleet, catalogue))


class Keeper(Protocol):
    """Whoever holds the catalogue in force, and is the only one to change it."""

    @property
    def current(self) -> Catalogue:
        """The snapshot now."""
        ...

    def subscribe(self, subscriber: Callable[[Catalogue, Catalogue, CatalogueDiff], object]) -> None:
        """Have it told of every assignment."""
        ...

    def move(self, alias: str) -> Catalogue:
        """Put a warming alias on its new targets."""
        ...

    def give_up(self, alias: str, reason: str) -> None:
        """Leave it where it is, with the reason."""
        ...

    def try_again(self, alias: str) -> None:
        """Have an alias that was given up warm once more."""
        ...


class Lifecycle(Protocol):
    """Whoever can make a model become loaded."""

    async def wait_until_routable(self, decision: Decision) -> None:
        """Return when it is worth choosing again. Raises a GatewayError if it never will be."""
        ...


@dataclass(frozen=True, slots=True)
class SwapView:
    """One alias that is not where its file wants it, for windows. Targets as text, times in seconds.

    `reason` is why it failed; while it is warming, what it last met. `allowed_s` is what warming may take in all. What
    is None is over, or unknown after it.
    """

    alias: str
    in_force: str
    wanted: str
    state: Literal["warming", "failed"]
    phase: Phase | None = None
    model: str | None = None
    elapsed_s: float | None = None
    allowed_s: float | None = None
    reason: str | None = None


class _Swap:
    """One alias on its way to new targets, from the accepted file to the move.

    `scope` is around its task; `ended_for` says why that was cancelled, if it was not by its deadline.
    """

    __slots__ = (
        "allowed_s",
        "before",
        "began",
        "ended_for",
        "model",
        "phase",
        "phase_began",
        "reason",
        "scope",
        "spent_s",
        "warming",
    )  # fmt: skip

    def __init__(self, before: Alias, warming: Warming, allowed_s: float) -> None:
        self.before = before
        self.warming = warming
        self.allowed_s = allowed_s
        self.began = self.phase_began = trio.current_time()
        self.phase: Phase = "wait"
        self.model: str | None = None
        self.reason: str | None = None
        self.spent_s: dict[str, float] = {}
        self.scope = trio.CancelScope()
        self.ended_for: Literal["superseded", "nothing_to_protect"] | None = None

    @property
    def alias(self) -> str:
        return self.before.name

    def leads_to(self, warming: Warming) -> bool:
        """Whether it is on its way there already; the alias's other keys are in force in any case."""
        return self.warming.wanted.targets == warming.wanted.targets and self.warming.protects == warming.protects

    def enter(self, phase: Phase, model: str | None) -> None:
        """From now on this is what takes its time."""
        now = trio.current_time()
        self.spent_s[self.phase] = self.spent_s.get(self.phase, 0.0) + now - self.phase_began
        self.phase, self.model, self.phase_began = phase, model, now

    def end(self, why: Literal["superseded", "nothing_to_protect"]) -> None:
        self.ended_for = why
        self.scope.cancel()


class WarmSwaps:
    """Brings aliases that are warming to their new targets.

    Args:
        keeper: Asked what is warming, and told how it went.
        fleet: Read; told of a probe that a neuron answered, or did not.
        lifecycle: Loads what is not loaded.
        upstream: For probes.
        settings: `[deadlines]`.
        metrics: Counts swaps by result.
        poke: Asks for a poll of a node.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        fleet: Fleet,
        lifecycle: Lifecycle,
        upstream: UpstreamPool,
        settings: Settings,
        metrics: Metrics,
        poll_soon: Callable[[str], None],
    ) -> None:
        self._keeper = keeper
        self._fleet = fleet
        self._readiness = FleetReadiness(fleet)
        self._lifecycle = lifecycle
        self._upstream = upstream
        self._settings = settings
        self._metrics = metrics
        self._poke = poll_soon
        self._swaps: dict[str, _Swap] = {}
        self._nursery: trio.Nursery | None = None
        self._draining = False
        keeper.subscribe(self._catalogue_changed)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for swap in self._swaps.values():
                nursery.start_soon(self._run_swap, swap)
            task_status.started()
            await trio.sleep_forever()

    def drain(self) -> None:
        """Warm nothing any more: the process is about to end, and the next one goes by its file."""
        self._draining = True
        for swap in list(self._swaps.values()):
            self._supersede(swap)

    def retry(self, alias: str) -> bool:
        """Warm an alias again whose warming failed. False if there is no such alias."""
        warming = self._keeper.current.warming.get(alias)
        if warming is None or warming.failed is None:
            return False
        self._keeper.try_again(alias)
        return True

    def views(self) -> list[SwapView]:
        """Every alias that is not where its file wants it, by name."""
        catalogue = self._keeper.current
        return [self._view(catalogue.aliases[name], catalogue.warming[name]) for name in sorted(catalogue.warming)]

    def _view(self, in_force: Alias, warming: Warming) -> SwapView:
        texts = (in_force.name, shown_targets(in_force), shown_targets(warming.wanted))
        swap = self._swaps.get(in_force.name)
        if warming.failed is not None or swap is None:
            return SwapView(*texts, "failed", reason=warming.failed)
        elapsed_s = trio.current_time() - swap.began
        return SwapView(*texts, "warming", swap.phase, swap.model, elapsed_s, swap.allowed_s, swap.reason)

    # What a new snapshot means for the tasks: one synchronous step ....................................................

    def _catalogue_changed(self, old: Catalogue, new: Catalogue, changes: CatalogueDiff) -> None:
        for change in changes.aliases_changed:
            if change.moves_traffic and change.name not in old.warming:
                self._count(change.name, "at_once")
        due = {name: warming for name, warming in new.warming.items() if warming.failed is None}
        for swap in list(self._swaps.values()):
            if swap.alias not in due or not swap.leads_to(due[swap.alias]):
                self._supersede(swap)
        for name, warming in due.items():
            if name in self._swaps:
                self._swaps[name].warming = warming
            elif not self._draining:
                self._begin(new.aliases[name], warming)

    def _begin(self, before: Alias, warming: Warming) -> None:
        allowed_s = warming.wanted.warm_deadline_seconds or self._settings.deadlines.load_seconds
        swap = self._swaps[before.name] = _Swap(before, warming, allowed_s)
        log.info("swap_warming", **self._told(swap), newcomers=warming.newcomers, allowed_s=allowed_s)
        if self._nursery is not None:
            self._nursery.start_soon(self._run_swap, swap)

    def _supersede(self, swap: _Swap) -> None:
        del self._swaps[swap.alias]
        self._count(swap.alias, "superseded")
        log.info("swap_superseded", **self._told(swap))
        swap.end("superseded")

    # A swap, step by step .............................................................................................

    async def _run_swap(self, swap: _Swap) -> None:
        """The task of one swap. Deadline, news and failure all end in one synchronous step, `_settle`."""
        swap.scope.deadline = swap.began + swap.allowed_s
        failure: str | None = None
        with swap.scope:
            failure = await self._warm(swap)
        if swap.scope.cancelled_caught and swap.ended_for is None:
            failure = f"not ready within {swap.allowed_s:g} s: {swap.reason or 'still at phase ' + swap.phase}"
        self._settle(swap, failure)

    async def _warm(self, swap: _Swap) -> str | None:
        """Why it failed, or None once every newcomer is ready."""
        failure: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_what_is_protected, swap)
            for model in swap.warming.newcomers:
                failure = await self._make_ready(swap, model)
                if failure is not None:
                    break
            nursery.cancel_scope.cancel()
        return failure

    async def _watch_what_is_protected(self, swap: _Swap) -> None:
        """End the wait when nobody serves the alias any more: its requests wait then, and had better for the new."""
        while self._is_anyone_serving(swap):
            with trio.move_on_after(RECHECK_S):
                await self._fleet.wait_changed()
        swap.end("nothing_to_protect")

    def _is_anyone_serving(self, swap: _Swap) -> bool:
        catalogue = self._keeper.current
        return any(self._readiness.is_servable(model, catalogue) for model in swap.warming.protects)

    def _settle(self, swap: _Swap, failure: str | None) -> None:
        """Sync: nobody sees an alias half moved."""
        if swap.ended_for == "superseded":
            return
        swap.enter(swap.phase, swap.model)  # so that the last phase's time is counted
        del self._swaps[swap.alias]  # before the keeper tells us of its own assignment
        took_s = trio.current_time() - swap.began
        phases_ms = {phase: round(spent_s * 1000, 3) for phase, spent_s in swap.spent_s.items() if spent_s}
        if failure is None:
            self._keeper.move(swap.alias)
            self._count(swap.alias, "done")
            self._metrics.swap_duration(swap.alias).observe(took_s)
            log.info("swap_done", **self._told(swap), phases_ms=phases_ms, because=swap.ended_for or "ready")
        else:
            self._keeper.give_up(swap.alias, failure)
            self._count(swap.alias, "failed")
            log.error("swap_failed", **self._told(swap), phases_ms=phases_ms, reason=failure)

    def _told(self, swap: _Swap) -> dict[str, object]:
        return {
            "alias": swap.alias,
            "from": shown_targets(swap.before),
            "to": shown_targets(swap.warming.wanted),
            "generation": self._keeper.current.generation,
        }

    def _count(self, alias: str, result: Result) -> None:
        self._metrics.swaps(alias, result).inc()

    # One newcomer .....................................................................................................

    async def _make_ready(self, swap: _Swap, model: str) -> str | None:
        """Why it cannot be, or None once it is loaded and has answered."""
        loads_awaited = 0
        while not self._readiness.is_proven(model, self._keeper.current):
            try:
                decision = choose(model, self._fleet, self._keeper.current)
                if isinstance(decision, Route):
                    swap.enter("probe", model)
                    await self._probe(decision)
                    return None
                swap.enter("load", model)
                await self._lifecycle.wait_until_routable(decision)
                loads_awaited += 1
            except (errors.ModelNotFound, errors.NoFeasibleNeuron) as error:
                return error.message
            except errors.NoRoom as error:
                absent = absent_homes(model, self._fleet, self._keeper.current)
                if not absent:
                    return error.message
                loads_awaited = 0  # what failed may have failed because its neuron went
                await self._wait(swap, f"{error.message}; {', '.join(absent)} could have it, but is not available")
            except ProbeFailed as error:
                return f"'{model}' is loaded, but {error}"
            except errors.ColdLoadFailed as error:
                if loads_awaited:
                    return error.message
                await self._wait(swap, error.message, error.retry_after_s)  # others failed before us; we try once too
            except (errors.ServiceUnavailable, ProbePostponed) as error:
                loads_awaited = 0
                await self._wait(swap, str(error))
        return None

    async def _wait(self, swap: _Swap, reason: str, at_least_s: float | None = None) -> None:
        """Something may be otherwise in a moment: until the fleet has news, or a second has passed."""
        swap.reason = reason
        swap.enter("wait", swap.model)
        if at_least_s is not None:
            await trio.sleep(at_least_s)
            return
        with trio.move_on_after(RECHECK_S):
            await self._fleet.wait_changed()
        await trio.sleep(SETTLE_S)

    async def _probe(self, route: Route) -> None:
        """Raises ProbeFailed or ProbePostponed, the fleet being told what that says of the neuron."""
        question = self._question(route)
        try:
            with self._fleet.lease(route.node, route.model_id):
                if question is not None:
                    await probe.ask(question, route, self._upstream, PhaseDeadlines(self._settings.deadlines))
        except ProbePostponed as error:
            if error.not_loaded:
                self._fleet.dropped(route.node, route.model_id)
            elif error.unreachable:
                self._fleet.failed(route.node, str(error))
            self._poke(route.node)
            raise
        self._fleet.succeeded(route.node, route.model_id, answered=True)

    def _question(self, route: Route) -> probe.Probe | None:
        held: NodeModel | None = self._fleet.nodes[route.node].models.get(route.model_id)
        report = None if held is None else held.report
        profile = self._keeper.current.models.get(route.model_id)
        capabilities = (profile and profile.capabilities) or (report and report.capabilities) or ()
        return probe.probe_of(capabilities, tool_call=None if report is None else report.tool_call)
