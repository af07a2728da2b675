"""Shadows: a candidate answers some of an alias's requests a second time, for nobody but the operator.

    a request has its answer -> wait until the candidate's neuron has nothing to do -> ask it the same -> compare

A client never waits for a shadow and never pays for its failure. So a shadow begins when its request is over, holds no
lease, is started only where nothing else runs, never causes a load, and is the first to go: when a request takes a
lease on its neuron, or anything changes there, it is cancelled in the same step. Its answer is discarded once compared.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog
import trio

from catalogue.models import Alias
from catalogue.source import CatalogueSource
from gateway import errors
from gateway.config.settings import DeadlineSettings
from gateway.fleet.changes import FleetChange
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.node import Node
from gateway.fleet.routing.choose import Route, choose
from gateway.fleet.state import Fleet
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.proxy.request import InferenceRequest, outgoing_headers
from gateway.proxy.shadow.transcript import AnswerSummary, Transcript
from gateway.telemetry.metrics import Metrics

__all__ = ["Comparison", "Primary", "Shadows", "Verdict"]

WAITING_LIMIT = 16  # shadows that wait for an idle neuron, each with its request's body: 16 MiB at the most
BODY_LIMIT_BYTES = 1024 * 1024
PATIENCE_S = 60.0  # how long one waits; a fleet that is never idle is not measured, but left alone
DEADLINE_S = 600.0  # of one shadow, from its first byte to its last
RECHECK_S = 1.0
KEPT = 500  # comparisons of an alias

Result = Literal["compared", "failed", "cancelled", "busy", "not_loaded", "too_large"]

log = structlog.get_logger("cortex.shadow")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same request, answered twice."""

    request_id: str
    primary: AnswerSummary
    shadow: AnswerSummary

    @property
    def same(self) -> bool:
        """Whether both said the same, word for word and call for call."""
        return self.primary.said == self.shadow.said


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything known of an alias's shadow: the last comparisons, and how often what came of one, since the start."""

    alias: str
    model: str | None
    comparisons: tuple[Comparison, ...]
    results: Mapping[str, int]


class Primary:
    """A request that will be shadowed once it has been answered. Made by `Shadows.begin`, owned by the request."""

    __slots__ = ("_alias", "_model", "_request", "_shadows")

    def __init__(self, shadows: Shadows, alias: str, model: str, request: InferenceRequest) -> None:
        self._shadows = shadows
        self._alias = alias
        self._model = model
        self._request = request

    def answered(self, heard: Transcript, model: str, node: str) -> None:
        """The request is over, and this is what its client heard."""
        side = heard.side(model, node, trio.current_time(), ok=True)
        self._shadows.follow(self._alias, self._model, self._request, side)


class _Running:
    """A shadow at a neuron."""

    __slots__ = ("gave_way", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + DEADLINE_S)
        self.gave_way = False


class Shadows:
    """All shadows of one gateway.

    Args:
        fleet: Read for where to go; told of what runs there.
        upstream: The connections to the neurons.
        catalogue: Whatever is in force when a shadow starts decides where the candidate is.
        metrics: Counts them by result.
        deadlines: Of each phase of a shadow, as of any request.
        draw: A number from [0, 1), each as likely as any other.
    """

    def __init__(
        self,
        fleet: Fleet,
        upstream: UpstreamPool,
        *,
        catalogue: CatalogueSource,
        metrics: Metrics,
        deadlines: DeadlineSettings,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._catalogue = catalogue
        self._metrics = metrics
        self._deadlines = deadlines
        self._draw = draw
        self._nursery: trio.Nursery | None = None
        self._running: dict[str, _Running] = {}
        self._waiting = 0
        self._kept: dict[tuple[str, str], deque[Comparison]] = {}  # by alias and candidate, as are the results
        self._results: dict[tuple[str, str], Counter[str]] = {}
        fleet.observers.append(self._look_at)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the shadows, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def verdict(self, alias: str) -> Verdict:
        """What is known of the alias's shadow."""
        policy = self._catalogue.current.aliases.get(alias)
        model = None if policy is None or policy.shadow is None else policy.shadow.model
        pair = (alias, model or "")
        return Verdict(alias, model, tuple(self._kept.get(pair, ())), dict(self._results.get(pair, ())))

    # At a request's side: sync, so a request is never held up.

    def begin(self, policy: Alias, request: InferenceRequest) -> Primary | None:
        """Whether this request is one of those that are asked twice."""
        shadow = policy.shadow
        if shadow is None or self._draw() * 100 >= shadow.percent:
            return None
        if request.upload is not None or len(request.body) > BODY_LIMIT_BYTES:  # an upload is gone once it is sent
            self._count(policy.name, shadow.model, "too_large")
            return None
        return Primary(self, policy.name, shadow.model, request)

    def give_way(self, node: str) -> None:
        """A request is going there now. One look-up: every attempt asks this."""
        running = self._running.get(node)
        if running is not None:
            running.gave_way = True
            running.scope.cancel()

    def follow(self, alias: str, model: str, request: InferenceRequest, primary: AnswerSummary) -> None:
        """The request is over: ask the candidate as soon as that disturbs nobody."""
        if self._nursery is None or self._waiting >= WAITING_LIMIT:
            self._count(alias, model, "busy")
            return
        self._waiting += 1  # not in its task: many may end before the first of those tasks has begun
        self._nursery.start_soon(self._shadow, alias, model, request, primary)

    def stop(self) -> None:
        """The gateway drains: shadows are the first to go."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            self._nursery = None

    def _look_at(self, change: FleetChange) -> None:
        """A load, an unload, a neuron that goes: whatever happens there wants the neuron for itself."""
        self.give_way(change.node)

    # One shadow...

    async def _shadow(self, alias: str, model: str, request: InferenceRequest, primary: AnswerSummary) -> None:
        try:
            route = await self._wait_until_idle(model)
        finally:
            self._waiting -= 1
        if isinstance(route, Route):
            result = await self._ask(alias, model, route, request, primary)
        else:
            result = route
        self._count(alias, model, result)

    async def _wait_until_idle(self, model: str) -> Route | Result:
        """Where to go, the neuron being marked as taken by a shadow before anything else can happen."""
        found: Route | Result = "busy"
        with trio.move_on_after(PATIENCE_S):
            while True:
                found = self._find(model)
                if isinstance(found, Route) or found == "not_loaded":
                    break
                with trio.move_on_after(RECHECK_S):  # what others do there is known from polls, which announce nothing
                    await self._fleet.wait_changed()
        return found

    def _find(self, model: str) -> Route | Result:
        try:
            decision = choose(model, self._fleet, self._catalogue.current)
        except errors.GatewayError:
            return "not_loaded"
        if not isinstance(decision, Route):
            return "not_loaded"
        return decision if self._is_idle(self._fleet.nodes[decision.node]) else "busy"

    def _is_idle(self, node: Node) -> bool:
        return not (
            node.name in self._running
            or not node.breaker.closed
            or any(held.load or held.change for held in node.models.values())
        )

    async def _ask(
        self, alias: str, model: str, route: Route, request: InferenceRequest, primary: AnswerSummary
    ) -> Result:
        """Nothing was awaited since the neuron was seen idle; from here to `_running` nothing is either."""
        running = self._running[route.node] = _Running()
        side: AnswerSummary | None = None
        try:
            with running.scope, self._fleet.shadowing(route.node, route.model_id):
                side = await self._listen(model, route, request)
        except errors.GatewayError as error:
            log.info("shadow_failed", alias=alias, model=model, node=route.node, reason=str(error))
            return "failed"
        finally:
            del self._running[route.node]
        if side is None:
            return "cancelled" if running.gave_way else "failed"
        if not side.ok:
            return "failed"
        self._kept.setdefault((alias, model), deque(maxlen=KEPT)).append(Comparison(request.request_id, primary, side))
        return "compared"

    async def _listen(self, model: str, route: Route, request: InferenceRequest) -> AnswerSummary:
        outgoing = request.parsed.outgoing(neuron_model_name(route), route.backend)
        headers = outgoing_headers(request, translated=outgoing.translation is not None)
        origin, message = build_request(route, outgoing.path, headers, outgoing.body)
        with PhaseDeadlines(self._deadlines) as phases:
            asked_at = trio.current_time()
            async with self._upstream.exchange(origin, message, phases) as response:
                kind = (response.header(b"content-type") or b"").lower()
                heard = Transcript(asked_at, stream=kind.startswith(b"text/event-stream"))
                while chunk := await response.receive():
                    heard.feed(chunk, trio.current_time())
                    phases.progressed()
                return heard.side(model, route.node, trio.current_time(), ok=response.status == 200)

    def _count(self, alias: str, model: str, result: Result) -> None:
        self._results.setdefault((alias, model), Counter())[result] += 1
        self._metrics.shadows(alias, model, result).inc()
