"""Takes nodes out of service and lets them in again for an operator. A node that moves its models has one job.

    open --drain--> draining: no new request, until the last one has ended
    open --drain, move--> moving: the models that only this node has are loaded elsewhere --all of them--> draining
      |                      +--a load fails--> open again; the view says which model and why
      +--drain, move, and one of them has no place: nothing is moved; the view says which and why

The node serves while its models move, so no request waits for a load that a drain causes. A moved model is kept by a
lease until the move is over: making room for the next model must not evict it. Room is made where no other model loses
its last replica, if such a node exists; if not, `displaced` names the models that lost theirs.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import structlog
import trio

from catalogue.source import CatalogueSource
from gateway.errors import GatewayError, ServiceUnavailable
from gateway.fleet.changes import FleetChange
from gateway.fleet.loading.drain_plan import choose_elsewhere, has_replica_besides, impossible_moves, next_move
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.model_names import catalogue_id
from gateway.fleet.node import Node
from gateway.fleet.route import Route
from gateway.fleet.state import Fleet

__all__ = ["DrainView", "Drains", "MoveView"]

DrainState = Literal["open", "moving", "draining", "drained"]
MoveState = Literal["loading", "moved", "failed"]

SETTLE_S = 15.0  # for a poll of every other node after a load or unload there; polls come every 10 s or sooner
RECHECK_S = 0.05

log = structlog.get_logger("cortex.drains")


@dataclass(frozen=True, slots=True)
class MoveView:
    """One model that moves to another node.

    `node` is the node that has it now; `reason` says why it could not be moved. `displaced` are the models that had no
    other replica and were evicted for it.
    """

    model: str
    state: MoveState
    node: str | None
    reason: str | None
    displaced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DrainView:
    """How far a node's drain is. `leases` are our requests on it; `moves` belong to the last drain with `move`."""

    node: str
    state: DrainState
    draining: bool
    leases: int
    moves: tuple[MoveView, ...]


class _Move:
    """One model's move."""

    __slots__ = ("displaced", "model", "node", "reason", "state")

    def __init__(self, model: str, reason: str | None = None) -> None:
        self.model = model
        self.state: MoveState = "loading" if reason is None else "failed"
        self.node: str | None = None
        self.reason = reason
        self.displaced: tuple[str, ...] = ()

    @property
    def view(self) -> MoveView:
        return MoveView(self.model, self.state, self.node, self.reason, self.displaced)


class _MoveJob:
    """All moves of one node. `scope` is around the job; `is_over` once it has ended in any way."""

    __slots__ = ("is_over", "moves", "scope")

    def __init__(self) -> None:
        self.moves: list[_Move] = []
        self.scope = trio.CancelScope()
        self.is_over = False


class Drains:
    """Every drain of one gateway.

    Args:
        fleet: Keeps requests off drained nodes.
        catalogue: Gives the other nodes that could have a model.
        scheduler: Loads the models there.
        load_s: How long the move of one model may take, in seconds.
        min_residency_s: For so long after its load a model is evicted only if there is no other way.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        catalogue: CatalogueSource,
        scheduler: LoadScheduler,
        load_s: float,
        min_residency_s: float,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._load_s = load_s
        self._min_residency_s = min_residency_s
        self._nursery: trio.Nursery | None = None
        fleet.observers.append(self._fleet_changed)
        self._jobs: dict[str, _MoveJob] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the jobs, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def drain(self, node: str, *, move: bool = False) -> DrainView:
        """Take a node out of service: at once, or with `move` when its models are elsewhere. Repeating is harmless.

        Raises:
            ServiceUnavailable: `move` while the gateway starts or stops.
        """
        if not move:
            self._cancel_moves(node)
            self._fleet.drain(node, draining=True)
        elif not self._fleet.nodes[node].draining and not self._is_moving(node):
            self._begin_moves(node)
        return self.view(node)

    def undrain(self, node: str) -> DrainView:
        """Let requests on to the node again. Ends moves; loads under way run to their end."""
        self._cancel_moves(node)
        self._fleet.drain(node, draining=False)
        return self.view(node)

    def view(self, node: str) -> DrainView:
        """How far the node's drain is."""
        home = self._fleet.nodes[node]
        job = self._jobs.get(node)
        moves = () if job is None else tuple(move.view for move in job.moves)
        return DrainView(node, self._state(home), home.draining, home.leases, moves)

    def _state(self, node: Node) -> DrainState:
        if node.draining:
            return "draining" if node.leases else "drained"
        return "moving" if self._is_moving(node.name) else "open"

    def _is_moving(self, node: str) -> bool:
        job = self._jobs.get(node)
        return job is not None and not job.is_over

    def _cancel_moves(self, node: str) -> None:
        job = self._jobs.pop(node, None)
        if job is not None:
            job.scope.cancel()

    def _fleet_changed(self, change: FleetChange) -> None:
        if change.kind == "neuron_removed":
            self._cancel_moves(change.node)

    # Moving ...........................................................................................................

    def _begin_moves(self, node: str) -> None:
        if self._nursery is None:
            raise ServiceUnavailable("this gateway is starting and cannot load models yet", retry_after_s=1)
        job = self._jobs[node] = _MoveJob()
        if self._is_settled(node):
            job.moves = self._impossible_moves(node)
        if job.moves:  # then none is begun
            job.is_over = True
        else:
            self._nursery.start_soon(self._run_moves, node, job)

    def _is_settled(self, node: str) -> bool:
        """Whether what the polls reported of the other nodes is newer than the last load or unload there."""
        others = (other for other in self._fleet.nodes.values() if other.name != node and other.healthy)
        return all(self._fleet.is_confirmed(other.name) for other in others)

    async def _settle(self, node: str, job: _MoveJob) -> bool:
        """Wait for polls if need be, then decide. Returns whether the moves may begin."""
        if self._is_settled(node):
            return True  # it is decided already
        with trio.move_on_after(SETTLE_S):
            while not self._is_settled(node):  # noqa: ASYNC110 - the fleet has no event for a poll
                await trio.sleep(RECHECK_S)
        job.moves = self._impossible_moves(node)
        return not job.moves

    def _impossible_moves(self, node: str) -> list[_Move]:
        """The models that have no place on another node beside each other. Known before the first load."""
        found = impossible_moves(node, self._fleet, self._catalogue.current, min_residency_s=self._min_residency_s)
        return [_Move(move.model, move.reason) for move in found]

    async def _run_moves(self, node: str, job: _MoveJob) -> None:
        """One model after another, since they compete for memory. Then the drain, unless a move has failed."""
        try:
            with job.scope, ExitStack() as leases:
                if not await self._settle(node, job):
                    return
                while (model := self._next_model(node, job)) is not None:
                    move = _Move(model)
                    job.moves.append(move)
                    await self._move(node, move, leases)
                    if move.state == "failed":
                        log.warning("move_failed", node=node, model=model, reason=move.reason)
                        return
                    log.info("moved", node=node, model=model, to=move.node, displaced=move.displaced)
                if not job.scope.cancel_called:  # an undrain may come in the step in which the last load ends
                    self._fleet.drain(node, draining=True)
        finally:
            job.is_over = True

    def _next_model(self, node: str, job: _MoveJob) -> str | None:
        return next_move(node, self._fleet, self._catalogue.current, {move.model for move in job.moves})

    async def _move(self, node: str, move: _Move, leases: ExitStack) -> None:
        began_at = trio.current_time()
        try:
            with trio.fail_after(self._load_s):
                route = await self._load_elsewhere(node, move.model)
                leases.enter_context(self._fleet.lease(route.node, route.model_id))
                move.state, move.node = "moved", route.node
                move.displaced = self._displaced(node, route, move.model, began_at)
        except GatewayError as error:
            move.state, move.reason = "failed", error.message
        except trio.TooSlowError:
            move.state, move.reason = "failed", f"not loaded on another neuron within {self._load_s:g} s"

    async def _load_elsewhere(self, node: str, model: str) -> Route:
        while True:
            decision = choose_elsewhere(node, model, self._fleet, self._catalogue.current)
            if isinstance(decision, Route):
                return decision
            await self._scheduler.wait_until_routable(decision)

    def _displaced(self, leaving: str, route: Route, model: str, began_at: float) -> tuple[str, ...]:
        """The models that were evicted for this load and have no replica now; by catalogue id."""
        loads = self._scheduler.loads_between(model, began_at, trio.current_time())
        evicted = {name for load in loads if load.node == route.node for name in load.evicted}
        here, catalogue = {leaving, route.node}, self._catalogue.current
        lost = {name for name in evicted if not has_replica_besides(name, here, self._fleet, catalogue)}
        return tuple(sorted(catalogue_id(name, catalogue) for name in lost))
