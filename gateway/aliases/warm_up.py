"""Warming one model for an alias that is about to move to it: load it if needed, then probe it.

    choose a replica -> [wait for the load] -> probe -> warm

What stands in the way for now (a full queue, a neuron that is down, a broken connection) is waited for; what will not
change by itself (an unknown model, no neuron that could hold it, no memory, a load that failed everywhere, a bad
answer) ends the warm-up. Deadlines belong to the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import trio

from gateway import errors
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.probe import Probe, ProbeFailed, ProbePostponed, choose_probe, send_probe
from gateway.config.settings import DeadlineSettings
from gateway.fleet.model_names import profile_of
from gateway.fleet.readiness import FleetReadiness
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import Decision, choose, unavailable_nodes_for
from gateway.fleet.state import Fleet
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool

__all__ = ["ModelWarmer", "WaitUntilRoutable", "WarmUpPhase", "WarmUpProgress"]

RECHECK_S = 1.0  # how long to wait for a change of the fleet before choosing again
SETTLE_S = 0.05  # after a change, so that a burst of changes causes one new choice

WarmUpPhase: TypeAlias = Literal["wait", "load", "probe"]
# Loads what a decision says. Returns when choosing again is worthwhile; raises a GatewayError if it never will be.
WaitUntilRoutable: TypeAlias = Callable[[Decision], Awaitable[None]]


class WarmUpProgress:
    """What a warm-up does now, and how long each phase has taken (trio time, s).

    `reason` is the last obstacle that it waited for.
    """

    __slots__ = ("began_at", "model", "phase", "phase_began_at", "reason", "spent_s")

    def __init__(self) -> None:
        self.began_at = self.phase_began_at = trio.current_time()
        self.phase: WarmUpPhase = "wait"
        self.model: str | None = None
        self.reason: str | None = None
        self.spent_s: dict[WarmUpPhase, float] = {}

    @property
    def elapsed_s(self) -> float:
        """Since the beginning."""
        return trio.current_time() - self.began_at

    def enter(self, phase: WarmUpPhase, model: str | None) -> None:
        """Account the time so far to the old phase, and start the new one."""
        now = trio.current_time()
        self.spent_s[self.phase] = self.spent_s.get(self.phase, 0.0) + now - self.phase_began_at
        self.phase, self.model, self.phase_began_at = phase, model, now

    def phases_ms(self) -> dict[str, float]:
        """Milliseconds per phase, the current one included."""
        self.enter(self.phase, self.model)
        return {phase: round(spent_s * 1000, 3) for phase, spent_s in self.spent_s.items() if spent_s}


class ModelWarmer:
    """Warms models.

    Args:
        store: Has the catalogue in force.
        fleet: Chosen from; it learns how each probe ended.
        wait_until_routable: Loads models.
        upstream: Connections for probes.
        deadlines: Of a probe's phases.
        poll_soon: Polls a node soon.
    """

    def __init__(
        self,
        store: CatalogueStore,
        *,
        fleet: Fleet,
        wait_until_routable: WaitUntilRoutable,
        upstream: UpstreamPool,
        deadlines: DeadlineSettings,
        poll_soon: Callable[[str], None],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._readiness = FleetReadiness(fleet)
        self._wait_until_routable = wait_until_routable
        self._upstream = upstream
        self._deadlines = deadlines
        self._poll_soon = poll_soon

    async def warm(self, model: str, progress: WarmUpProgress) -> str | None:
        """Return None once the model is loaded and has answered, or the reason why that will not happen."""
        loads_awaited = 0
        while not self._readiness.is_proven(model, self._store.current):
            try:
                decision = choose(model, self._fleet, self._store.current)
                if isinstance(decision, Route):
                    progress.enter("probe", model)
                    await self._probe(decision)
                    return None
                progress.enter("load", model)
                await self._wait_until_routable(decision)
                loads_awaited += 1
            except (errors.ModelNotFound, errors.NoFeasibleNeuron) as error:
                return error.message
            except errors.NoRoom as error:
                absent = unavailable_nodes_for(model, self._fleet, self._store.current)
                if not absent:
                    return error.message
                loads_awaited = 0  # the load may have failed because its neuron went away
                reason = f"{error.message}; {', '.join(absent)} could hold it, but is unavailable now"
                await self._wait(progress, reason)
            except ProbeFailed as error:
                return f"'{model}' is loaded, but {error}"
            except errors.ColdLoadFailed as error:
                if loads_awaited:
                    return error.message
                # The load of another caller failed before. Wait until the neuron may be asked again, and try once.
                await self._wait(progress, error.message, error.retry_after_s)
            except (errors.ServiceUnavailable, ProbePostponed) as error:
                loads_awaited = 0
                await self._wait(progress, str(error))
        return None

    async def _wait(self, progress: WarmUpProgress, reason: str, at_least_s: float | None = None) -> None:
        """Wait until the fleet changes, at most `RECHECK_S`; or exactly `at_least_s`, if given."""
        progress.reason = reason
        progress.enter("wait", progress.model)
        if at_least_s is not None:
            await trio.sleep(at_least_s)
            return
        with trio.move_on_after(RECHECK_S):
            await self._fleet.wait_changed()
        await trio.sleep(SETTLE_S)

    async def _probe(self, route: Route) -> None:
        """Probe the replica, and let the fleet know the result. Raises ProbeFailed, ProbePostponed."""
        probe = self._choose_probe(route)
        try:
            with self._fleet.lease(route.node, route.model_id):
                if probe is not None:
                    await send_probe(probe, route, self._upstream, PhaseDeadlines(self._deadlines))
        except ProbePostponed as error:
            if error.not_loaded:
                self._fleet.dropped(route.node, route.model_id, route.url)
            elif error.unreachable:
                self._fleet.at_fault(route.node, route.model_id, str(error), route.url)
            self._poll_soon(route.node)
            raise
        self._fleet.succeeded(route.node, route.model_id, answered=True)

    def _choose_probe(self, route: Route) -> Probe | None:
        replica = self._fleet.nodes[route.node].models.get(route.model_id)
        report = None if replica is None else replica.report
        profile = profile_of(route.model_id, self._store.current)
        capabilities = (profile and profile.capabilities) or (report and report.capabilities) or ()
        return choose_probe(capabilities, tool_call=None if report is None else report.tool_call)
