"""Warm swaps: an alias moves once its new targets are loaded and have answered, not before.

The catalogue store leaves such an alias on its old targets (`catalogue.warming`). Here each gets a task that warms its
new targets (`warm_up.py`) and then has the store move the alias, in one assignment:

    accepted file -> alias is warming: warm up each new target -> move, or give up

A newer file supersedes the task. A load that a superseded task has started goes on. While an alias is warming, its old
and new models are guarded from eviction (`Catalogue.guarded`). The reasons are in docs/decisions/0006-warm-swaps.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import structlog
import trio

from catalogue.diff import CatalogueDiff, shown_targets
from catalogue.models import Alias, Catalogue, Warming
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.warm_up import RECHECK_S, ModelWarmer, WarmUpPhase, WarmUpProgress
from gateway.fleet.readiness import FleetReadiness
from gateway.fleet.state import Fleet
from gateway.telemetry.metrics import Metrics

__all__ = ["SwapView", "WarmSwaps"]

SwapResult: TypeAlias = Literal["done", "at_once", "failed", "superseded"]
Cancellation: TypeAlias = Literal["superseded", "nothing_to_protect"]

_UNFINISHED = {"wait": "it is still waiting", "load": "the load is not finished", "probe": "the probe has no response"}

log = structlog.get_logger("cortex.swaps")


@dataclass(frozen=True, slots=True)
class SwapView:
    """An alias that is not where its file puts it, as the admin API and `/health` show it.

    `in_force` and `wanted` are its targets as text. `reason` is why it failed, or, while it is warming, the last
    obstacle. `allowed_s` is the deadline of the whole warm-up. A field that does not apply is None.
    """

    alias: str
    in_force: str
    wanted: str
    state: Literal["warming", "failed"]
    phase: WarmUpPhase | None = None
    model: str | None = None
    elapsed_s: float | None = None
    allowed_s: float | None = None
    reason: str | None = None


class _Swap:
    """One alias on its way to new targets, from the accepted file to the move.

    `scope` is around its task. `cancelled_for` says why the scope was cancelled, unless its deadline passed.
    """

    __slots__ = ("alias", "allowed_s", "cancelled_for", "progress", "scope", "warming")

    def __init__(self, alias: Alias, warming: Warming, allowed_s: float) -> None:
        self.alias = alias
        self.warming = warming
        self.allowed_s = allowed_s
        self.progress = WarmUpProgress()
        self.scope = trio.CancelScope(deadline=self.progress.began_at + allowed_s)
        self.cancelled_for: Cancellation | None = None

    def leads_to(self, warming: Warming) -> bool:
        """Whether its targets are those of `warming`. The alias's other keys are in force in any case."""
        return self.warming.wanted.targets == warming.wanted.targets and self.warming.protects == warming.protects

    def cancel(self, reason: Cancellation) -> None:
        self.cancelled_for = reason
        self.scope.cancel()


class WarmSwaps:
    """Brings aliases that are warming to their new targets.

    Args:
        store: Says which aliases are warming, and moves them.
        warmer: Warms their new targets.
        fleet: Says which models can serve.
        warm_deadline_s: The deadline of a swap whose alias does not set one.
        metrics: Counts swaps by result.
    """

    def __init__(
        self,
        store: CatalogueStore,
        warmer: ModelWarmer,
        *,
        fleet: Fleet,
        warm_deadline_s: float,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._readiness = FleetReadiness(fleet)
        self._warmer = warmer
        self._warm_deadline_s = warm_deadline_s
        self._metrics = metrics
        self._swaps: dict[str, _Swap] = {}
        self._nursery: trio.Nursery | None = None
        self._draining = False
        store.subscribe(self._catalogue_changed)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of all swaps, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for swap in self._swaps.values():
                nursery.start_soon(self._run_swap, swap)
            task_status.started()
            await trio.sleep_forever()

    def drain(self) -> None:
        """End all swaps and start no more: the process is about to end, and the next one starts from its file."""
        self._draining = True
        for swap in list(self._swaps.values()):
            self._supersede(swap)

    def retry(self, alias: str) -> bool:
        """Warm an alias again whose swap failed. False if there is no such alias."""
        warming = self._store.current.warming.get(alias)
        if warming is None or warming.failed is None:
            return False
        self._store.try_again(alias)
        return True

    def views(self) -> list[SwapView]:
        """Every alias that is not where its file puts it, by name."""
        catalogue = self._store.current
        return [self._view(catalogue.aliases[name], catalogue.warming[name]) for name in sorted(catalogue.warming)]

    def _view(self, in_force: Alias, warming: Warming) -> SwapView:
        names = (in_force.name, shown_targets(in_force), shown_targets(warming.wanted))
        swap = self._swaps.get(in_force.name)
        if warming.failed is not None or swap is None:
            return SwapView(*names, "failed", reason=warming.failed)
        progress = swap.progress
        return SwapView(
            *names, "warming", progress.phase, progress.model, progress.elapsed_s, swap.allowed_s, progress.reason
        )

    # What a new snapshot means for the tasks: one synchronous step ....................................................

    def _catalogue_changed(self, old: Catalogue, new: Catalogue, changes: CatalogueDiff) -> None:
        for change in changes.aliases_changed:
            if change.moves_traffic and change.name not in old.warming:
                self._count(change.name, "at_once")
        due = {name: warming for name, warming in new.warming.items() if warming.failed is None}
        for name, swap in list(self._swaps.items()):
            if name not in due or not swap.leads_to(due[name]):
                self._supersede(swap)
        for name, warming in due.items():
            if name in self._swaps:
                self._swaps[name].warming = warming
            elif not self._draining:
                self._start(new.aliases[name], warming)

    def _start(self, alias: Alias, warming: Warming) -> None:
        allowed_s = warming.wanted.warm_deadline_seconds or self._warm_deadline_s
        swap = self._swaps[alias.name] = _Swap(alias, warming, allowed_s)
        log.info("swap_warming", **self._log_fields(swap), newcomers=warming.newcomers, allowed_s=allowed_s)
        if self._nursery is not None:
            self._nursery.start_soon(self._run_swap, swap)

    def _supersede(self, swap: _Swap) -> None:
        del self._swaps[swap.alias.name]
        self._count(swap.alias.name, "superseded")
        log.info("swap_superseded", **self._log_fields(swap))
        swap.cancel("superseded")

    # The task of one swap .............................................................................................

    async def _run_swap(self, swap: _Swap) -> None:
        failure: str | None = None
        with swap.scope:
            failure = await self._warm(swap)
        if swap.scope.cancelled_caught and swap.cancelled_for is None:
            failure = (
                f"not ready within {swap.allowed_s:g} s: {swap.progress.reason or _UNFINISHED[swap.progress.phase]}"
            )
        if swap.cancelled_for != "superseded":
            self._finish(swap, failure)

    async def _warm(self, swap: _Swap) -> str | None:
        """Warm all new targets in turn. Returns the first failure, or None."""
        failure: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_nothing_serves, swap)
            for model in swap.warming.newcomers:
                failure = await self._warmer.warm(model, swap.progress)
                if failure is not None:
                    break
            nursery.cancel_scope.cancel()
        return failure

    async def _cancel_when_nothing_serves(self, swap: _Swap) -> None:
        """Move the alias at once when no old target can serve any more.

        Its requests must wait for a load then, and waiting for the load of the new target is better.
        """
        while any(self._readiness.is_servable(model, self._store.current) for model in swap.warming.protects):
            with trio.move_on_after(RECHECK_S):
                await self._fleet.wait_changed()
        swap.cancel("nothing_to_protect")

    def _finish(self, swap: _Swap, failure: str | None) -> None:
        """Move the alias, or give it up. Synchronous, so no other task sees an intermediate state."""
        name = swap.alias.name
        del self._swaps[name]  # before the store notifies us of its assignment
        took_s, phases_ms = swap.progress.elapsed_s, swap.progress.phases_ms()
        if failure is None:
            self._store.move(name)
            self._count(name, "done")
            self._metrics.swap_duration(name).observe(took_s)
            because = swap.cancelled_for or "ready"
            log.info("swap_done", **self._log_fields(swap), phases_ms=phases_ms, because=because)
        else:
            self._store.give_up(name, failure)
            self._count(name, "failed")
            log.error("swap_failed", **self._log_fields(swap), phases_ms=phases_ms, reason=failure)

    def _log_fields(self, swap: _Swap) -> dict[str, object]:
        return {
            "alias": swap.alias.name,
            "from": shown_targets(swap.alias),
            "to": shown_targets(swap.warming.wanted),
            "generation": self._store.current.generation,
        }

    def _count(self, alias: str, result: SwapResult) -> None:
        self._metrics.swaps(alias, result).inc()
