"""Polls every neuron and reports to the fleet. Decides nothing; loads and unloads nothing.

One task per neuron, so a neuron that hangs delays no other. A poll has two phases under one deadline: `/health` and
`/models` at once; then `/discovery` of a neuron that is new or restarted, and the inference URLs of models that have
just become routable. Only `/models` decides whether the neuron is up. If another call fails, only its data is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import NoReturn

import structlog
import trio

from catalogue.models import Limit
from gateway.config.settings import NeuronSettings, PollSettings
from gateway.fleet.changes import FleetChange
from gateway.fleet.control.types import (
    ActivationState,
    ControlApi,
    DeviceReading,
    DiscoveredDevice,
    Discovery,
    Health,
    ModelCounters,
    NeuronError,
    NeuronModel,
    Number,
)
from gateway.fleet.node import ROUTABLE_STATUSES, Node
from gateway.fleet.reports import ActivationReport, DeviceReport, ModelReport, NodeReport
from gateway.fleet.state import Fleet

__all__ = ["DOWN_INTERVAL_S", "Poller", "model_report", "poll_once"]

TEXT_LIMIT = 500  # characters of a reason that is shown

log = structlog.get_logger("cortex.poller")

# Polls of one neuron begin at least this far apart, however often `poll_soon` is called: a hundred refused connections
# a second must not become a hundred polls. Far below what a person or a load notices.
POLL_SPACING_S = 0.2

# While a neuron loads a model, it is polled this often, so that those who wait see how far the load is.
LOADING_INTERVAL_S = 2.0

# A neuron that is down is polled this often, so that it is served within two seconds of its return. So is one of which
# both requests and polls have begun to fail, so that it is soon known to be down.
DOWN_INTERVAL_S = 1.0

# Models of one neuron that the gateway takes. Real neurons and engines list a few dozen, hosted APIs a few hundred.
MODELS_PER_NEURON = 1000

# Questions for inference URLs to one neuron at a time.
URL_QUESTIONS_AT_ONCE = 8

# `/health` may take this share of a poll's time. The rest is for the second phase: a neuron whose `/health` hangs may
# serve well, and the URLs of its new models are needed.
HEALTH_SHARE = 0.5


class Poller:
    """Polls all nodes of a fleet.

    Args:
        fleet: Gets every answer and every miss.
        clients: One control API per node of the fleet, by node name. Not closed here.
        settings: The interval, and how long one poll may take.
    """

    def __init__(self, fleet: Fleet, clients: Mapping[str, ControlApi], settings: PollSettings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._nursery: trio.Nursery | None = None
        self._pollers = {name: _NodePoller(fleet, fleet.nodes[name], clients[name], settings) for name in clients}
        fleet.observers.append(_log_change)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Poll until cancelled.

        Ready after one poll of every neuron, answered or not: `timeout_seconds` at most. So the first request finds
        the fleet polled, and a neuron that hangs does not keep the gateway from starting.
        """
        async with trio.open_nursery() as self._nursery:
            pollers = list(self._pollers.values())
            for poller in pollers:
                self._nursery.start_soon(poller.run)
            for poller in pollers:
                await poller.polled.wait()
            task_status.started()
            await trio.sleep_forever()  # neurons may come when none is left

    def add(self, node: str, client: ControlApi) -> None:
        """Poll this neuron too, from now on; or with this client from now on."""
        self.remove(node)
        poller = self._pollers[node] = _NodePoller(self._fleet, self._fleet.nodes[node], client, self._settings)
        if self._nursery is not None:
            self._nursery.start_soon(poller.run)

    def remove(self, node: str) -> trio.Event:
        """End the polls of this neuron: none changes the fleet any more. Returns an event: its client is not used."""
        poller = self._pollers.pop(node, None)
        if poller is None or self._nursery is None:
            ended = trio.Event()
            ended.set()
            return ended
        poller.scope.cancel()
        return poller.ended

    def poll_soon(self, node: str) -> None:
        """Poll this neuron as soon as `POLL_SPACING_S` allows: after a load, an unload, or a request that failed there.

        Several calls before that poll begins count as one. A poll under way does not count: its answer may be older.
        A neuron that was removed is not polled.
        """
        if (poller := self._pollers.get(node)) is not None:
            poller.poll_soon()


async def poll_once(settings: NeuronSettings, client: ControlApi, fleet: Fleet, poll: PollSettings) -> NodeReport:
    """What a neuron answers that the fleet does not have, or not at this address. Raises NeuronError."""
    poller = _NodePoller(fleet, Node(settings), client, poll)
    return await poller.ask(trio.current_time() + poll.timeout_seconds)


class _NodePoller:
    """Polls one neuron, in one task."""

    def __init__(self, fleet: Fleet, node: Node, client: ControlApi, settings: PollSettings) -> None:
        self._fleet = fleet
        self._node = node
        self._client = client
        self._settings = settings
        self._poll_requested = trio.Event()
        self._discovery_due = True
        self._last_began = -inf
        self._is_failing = False
        self.scope = trio.CancelScope()
        self.polled, self.ended = trio.Event(), trio.Event()

    def poll_soon(self) -> None:
        self._poll_requested.set()

    async def run(self) -> None:
        try:
            with self.scope:
                await self._poll_again_and_again()
        finally:
            self.polled.set()
            self.ended.set()

    async def _poll_again_and_again(self) -> NoReturn:
        while True:
            began = trio.current_time()
            self._poll_requested = trio.Event()
            await self._poll()
            self.polled.set()
            self._last_began = began
            interval_s = self._settings.interval_seconds
            if not self._node.healthy or (self._is_failing and self._node.failing_models):
                interval_s = min(interval_s, DOWN_INTERVAL_S)
            if any(model.status == "loading" for model in self._node.models.values()):
                interval_s = min(interval_s, LOADING_INTERVAL_S)
            with trio.move_on_at(began + interval_s):
                await self._poll_requested.wait()
            await trio.sleep_until(began + POLL_SPACING_S)

    async def _poll(self) -> None:
        mark = self._fleet.mark(self._node.name)
        deadline = trio.current_time() + self._settings.timeout_seconds
        failure = report = None
        try:
            report = await self.ask(deadline)
        except NeuronError as error:
            failure = str(error)
        if self.scope.cancel_called:  # the neuron was removed, or has moved: this answer is not about it any more
            return
        if report is None:
            self._failed(failure or "")
        else:
            self._is_failing = False
            self._fleet.answered(self._node.name, report, since=mark)

    def _failed(self, reason: str) -> None:
        """Log the first failure of a row. A neuron that has sent part of an answer since the last poll is not down."""
        node, is_first = self._node, not self._is_failing
        self._is_failing = True
        if self._fleet.is_receiving(node.name, self._last_began):
            self._fleet.poll_overdue(node.name, reason)
        else:
            self._fleet.missed(node.name, reason)
        if is_first:
            log.warning("poll_failed", node=node.name, misses=node.misses, reason=reason)

    async def ask(self, deadline: float) -> NodeReport:
        """One poll. Raises NeuronError if `/models` gave no answer by `deadline`."""
        first = _FirstAnswers()
        async with trio.open_nursery() as nursery:
            health_deadline = deadline - self._settings.timeout_seconds * (1 - HEALTH_SHARE)
            nursery.start_soon(self._ask_health, first, health_deadline)
            nursery.start_soon(self._ask_models, first, deadline)
        if first.failure is not None:
            self._discovery_due = True  # it may come back with other hardware
            raise first.failure
        restarted = self._restarted(first.health)
        self._discovery_due = self._discovery_due or restarted
        second = _SecondAnswers()
        async with trio.open_nursery() as nursery:
            if self._discovery_due:
                nursery.start_soon(self._ask_discovery, second, deadline)
            questions = self._open_questions(first.models, second, again=restarted or self._node.urls_doubtful)
            for _ in range(min(URL_QUESTIONS_AT_ONCE, len(questions))):
                nursery.start_soon(self._ask_urls, second, questions, deadline)
        return self._report(first, second)

    # The questions ....................................................................................................

    async def _ask_health(self, answers: _FirstAnswers, deadline: float) -> None:
        try:
            with trio.move_on_at(deadline):
                answers.health = await self._client.health()
        except NeuronError as error:
            log.debug("health_failed", node=self._node.name, error=str(error))

    async def _ask_models(self, answers: _FirstAnswers, deadline: float) -> None:
        answers.failure = NeuronError(f"/models did not answer within {self._settings.timeout_seconds:g} s")
        try:
            with trio.move_on_at(deadline):
                answers.take_models(await self._client.models(), self._node.models)
                answers.failure = None
                self._log_left_out(answers)
        except NeuronError as error:
            answers.failure = error

    async def _ask_discovery(self, answers: _SecondAnswers, deadline: float) -> None:
        try:
            with trio.move_on_at(deadline):
                answers.discovery = await self._client.discovery()
                self._discovery_due = False
        except NeuronError as error:
            log.debug("discovery_failed", node=self._node.name, error=str(error))

    def _open_questions(self, models: tuple[NeuronModel, ...], answers: _SecondAnswers, *, again: bool) -> deque[str]:
        """Use the known URLs of routable models. Returns the models to ask for: first those whose URL is unknown."""
        unknown: deque[str] = deque()
        doubtful: list[str] = []
        for model in models:
            if model.status not in ROUTABLE_STATUSES:
                continue
            entry = self._node.models.get(model.id)
            known = None if entry is None else entry.url
            if known is None:
                unknown.append(model.id)
                continue
            answers.urls[model.id] = known  # stays if asking again fails
            if again:
                doubtful.append(model.id)
        unknown.extend(doubtful)
        return unknown

    async def _ask_urls(self, answers: _SecondAnswers, questions: deque[str], deadline: float) -> None:
        """Ask until no question is left. Those that the deadline leaves are asked at the next poll."""
        with trio.move_on_at(deadline):
            await trio.lowlevel.checkpoint()  # other workers may have taken the last question
            while questions:
                model_id = questions.popleft()
                try:
                    answers.urls[model_id] = await self._client.endpoint(model_id)
                except NeuronError as error:
                    log.debug("endpoint_failed", node=self._node.name, model=model_id, error=str(error))

    def _log_left_out(self, answers: _FirstAnswers) -> None:
        if answers.left_out and answers.left_out != self._node.models_left_out:
            log.warning("models_left_out", node=self._node.name, models=answers.left_out, taken=len(answers.models))

    # The answers ......................................................................................................

    def _restarted(self, health: Health | None) -> bool:
        if health is None or health.uptime_secs is None or self._node.uptime_s is None:
            return False
        return health.uptime_secs < self._node.uptime_s

    def _report(self, first: _FirstAnswers, second: _SecondAnswers) -> NodeReport:
        health = first.health or Health()
        counters = {counter.id: counter for counter in health.models or ()}
        return NodeReport(
            models=tuple(
                model_report(model, counters.get(model.id), second.urls.get(model.id)) for model in first.models
            ),
            devices=_devices(self._node.devices, second.discovery, health.devices or ()),
            activation=None if first.health is None else _activation(health.activation),
            uptime_s=None if health.uptime_secs is None else float(health.uptime_secs),
            max_prompt_tokens=_max_prompt_tokens(self._node.max_prompt_tokens, second.discovery),
            models_left_out=first.left_out,
        )


@dataclass(slots=True)
class _FirstAnswers:
    """What the first phase of a poll fills in. `failure` is why there are no models, None if there are.

    `left_out` counts the models beyond `MODELS_PER_NEURON`.
    """

    models: tuple[NeuronModel, ...] = ()
    left_out: int = 0
    health: Health | None = None
    failure: NeuronError | None = None

    def take_models(self, listed: tuple[NeuronModel, ...], known: Collection[str]) -> None:
        """Take at most `MODELS_PER_NEURON`: those that can take requests first, then those that are known already."""
        self.left_out = max(len(listed) - MODELS_PER_NEURON, 0)
        if self.left_out:
            listed = tuple(
                sorted(listed, key=lambda model: (model.status not in ROUTABLE_STATUSES, model.id not in known))
            )[:MODELS_PER_NEURON]
        self.models = listed


class _SecondAnswers:
    """What the second phase of a poll fills in; `urls` are the inference URLs by model id."""

    __slots__ = ("discovery", "urls")

    def __init__(self) -> None:
        self.discovery: Discovery | None = None
        self.urls: dict[str, str] = {}


# From the neuron's terms to the fleet's ...............................................................................


def model_report(model: NeuronModel, counter: ModelCounters | None, url: str | None) -> ModelReport:
    """One model as `/models` and `/health` describe it, for the fleet. `url` is the answer of `endpoint`."""
    limit = model.limit
    return ModelReport(
        id=model.id,
        status=model.status,
        harness=model.harness,
        devices=tuple(int(index) for index in model.devices or ()),
        vram_used_mb=_whole(model.vram_used_mb),
        capabilities=model.capabilities,
        limit=None if limit is None else Limit(_whole(limit.context), _whole(limit.input), _whole(limit.output)),
        tool_call=model.tool_call,
        reasoning=model.reasoning,
        servable_ok=model.servable is None or model.servable.ok,
        servable_reason=None if model.servable is None else model.servable.detail or model.servable.reason,
        in_flight=None if counter is None else _whole(counter.in_flight),
        queue_depth=None if counter is None else _whole(counter.queue_depth),
        url=url,
        reason=_text(model.reason),
        progress=_fraction(model.progress),
        engine=_text(model.engine),
        serves=_text(model.serves),
        dialects=_texts(model.dialects),
        asleep_level=model.asleep_level if isinstance(model.asleep_level, int) else None,
    )


def _text(value: object) -> str | None:
    """A short text, or None for anything else."""
    return value[:TEXT_LIMIT] if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else None


def _fraction(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _devices(
    known: tuple[DeviceReport, ...] | None, discovery: Discovery | None, readings: tuple[DeviceReading, ...]
) -> tuple[DeviceReport, ...] | None:
    """The topology of this poll's discovery or an earlier one, with this poll's readings; None while unknown."""
    discovered = None if discovery is None else discovery.devices
    topology = known if discovered is None else tuple(_device(device) for device in discovered)
    if topology is None:
        return None
    by_index = {int(reading.index): reading for reading in readings}
    return tuple(_with_reading(device, by_index.get(device.index)) for device in topology)


def _max_prompt_tokens(known: int | None, discovery: Discovery | None) -> int | None:
    """From this poll's discovery, or else an earlier one."""
    return known if discovery is None else _whole(discovery.max_prompt_tokens)


def _device(device: DiscoveredDevice) -> DeviceReport:
    return DeviceReport(int(device.index), device.name or "", int(device.vram_total_mb), device.compute_capability)


def _with_reading(device: DeviceReport, reading: DeviceReading | None) -> DeviceReport:
    reading = reading or DeviceReading(device.index)
    return DeviceReport(
        device.index,
        device.name,
        device.vram_total_mb,
        device.compute_capability,
        vram_used_mb=_whole(reading.vram_used_mb),
        vram_free_mb=_whole(reading.vram_free_mb),
        utilization_pct=reading.utilization_pct,
        temp_c=reading.temp_c,
        power_w=reading.power_w,
    )


def _activation(state: ActivationState | None) -> ActivationReport:
    if state is None:
        return ActivationReport()
    return ActivationReport(
        state=state.state or "ready",
        in_progress=state.in_progress,
        pending=state.pending or (),
        completed=state.completed or (),
        failed={failed.model_id: failed.error or "" for failed in state.failed or ()},
    )


def _whole(number: Number | None) -> int | None:
    return None if number is None else int(number)


def _log_change(change: FleetChange) -> None:
    facts = {"model": change.model, "before": change.before, "status": change.after, "reason": change.detail}
    known = {key: value for key, value in facts.items() if value is not None}
    emit = log.warning if change.kind in {"neuron_down", "breaker_opened"} else log.info
    emit(change.kind, node=change.node, **known)
