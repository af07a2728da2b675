"""Takes nodes out of service and lets them in again for an operator. A node that moves its models has one job.

    open --drain--> draining: no new request, until the last one has ended
    open --drain, move--> moving: the models that only this node has are loaded elsewhere --all of them--> draining
                             +--one cannot be--> open again; the view says which model and why

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

from catalogue.models import Catalogue
from catalogue.source import CatalogueSource
from gateway.errors import GatewayError, ServiceUnavailable
from gateway.fleet.loading import eviction
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.model_names import catalogue_id, replicas_of
from gateway.fleet.node import Node
from gateway.fleet.routing.choose import ColdLoad, Decision, Route, choose
from gateway.fleet.routing.placement import Candidate
from gateway.fleet.state import Fleet

__all__ = ["DrainView", "Drains", "MoveView", "models_only_on"]

DrainState = Literal["open", "moving", "draining", "drained"]
MoveState = Literal["loading", "moved", "failed"]

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
    """

    def __init__(self, fleet: Fleet, *, catalogue: CatalogueSource, scheduler: LoadScheduler, load_s: float) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._load_s = load_s
        self._nursery: trio.Nursery | None = None
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

    # Moving ...........................................................................................................

    def _begin_moves(self, node: str) -> None:
        if self._nursery is None:
            raise ServiceUnavailable("this gateway is starting and cannot load models yet", retry_after_s=1)
        job = self._jobs[node] = _MoveJob()
        job.moves = self._impossible_moves(node)
        if job.moves:  # then none is begun: a load may cost another model its place
            job.is_over = True
        else:
            self._nursery.start_soon(self._run_moves, node, job)

    def _impossible_moves(self, node: str) -> list[_Move]:
        """The models that no other open node could have. Known before the first load."""
        found = []
        for model in models_only_on(node, self._fleet, self._catalogue.current):
            try:
                self._choose_elsewhere(node, model)
            except GatewayError as error:
                found.append(_Move(model, f"no other neuron can take it now: {error.message}"))
        return found

    async def _run_moves(self, node: str, job: _MoveJob) -> None:
        """One model after another, since they compete for memory. Then the drain, unless a move has failed."""
        try:
            with job.scope, ExitStack() as leases:
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
        """Looked up for each move: the node serves meanwhile, so a request may have had another model loaded on it."""
        done = {move.model for move in job.moves}
        left = (model for model in models_only_on(node, self._fleet, self._catalogue.current) if model not in done)
        return next(left, None)

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
        while not isinstance(decision := self._choose_elsewhere(node, model), Route):
            await self._scheduler.wait_until_routable(decision)
        return decision

    def _choose_elsewhere(self, node: str, model: str) -> Decision:
        """Where a request for the model would go without this node."""
        if model not in self._catalogue.current.models:
            raise ServiceUnavailable("cortex cannot load it: it is not in models.toml")
        decision = choose(model, self._fleet, self._catalogue.current, exclude=(node,))
        if not isinstance(decision, ColdLoad):
            return decision
        sparing = tuple(place for place in decision.candidates if self._spares_last_replicas(node, decision, place))
        return decision._replace(candidates=sparing or decision.candidates)

    # What a move costs other models ...................................................................................

    def _spares_last_replicas(self, leaving: str, wanted: ColdLoad, candidate: Candidate) -> bool:
        """Whether the model fits there now, and each model evicted for it has another replica; as last polled."""
        node, catalogue = self._fleet.nodes[candidate.node], self._catalogue.current
        victims = eviction.find_victims(wanted.profile, node, node.free_mb(candidate.devices), catalogue)
        if victims is None:
            return False
        return not any(self._has_no_replica_besides(victim.id, {leaving, candidate.node}) for victim in victims)

    def _displaced(self, leaving: str, route: Route, model: str, began_at: float) -> tuple[str, ...]:
        """The models that were evicted for this load and have no replica now; by catalogue id."""
        loads = self._scheduler.loads_between(model, began_at, trio.current_time())
        evicted = {name for load in loads if load.node == route.node for name in load.evicted}
        lost = {name for name in evicted if self._has_no_replica_besides(name, {leaving, route.node})}
        return tuple(sorted(catalogue_id(name, self._catalogue.current) for name in lost))

    def _has_no_replica_besides(self, name: str, nodes: set[str]) -> bool:
        catalogue = self._catalogue.current
        replicas = replicas_of(catalogue_id(name, catalogue), self._fleet, catalogue)
        return all(replica.node.name in nodes for replica in replicas)


def models_only_on(node: str, fleet: Fleet, catalogue: Catalogue) -> list[str]:
    """The catalogue ids of the models whose only replica is on this node, sorted."""
    home = fleet.nodes[node]
    models = {catalogue_id(resident.id, catalogue) for resident in home.models.values() if resident.routable}
    return sorted(
        model for model in models if all(replica.node is home for replica in replicas_of(model, fleet, catalogue))
    )
