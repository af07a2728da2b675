"""Run shadows: a candidate model answers some of an alias's requests again, for a comparison that operators read.

    a request was answered -> wait until the candidate's neuron is idle -> send the same request -> compare the answers

A client never waits for a shadow and never sees its failure. So a shadow starts after its request has ended, takes no
lease, starts only on an idle neuron, and never causes a load. It is cancelled as soon as a request takes a lease on its
neuron or anything else changes there. Its answer is discarded after the comparison.
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
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import choose
from gateway.fleet.state import Fleet
from gateway.http import sse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy.request import InferenceRequest, outgoing_headers
from gateway.proxy.shadow.transcript import AnswerSummary, Transcript
from gateway.telemetry.metrics import Metrics

__all__ = ["ShadowComparison", "ShadowReport", "ShadowedRequest", "Shadower"]

WAITING_LIMIT = 16  # shadows that wait for an idle neuron; each keeps its request's body, at most 16 MiB in all
BODY_LIMIT_BYTES = 1024 * 1024
WAIT_LIMIT_S = 60.0  # for an idle neuron; a fleet without idle neurons is not measured
DEADLINE_S = 600.0  # of one shadow, from its first byte to its last
RECHECK_S = 1.0
COMPARISONS_LIMIT = 500  # of one alias; older ones are dropped

ShadowResult = Literal["compared", "failed", "cancelled", "busy", "not_loaded", "too_large"]

log = structlog.get_logger("cortex.shadow")


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """Two answers to one request: the one its client got, and the candidate's."""

    request_id: str
    primary: AnswerSummary
    shadow: AnswerSummary

    @property
    def is_same(self) -> bool:
        """Whether text and tool calls are equal."""
        return self.primary.content_digest == self.shadow.content_digest


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """An alias's last comparisons, and the count of each result since the gateway started."""

    alias: str
    model: str | None
    comparisons: tuple[ShadowComparison, ...]
    results: Mapping[str, int]


class ShadowedRequest:
    """A request that gets a shadow once it was answered. Made by `Shadower.begin`, owned by the request."""

    __slots__ = ("_alias", "_model", "_request", "_shadower")

    def __init__(self, shadower: Shadower, alias: str, model: str, request: InferenceRequest) -> None:
        self._shadower = shadower
        self._alias = alias
        self._model = model
        self._request = request

    def answered(self, transcript: Transcript, model: str, node: str) -> None:
        """The request has ended well: start its shadow.

        Args:
            transcript: What the client was sent.
            model: The model that answered.
            node: Its neuron.
        """
        primary = transcript.summary(model, node, trio.current_time(), ok=True)
        self._shadower.start(self._alias, self._model, self._request, primary)


class _RunningShadow:
    """A shadow request at a neuron."""

    __slots__ = ("gave_way", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + DEADLINE_S)
        self.gave_way = False


class Shadower:
    """All shadows of one gateway.

    Args:
        fleet: Where the candidates are loaded, and what runs there.
        upstream: Connections to the neurons.
        catalogue: Its current snapshot decides where a candidate is when its shadow starts.
        metrics: Counts shadows by result.
        deadlines: Of each phase of a shadow, as of any request.
        pass_request_headers: `[gateway] pass_request_headers`.
        draw: Returns a random number from [0, 1).
    """

    def __init__(
        self,
        fleet: Fleet,
        upstream: UpstreamPool,
        *,
        catalogue: CatalogueSource,
        metrics: Metrics,
        deadlines: DeadlineSettings,
        pass_request_headers: tuple[str, ...] = (),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._catalogue = catalogue
        self._metrics = metrics
        self._deadlines = deadlines
        self._pass_request_headers = pass_request_headers
        self._draw = draw
        self._nursery: trio.Nursery | None = None
        self._running: dict[str, _RunningShadow] = {}  # by node
        self._waiting = 0
        self._comparisons: dict[tuple[str, str], deque[ShadowComparison]] = {}  # by alias and candidate
        self._results: dict[tuple[str, str], Counter[str]] = {}  # by alias and candidate
        fleet.observers.append(self._on_fleet_change)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of all shadows, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def report(self, alias: str) -> ShadowReport:
        """The results of the alias's shadows, for its present candidate."""
        policy = self._catalogue.current.aliases.get(alias)
        model = None if policy is None or policy.shadow is None else policy.shadow.model
        pair = (alias, model or "")
        return ShadowReport(alias, model, tuple(self._comparisons.get(pair, ())), dict(self._results.get(pair, ())))

    # Called by requests: synchronous, so that no request waits for a shadow.

    def begin(self, policy: Alias, request: InferenceRequest) -> ShadowedRequest | None:
        """Draw whether this request gets a shadow."""
        shadow = policy.shadow
        if shadow is None or self._draw() * 100 >= shadow.percent:
            return None
        if request.upload is not None or len(request.body) > BODY_LIMIT_BYTES:  # an upload cannot be sent twice
            self._count(policy.name, shadow.model, "too_large")
            return None
        return ShadowedRequest(self, policy.name, shadow.model, request)

    def give_way(self, node: str) -> None:
        """Cancel the shadow at a neuron: a request goes there. Every attempt calls this, so it is one look-up."""
        if node in self._running:
            running = self._running[node]
            running.gave_way = True
            running.scope.cancel()

    def start(self, alias: str, model: str, request: InferenceRequest, primary: AnswerSummary) -> None:
        """Start the shadow of a request that has ended, unless too many are waiting."""
        if self._nursery is None or self._waiting >= WAITING_LIMIT:
            self._count(alias, model, "busy")
            return
        self._waiting += 1  # here and not in the task: many requests may end before the first task runs
        self._nursery.start_soon(self._shadow, alias, model, request, primary)

    def stop(self) -> None:
        """Cancel all shadows, and start no more: the gateway drains."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            self._nursery = None

    def _on_fleet_change(self, change: FleetChange) -> None:
        """A load, an unload or a lost neuron: what happens there needs the neuron for itself."""
        self.give_way(change.node)

    # One shadow...

    async def _shadow(self, alias: str, model: str, request: InferenceRequest, primary: AnswerSummary) -> None:
        try:
            route = await self._wait_for_idle_neuron(model)
        finally:
            self._waiting -= 1
        if isinstance(route, Route):
            result = await self._send_and_compare(alias, model, route, request, primary)
        else:
            result = route
        self._count(alias, model, result)

    async def _wait_for_idle_neuron(self, model: str) -> Route | ShadowResult:
        """A route to an idle neuron, or the result if there is none in time.

        There is no checkpoint between the last look at the fleet and the return.
        """
        found: Route | ShadowResult = "busy"
        with trio.move_on_after(WAIT_LIMIT_S):
            while True:
                found = self._find_idle_neuron(model)
                if isinstance(found, Route) or found == "not_loaded":
                    break
                with trio.move_on_after(RECHECK_S):  # other gateways' requests are known from polls only
                    await self._fleet.wait_changed()
        return found

    def _find_idle_neuron(self, model: str) -> Route | ShadowResult:
        try:
            decision = choose(model, self._fleet, self._catalogue.current)
        except errors.GatewayError:
            return "not_loaded"
        if not isinstance(decision, Route):
            return "not_loaded"
        node = self._fleet.nodes[decision.node]
        replica = node.models.get(decision.model_id)
        is_well = replica is not None and replica.breakers_closed
        return decision if is_well and self._is_idle(node) else "busy"

    def _is_idle(self, node: Node) -> bool:
        return not (
            node.name in self._running or any(replica.load or replica.change for replica in node.models.values())
        )

    async def _send_and_compare(
        self, alias: str, model: str, route: Route, request: InferenceRequest, primary: AnswerSummary
    ) -> ShadowResult:
        # No checkpoint since the neuron was found idle, so no request can have got in between.
        running = self._running[route.node] = _RunningShadow()
        shadow: AnswerSummary | None = None
        try:
            with running.scope, self._fleet.shadowing(route.node, route.model_id):
                shadow = await self._send(model, route, request)
        except errors.GatewayError as error:
            log.info("shadow_failed", alias=alias, model=model, node=route.node, reason=str(error))
            return "failed"
        finally:
            del self._running[route.node]
        if shadow is None:
            return "cancelled" if running.gave_way else "failed"
        if not shadow.ok:
            return "failed"
        comparisons = self._comparisons.setdefault((alias, model), deque(maxlen=COMPARISONS_LIMIT))
        comparisons.append(ShadowComparison(request.request_id, primary, shadow))
        return "compared"

    async def _send(self, model: str, route: Route, request: InferenceRequest) -> AnswerSummary:
        outgoing = request.parsed.outgoing(neuron_model_name(route), route.backend)
        headers = outgoing_headers(request, outgoing.path, self._pass_request_headers)
        origin, message = build_request(route, outgoing.path, headers, outgoing.body)
        with PhaseDeadlines(self._deadlines) as phases:
            transcript = Transcript(trio.current_time())
            with self._upstream.exchange(origin, message, phases) as exchange:
                response = await exchange.response()
                response.decode_body()
                await _record(response, transcript, phases)
                return transcript.summary(model, route.node, trio.current_time(), ok=response.status == 200)

    def _count(self, alias: str, model: str, result: ShadowResult) -> None:
        self._results.setdefault((alias, model), Counter())[result] += 1
        self._metrics.shadows(alias, model, result).inc()


async def _record(response: UpstreamResponse, transcript: Transcript, phases: PhaseDeadlines) -> None:
    if not (response.header(b"content-type") or b"").lower().startswith(b"text/event-stream"):
        while chunk := await response.receive():
            transcript.add_body(chunk)
            phases.progressed()
        return
    reader = sse.Reader()
    while chunk := await response.receive():
        transcript.read(reader.feed(chunk), trio.current_time())
        phases.progressed()
    if (last := reader.end()) is not None:
        transcript.read((last,), trio.current_time())
