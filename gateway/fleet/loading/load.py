"""A load, step by step: room, the call, and where the neuron serves the model then. What and where, others decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
import trio

from catalogue.models import ModelProfile
from gateway.fleet.control.poller import model_report
from gateway.fleet.control.types import LoadingApi, NeuronError
from gateway.fleet.loading.backoff import Backoffs
from gateway.fleet.loading.load_history import Load, Loads, Postponed
from gateway.fleet.loading.make_room import Room
from gateway.fleet.node import ROUTABLE_STATUSES
from gateway.fleet.routing.choose import Candidate, neuron_model_id
from gateway.fleet.state import Fleet

__all__ = ["Loader"]

CONTROL_DEADLINE_S = 10.0  # for the short questions after a load: what it calls the model, and where
ASK_INTERVAL_S = 0.05

log = structlog.get_logger("cortex.lifecycle")


class Loader:
    """Loads, in its caller's task.

    Args:
        fleet: Told of a load that went well.
        neurons: One control API per node, by name.
        room: Makes it first.
        loads: Told how long it took.
        backoffs: Told whether it failed.
        load_s: `deadlines.load_seconds`; the call itself may take twice as long, for whoever comes later.
        poke: Asks for a poll of a node.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        neurons: Mapping[str, LoadingApi],
        room: Room,
        loads: Loads,
        backoffs: Backoffs,
        load_s: float,
        poll_soon: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._neurons = neurons
        self._room = room
        self._loads = loads
        self._backoffs = backoffs
        self._load_s = load_s
        self._poke = poll_soon

    async def load(self, load: Load, profile: ModelProfile, candidate: Candidate) -> None:
        """From the first unload to the last question. The load's story says how it ended."""
        log.info("load_started", node=load.node, model=load.model, devices=candidate.devices)
        allowed_s = 2 * self._load_s
        reason: str | None = None
        try:
            load.scope.deadline = trio.current_time() + allowed_s
            with load.scope:
                reason = await self._try_load(load, profile, candidate)
            if load.scope.cancelled_caught:
                reason = load.cancelled_for or f"no answer to the load call within {allowed_s:g} s"
            self._note_outcome(load, reason)
        except Postponed as news:
            log.info("load_postponed", node=load.node, model=load.model, reason=str(news))
            load.story.outcome, load.story.reason = "postponed", str(news)
            await self._look_again(load)

    async def _try_load(self, load: Load, profile: ModelProfile, candidate: Candidate) -> str | None:
        """Why it failed, or None. Raises Postponed."""
        neuron = self._neurons[load.node]
        try:
            await self._room.make(load.story, profile, candidate)
            await neuron.load(
                neuron_model_id(profile),
                profile.harness,
                quant=profile.quant,
                tensor_parallel=profile.min_devices if profile.min_devices > 1 else None,
                devices=candidate.devices,
            )
            with trio.fail_after(CONTROL_DEADLINE_S):
                await self._introduce(load, profile, neuron)
        except NeuronError as error:
            return str(error)
        except trio.TooSlowError:
            return f"it loaded the model, but did not say where within {CONTROL_DEADLINE_S:g} s"
        return None

    async def _introduce(self, load: Load, profile: ModelProfile, neuron: LoadingApi) -> None:
        """Find out what the neuron calls the model now, and where it serves it: then it is routable."""
        names = {profile.id, neuron_model_id(profile)}
        for model in await neuron.models():
            if model.id in names and model.status in ROUTABLE_STATUSES:
                report = model_report(model, None, await neuron.endpoint(model.id))
                if report.id != profile.id:
                    self._fleet.dropped(load.node, profile.id)
                self._fleet.loaded(load.node, report)
                return
        raise NeuronError(f"it said that '{profile.id}' is loaded, but does not list it")

    async def _look_again(self, load: Load) -> None:
        """Wait for a poll, so that those who wait decide anew on what is, not on what was: it may even be there."""
        self._fleet.unchanged(load.node, load.model)
        self._poke(load.node)
        with trio.move_on_after(CONTROL_DEADLINE_S):
            while True:  # a poll is not an event of the fleet's, and this path is rare
                await trio.sleep(ASK_INTERVAL_S)
                if self._fleet.is_confirmed(load.node):
                    return

    def _note_outcome(self, load: Load, reason: str | None) -> None:
        took_s = trio.current_time() - load.began
        load.story.outcome, load.story.reason = "failed" if reason else "loaded", reason
        if reason is None:
            self._loads.note_time(load, took_s)
            self._backoffs.forget(load.node, load.model)
            log.info("load_finished", node=load.node, model=load.model, took_s=round(took_s, 3))
        else:
            self._backoffs.note_failure(load.node, load.model, reason)
            log.warning("load_failed", node=load.node, model=load.model, took_s=round(took_s, 3), reason=reason)
