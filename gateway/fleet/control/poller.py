"""Asks every neuron how it is, concurrently, and tells the fleet. Decides nothing; loads and unloads nothing.

One task per neuron, so that a hung one delays nobody. A poll is two phases under one deadline: `/health` and `/models`
at once, then what their answers make us want to know: `/discovery` of a neuron that is new to us or restarted, and the
inference URLs of models that have just become routable. Only `/models` decides whether the neuron is there: the rest
may fail and costs no more than what it would have said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import structlog
import trio

from catalogue.models import Limit
from gateway.config.settings import PollSettings
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
from gateway.fleet.reports import Activation, Device, ModelReport, NodeReport
from gateway.fleet.state import Fleet, FleetChange

log = structlog.get_logger("cortex.poller")

# Polls of one neuron begin at least this far apart, however often it is poked: a hundred refused connections a second
# must not become a hundred polls. Far below what a person or a load would notice.
POKE_SPACING_S = 0.2

# `/health` may take this share of a poll's time: it must leave some for what comes after it, because a neuron whose
# `/health` hangs is otherwise well and its new models want their URLs.
HEALTH_SHARE = 0.5


class Poller:
    """Keeps a fleet's knowledge fresh.

    Args:
        fleet: Told of every answer and every miss.
        clients: One control API per node of the fleet, by node name. Not closed here: whoever built them does.
        settings: How often, and how long one poll may take.
    """

    def __init__(self, fleet: Fleet, clients: Mapping[str, ControlApi], settings: PollSettings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._watches = {name: _Watch(fleet, fleet.nodes[name], clients[name], settings) for name in clients}
        fleet.observers.append(_log_change)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Poll until cancelled.

        Ready after one full round, answered or not: at most `timeout_seconds`. So the first request finds a fleet, and
        a neuron that hangs does not keep the gateway from starting.
        """
        async with trio.open_nursery() as nursery:
            for watch in self._watches.values():
                nursery.start_soon(watch.run)
            for watch in self._watches.values():
                await watch.polled.wait()
            task_status.started()

    def poll_soon(self, node: str) -> None:
        """Poll this neuron as soon as may be: after a load, an unload, or a request that failed there.

        Several pokes before that poll begins are one. A poll under way does not count, it may have seen the past.
        """
        self._watches[node].poll_soon()


class _Watch:
    """One neuron's polling, in one task."""

    def __init__(self, fleet: Fleet, node: Node, client: ControlApi, settings: PollSettings) -> None:
        self._fleet = fleet
        self._node = node
        self._client = client
        self._settings = settings
        self._poked = trio.Event()
        self._discovery_due = True
        self.polled = trio.Event()

    def poll_soon(self) -> None:
        self._poked.set()

    async def run(self) -> NoReturn:
        while True:
            began = trio.current_time()
            self._poked = trio.Event()
            await self._poll()
            self.polled.set()
            with trio.move_on_at(began + self._settings.interval_seconds):
                await self._poked.wait()
            await trio.sleep_until(began + POKE_SPACING_S)

    async def _poll(self) -> None:
        mark = self._fleet.mark(self._node.name)
        deadline = trio.current_time() + self._settings.timeout_seconds
        try:
            report = await self._ask(deadline)
        except NeuronError as error:
            self._fleet.missed(self._node.name, str(error))
        else:
            self._fleet.answered(self._node.name, report, since=mark)

    async def _ask(self, deadline: float) -> NodeReport:
        """One poll. Raises NeuronError if `/models` gave no answer by `deadline`."""
        first = _FirstAnswers()
        async with trio.open_nursery() as nursery:
            health_deadline = deadline - self._settings.timeout_seconds * (1 - HEALTH_SHARE)
            nursery.start_soon(self._ask_health, first, health_deadline)
            nursery.start_soon(self._ask_models, first, deadline)
        if first.failure is not None:
            self._discovery_due = True  # it may come back as another machine
            raise first.failure
        restarted = self._restarted(first.health)
        self._discovery_due = self._discovery_due or restarted
        second = _SecondAnswers()
        async with trio.open_nursery() as nursery:
            if self._discovery_due:
                nursery.start_soon(self._ask_discovery, second, deadline)
            for model in first.models:
                self._find_url(nursery, model, second, deadline, anew=restarted or self._node.urls_doubtful)
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
                answers.models = await self._client.models()
                answers.failure = None
        except NeuronError as error:
            answers.failure = error

    async def _ask_discovery(self, answers: _SecondAnswers, deadline: float) -> None:
        try:
            with trio.move_on_at(deadline):
                answers.discovery = await self._client.discovery()
                self._discovery_due = False
        except NeuronError as error:
            log.debug("discovery_failed", node=self._node.name, error=str(error))

    def _find_url(
        self, nursery: trio.Nursery, model: NeuronModel, answers: _SecondAnswers, deadline: float, *, anew: bool
    ) -> None:
        """The URL we have, if it still holds; else ask, once, when the model has just become routable."""
        if model.status not in ROUTABLE_STATUSES:
            return
        held = self._node.models.get(model.id)
        known = None if held is None else held.url
        if known is not None:
            answers.urls[model.id] = known  # stays if asking anew fails
        if known is None or anew:
            nursery.start_soon(partial(self._ask_url, answers, model.id, deadline))

    async def _ask_url(self, answers: _SecondAnswers, model_id: str, deadline: float) -> None:
        try:
            with trio.move_on_at(deadline):
                answers.urls[model_id] = await self._client.endpoint(model_id)
        except NeuronError as error:
            log.debug("endpoint_failed", node=self._node.name, model=model_id, error=str(error))

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
        )


@dataclass(slots=True)
class _FirstAnswers:
    """What a poll's first phase fills in. `failure` is why there are no models, None if there are."""

    models: tuple[NeuronModel, ...] = ()
    health: Health | None = None
    failure: NeuronError | None = None


class _SecondAnswers:
    """What a poll's second phase fills in: the inference URLs by model id."""

    __slots__ = ("discovery", "urls")

    def __init__(self) -> None:
        self.discovery: Discovery | None = None
        self.urls: dict[str, str] = {}


# From the neuron's terms to the fleet's ...............................................................................


def model_report(model: NeuronModel, counter: ModelCounters | None, url: str | None) -> ModelReport:
    """What `/models` and `/health` say of one model, in the fleet's terms. `url` is as `endpoint` gave it."""
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
    )


def _devices(
    known: tuple[Device, ...] | None, discovery: Discovery | None, readings: tuple[DeviceReading, ...]
) -> tuple[Device, ...] | None:
    """Topology as discovered now or before, with this poll's readings or none. None while nobody has told."""
    told = None if discovery is None else discovery.devices
    topology = known if told is None else tuple(_device(device) for device in told)
    if topology is None:
        return None
    by_index = {int(reading.index): reading for reading in readings}
    return tuple(_with_reading(device, by_index.get(device.index)) for device in topology)


def _max_prompt_tokens(known: int | None, discovery: Discovery | None) -> int | None:
    """As discovered now or before."""
    return known if discovery is None else _whole(discovery.max_prompt_tokens)


def _device(device: DiscoveredDevice) -> Device:
    return Device(int(device.index), device.name or "", int(device.vram_total_mb), device.compute_capability)


def _with_reading(device: Device, reading: DeviceReading | None) -> Device:
    reading = reading or DeviceReading(device.index)
    return Device(
        device.index,
        device.name,
        device.vram_total_mb,
        device.compute_capability,
        vram_used_mb=_whole(reading.vram_used_mb),
        vram_free_mb=_whole(reading.vram_free_mb),
        utilization_pct=reading.utilization_pct,
        temp_c=reading.temp_c,
    )


def _activation(state: ActivationState | None) -> Activation:
    if state is None:
        return Activation()
    return Activation(
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
