"""Taking neurons out of service, and letting them in again: at an operator's word, one job per neuron that is moving.

    open --drain--> draining: no new request, until the last one has ended
    open --drain, move--> moving: what only this neuron holds is loaded elsewhere --all of it--> draining
                             +--something cannot be--> open again, and it is told what and why

While models move the neuron serves on, so nobody waits for a load that a drain has caused. What has been moved is held
by a lease until the neuron is out: making room for the next model must not undo it. Room is made where that costs no
other model its last place, if there is such a place; if there is none, it is told who paid.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog
import trio

from catalogue.models import Catalogue
from catalogue.source import CatalogueSource
from gateway.errors import GatewayError, ServiceUnavailable
from gateway.fleet.loading import eviction
from gateway.fleet.loading.load_history import LoadStory
from gateway.fleet.node import Node
from gateway.fleet.routing.choose import Candidate, ColdLoad, Decision, Route, catalogue_id, choose, replicas_of
from gateway.fleet.state import Fleet

__all__ = ["DrainView", "Drains", "MoveView", "only_here"]

State = Literal["open", "moving", "draining", "drained"]
MoveState = Literal["loading", "moved", "failed"]

log = structlog.get_logger("cortex.drains")


class Lifecycle(Protocol):
    """Whoever can make a model become loaded."""

    async def wait_until_routable(self, decision: Decision) -> None:
        """Return when it is worth choosing again. Raises a GatewayError if it never will be."""
        ...

    def loads_between(self, model: str, since: float, until: float) -> list[LoadStory]:
        """The loads of the model that were under way in between, by Trio's clock."""
        ...


@dataclass(frozen=True, slots=True)
class MoveView:
    """One model on its way to another neuron. `node` is where it is now, `reason` why it could not be moved.

    `displaced` are the models that were loaded nowhere else, and had to go for it.
    """

    model: str
    state: MoveState
    node: str | None
    reason: str | None
    displaced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DrainView:
    """How far a neuron is out. `leases` are our requests on it; `moves` are of the last drain that asked for them."""

    node: str
    state: State
    draining: bool
    leases: int
    moves: tuple[MoveView, ...]


class _Move:
    """One model's."""

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


class _Moving:
    """One neuron's. `scope` is around its job; `is_over` once that has ended, however it did."""

    __slots__ = ("is_over", "moves", "scope")

    def __init__(self) -> None:
        self.moves: list[_Move] = []
        self.scope = trio.CancelScope()
        self.is_over = False


class Drains:
    """Every drain of one gateway.

    Args:
        fleet: Told who takes no requests any more.
        catalogue: For where else a model may go.
        lifecycle: Loads it there.
        load_s: How long the move of one model may take, in seconds.
    """

    def __init__(self, fleet: Fleet, *, catalogue: CatalogueSource, lifecycle: Lifecycle, load_s: float) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._lifecycle = lifecycle
        self._load_s = load_s
        self._nursery: trio.Nursery | None = None
        self._moving: dict[str, _Moving] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the jobs, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def drain(self, node: str, *, move: bool = False) -> DrainView:
        """Take a neuron out, at once or when its models are elsewhere. Asking again changes nothing.

        Raises:
            ServiceUnavailable: Models are to be moved by a gateway that has not started, or is stopping.
        """
        if not move:
            self._forget(node)
            self._fleet.drain(node, draining=True)
        elif not self._fleet.nodes[node].draining and not self._is_moving(node):
            self._begin_to_move(node)
        return self.view(node)

    def undrain(self, node: str) -> DrainView:
        """Let requests on to it again; if its models are moving, that ends, and loads under way run to their end."""
        self._forget(node)
        self._fleet.drain(node, draining=False)
        return self.view(node)

    def view(self, node: str) -> DrainView:
        """How far it is."""
        home = self._fleet.nodes[node]
        moving = self._moving.get(node)
        moves = () if moving is None else tuple(move.view for move in moving.moves)
        return DrainView(node, self._state(home), home.draining, home.leases, moves)

    def _state(self, home: Node) -> State:
        if home.draining:
            return "draining" if home.leases else "drained"
        return "moving" if self._is_moving(home.name) else "open"

    def _is_moving(self, node: str) -> bool:
        moving = self._moving.get(node)
        return moving is not None and not moving.is_over

    def _forget(self, node: str) -> None:
        moving = self._moving.pop(node, None)
        if moving is not None:
            moving.scope.cancel()

    # Moving ...........................................................................................................

    def _begin_to_move(self, node: str) -> None:
        if self._nursery is None:
            raise ServiceUnavailable("this gateway cannot load models yet", retry_after_s=1)
        moving = self._moving[node] = _Moving()
        moving.moves = self._impossible(node)
        if moving.moves:  # then nothing is moved at all: a load may cost another model its place
            moving.is_over = True
        else:
            self._nursery.start_soon(self._move, node, moving)

    def _impossible(self, node: str) -> list[_Move]:
        """What no other neuron that is up could hold: known before the first load."""
        found = []
        for model in only_here(node, self._fleet, self._catalogue.current):
            try:
                self._choose_elsewhere(node, model)
            except GatewayError as error:
                found.append(_Move(model, f"no other neuron can take it now: {error.message}"))
        return found

    async def _move(self, node: str, moving: _Moving) -> None:
        """The job: one model after the other, as they compete for room. Then the drain, unless one has failed."""
        try:
            with moving.scope, ExitStack() as kept:
                while (model := self._next(node, moving)) is not None:
                    move = _Move(model)
                    moving.moves.append(move)
                    await self._move_one(node, move, kept)
                    if move.state == "failed":
                        log.warning("move_failed", node=node, model=model, reason=move.reason)
                        return
                    log.info("moved", node=node, model=model, to=move.node, displaced=move.displaced)
                if not moving.scope.cancel_called:  # in the very moment in which the last load ended
                    self._fleet.drain(node, draining=True)
        finally:
            moving.is_over = True

    def _next(self, node: str, moving: _Moving) -> str | None:
        """Looked up each time: the neuron serves on, so it may have been given another model meanwhile."""
        done = {move.model for move in moving.moves}
        left = (model for model in only_here(node, self._fleet, self._catalogue.current) if model not in done)
        return next(left, None)

    async def _move_one(self, node: str, move: _Move, kept: ExitStack) -> None:
        began = trio.current_time()
        try:
            with trio.fail_after(self._load_s):
                route = await self._load_elsewhere(node, move.model)
                kept.enter_context(self._fleet.lease(route.node, route.model_id))
                move.state, move.node = "moved", route.node
                move.displaced = self._displaced(node, route, move.model, began)
        except GatewayError as error:
            move.state, move.reason = "failed", error.message
        except trio.TooSlowError:
            move.state, move.reason = "failed", f"not loaded anywhere else within {self._load_s:g} s"

    async def _load_elsewhere(self, node: str, model: str) -> Route:
        while not isinstance(decision := self._choose_elsewhere(node, model), Route):
            await self._lifecycle.wait_until_routable(decision)
        return decision

    def _choose_elsewhere(self, node: str, model: str) -> Decision:
        """Where a request for the model would go, were this neuron not there."""
        if model not in self._catalogue.current.models:
            raise ServiceUnavailable("it is not in models.toml, so nobody knows how to load it")
        decision = choose(model, self._fleet, self._catalogue.current, exclude=(node,))
        if not isinstance(decision, ColdLoad):
            return decision
        sparing = tuple(place for place in decision.candidates if self._spares_last_places(node, decision, place))
        return decision._replace(candidates=sparing or decision.candidates)

    # What it costs others .............................................................................................

    def _spares_last_places(self, leaving: str, wanted: ColdLoad, place: Candidate) -> bool:
        """Whether it fits there now, and whoever would have to go is loaded elsewhere, too; as last polled."""
        home = self._fleet.nodes[place.node]
        devices = [device for device in home.devices or () if device.index in place.devices]
        free_mb = {device.index: device.vram_free_mb for device in devices if device.vram_free_mb is not None}
        victims = eviction.plan(wanted.profile, home, free_mb, self._catalogue.current)
        if victims is None:
            return False
        return not any(self._is_last(held.id, {leaving, place.node}) for held in victims)

    def _displaced(self, leaving: str, route: Route, model: str, began: float) -> tuple[str, ...]:
        """Who made room for what is loaded there by now, and is loaded nowhere else."""
        stories = self._lifecycle.loads_between(model, began, trio.current_time())
        evicted = {name for story in stories if story.node == route.node for name in story.evicted}
        lost = {name for name in evicted if self._is_last(name, {leaving, route.node})}
        return tuple(sorted(catalogue_id(name, self._catalogue.current) for name in lost))

    def _is_last(self, name: str, apart_from: set[str]) -> bool:
        catalogue = self._catalogue.current
        replicas = replicas_of(catalogue_id(name, catalogue), self._fleet, catalogue)
        return all(held.node.name in apart_from for held in replicas)


def only_here(node: str, fleet: Fleet, catalogue: Catalogue) -> list[str]:
    """The models, by our ids, that requests can be sent to on this node and nowhere else."""
    home = fleet.nodes[node]
    models = {catalogue_id(held.id, catalogue) for held in home.models.values() if held.routable}
    return sorted(model for model in models if all(held.node is home for held in replicas_of(model, fleet, catalogue)))
