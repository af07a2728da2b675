"""One load, step by step: make room, call the neuron, find the inference URL. `scheduler.py` decides what and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
import trio

from catalogue.models import ModelProfile
from gateway.fleet.control.poller import model_report
from gateway.fleet.control.types import LoadingApi, NeuronError
from gateway.fleet.loading.backoff import LoadBackoffs
from gateway.fleet.loading.load_history import Load, LoadHistory, LoadPostponed
from gateway.fleet.loading.make_room import RoomMaker
from gateway.fleet.model_names import neuron_model_id
from gateway.fleet.node import ROUTABLE_STATUSES
from gateway.fleet.routing.placement import Candidate
from gateway.fleet.state import Fleet

__all__ = ["Loader"]

CONTROL_DEADLINE_S = 10.0  # for the questions after a load: the model's name there, and its URL
ASK_INTERVAL_S = 0.05

log = structlog.get_logger("cortex.lifecycle")


class Loader:
    """Loads a model in the caller's task.

    Args:
        fleet: Updated when the model is loaded.
        neurons: One control API per node, by name.
        room_maker: Evicts models before the load.
        history: Gets the time that the load took.
        backoffs: Gets the failure or the success.
        load_s: `deadlines.load_seconds`. The load call may take twice as long, for the benefit of later requests.
        poll_soon: Asks for a poll of a node.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        neurons: Mapping[str, LoadingApi],
        room_maker: RoomMaker,
        history: LoadHistory,
        backoffs: LoadBackoffs,
        load_s: float,
        poll_soon: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._neurons = neurons
        self._room_maker = room_maker
        self._history = history
        self._backoffs = backoffs
        self._load_s = load_s
        self._poll_soon = poll_soon

    async def load(self, load: Load, profile: ModelProfile, candidate: Candidate) -> None:
        """From the first eviction to the last question. `load.record` gets the outcome; nothing is raised for it."""
        log.info("load_started", node=load.node, model=load.model, devices=candidate.devices)
        allowed_s = 2 * self._load_s
        reason: str | None = None
        try:
            load.scope.deadline = trio.current_time() + allowed_s
            with load.scope:
                reason = await self._try_load(load, profile, candidate)
            if load.scope.cancelled_caught:
                reason = load.cancelled_for or f"the neuron did not answer the load call within {allowed_s:g} s"
            self._note_outcome(load, reason)
        except LoadPostponed as postponed:
            log.info("load_postponed", node=load.node, model=load.model, reason=str(postponed))
            load.record.outcome, load.record.reason = "postponed", str(postponed)
            await self._wait_for_poll(load)

    async def _try_load(self, load: Load, profile: ModelProfile, candidate: Candidate) -> str | None:
        """Why the load failed, or None. Raises LoadPostponed."""
        neuron = self._neurons[load.node]
        try:
            await self._room_maker.make_room(load.record, profile, candidate)
            await neuron.load(
                neuron_model_id(profile),
                profile.harness,
                quant=profile.quant,
                tensor_parallel=profile.min_devices if profile.min_devices > 1 else None,
                devices=candidate.devices,
            )
            with trio.fail_after(CONTROL_DEADLINE_S):
                await self._make_routable(load, profile, self._neurons[load.node])  # it may have moved meanwhile
        except NeuronError as error:
            return str(error)
        except trio.TooSlowError:
            return f"the neuron loaded the model, but did not report its URL within {CONTROL_DEADLINE_S:g} s"
        return None

    async def _make_routable(self, load: Load, profile: ModelProfile, neuron: LoadingApi) -> None:
        """Ask under which name the neuron lists the model and at which URL it serves it, and tell the fleet."""
        names = {profile.id, neuron_model_id(profile)}
        for model in await neuron.models():
            if model.id in names and model.status in ROUTABLE_STATUSES:
                report = model_report(model, None, await neuron.endpoint(model.id))
                if report.id != profile.id:
                    self._fleet.dropped(load.node, profile.id)
                self._fleet.loaded(load.node, report)
                return
        raise NeuronError(f"the neuron reported that '{profile.id}' is loaded, but does not list it")

    async def _wait_for_poll(self, load: Load) -> None:
        """Wait for a fresh poll, so that the waiting requests decide again by current facts."""
        self._fleet.unchanged(load.node, load.model)
        self._poll_soon(load.node)
        with trio.move_on_after(CONTROL_DEADLINE_S):
            while True:  # the fleet has no event for a poll, and this path is rare
                await trio.sleep(ASK_INTERVAL_S)
                if self._fleet.is_confirmed(load.node):
                    return

    def _note_outcome(self, load: Load, reason: str | None) -> None:
        took_s = trio.current_time() - load.began_at
        load.record.outcome, load.record.reason = "failed" if reason else "loaded", reason
        if reason is None:
            self._history.note_time(load, took_s)
            self._backoffs.forget(load.node, load.model)
            log.info("load_finished", node=load.node, model=load.model, took_s=round(took_s, 3))
        else:
            self._backoffs.note_failure(load.node, load.model, reason)
            log.warning("load_failed", node=load.node, model=load.model, took_s=round(took_s, 3), reason=reason)
