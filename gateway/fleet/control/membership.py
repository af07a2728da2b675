"""`FleetMembership`: neurons come, go and move while requests run. No request is lost for it.

    new       polled at once; gets requests as soon as it has answered
    removed   gets no new requests; is forgotten when its last request and its last job have ended
    changed   asked at its new address first. Its requests go to the old address until it has answered there, or until
              it has not answered `misses` times; those that run there then end there

A neuron whose table is as before is not touched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from functools import partial

import structlog
import trio

from gateway.config.settings import NeuronSettings, PollSettings
from gateway.fleet.control.engine_client import EngineClient
from gateway.fleet.control.neuron_client import NeuronClient
from gateway.fleet.control.poller import DOWN_INTERVAL_S, Poller, poll_once
from gateway.fleet.control.types import NeuronError
from gateway.fleet.node import Node
from gateway.fleet.reports import NodeReport
from gateway.fleet.state import Fleet

__all__ = ["ControlClient", "FleetMembership", "control_client"]

ControlClient = NeuronClient | EngineClient

RECHECK_S = 1.0  # the end of a job wakes no task
JOB_PATIENCE_S = 30.0  # a load or unload under way goes on at the old address for so long; an unload takes seconds
CLOSE_DEADLINE_S = 1.0

log = structlog.get_logger("cortex.membership")


def control_client(neuron: NeuronSettings, instance: str | None = None) -> ControlClient:
    """The control API of a neuron or an engine. `instance` is this gateway's id, see `EngineClient`."""
    if neuron.kind == "openai":
        return EngineClient(neuron, instance=instance)
    return NeuronClient(neuron.endpoint, token=neuron.token)


class FleetMembership:
    """Changes which neurons a fleet has.

    Args:
        fleet: The fleet.
        poller: Polls its neurons.
        clients: One control API per neuron, by name. Changed here; one that is removed is closed here.
        poll: How the new address of a neuron is asked.
        is_busy: Whether a load or unload runs on a node.
        make_client: Makes the control API of a neuron.
    """

    def __init__(
        self,
        fleet: Fleet,
        poller: Poller,
        clients: MutableMapping[str, ControlClient],
        *,
        poll: PollSettings,
        is_busy: Callable[[str], bool],
        make_client: Callable[[NeuronSettings], ControlClient] = control_client,
    ) -> None:
        self._fleet = fleet
        self._poller = poller
        self._clients = clients
        self._poll = poll
        self._is_busy = is_busy
        self._make_client = make_client
        self._nursery: trio.Nursery | None = None
        self._tasks: dict[str, _Task] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the removals and moves, until cancelled. Started at once."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def apply(self, wanted: Collection[NeuronSettings]) -> None:
        """Begin to make the fleet consist of these neurons. Synchronous. Call it while `run` runs."""
        names = {settings.name for settings in wanted}
        for name, node in self._fleet.nodes.items():
            if name not in names:
                self._fleet.remove(name)
                polls_ended = self._poller.remove(name)
                self._start(name, node.settings, partial(self._forget_when_idle, node, polls_ended))
        for settings in wanted:
            self._apply_one(settings)

    def _apply_one(self, settings: NeuronSettings) -> None:
        name, task = settings.name, self._tasks.get(settings.name)
        if name not in self._fleet.nodes:
            is_back = name in self._fleet.leaving
            self._cancel(name)
            self._fleet.add(settings)
            if not is_back:
                self._clients[name] = self._make_client(settings)
            self._poller.add(name, self._clients[name])
            task = None
        now = self._fleet.nodes[name].settings
        if settings == (now if task is None else task.settings):
            return
        self._cancel(name)
        if settings != now:
            self._start(name, settings, partial(self._move, settings))

    def _start(self, name: str, settings: NeuronSettings, run: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is None:
            raise RuntimeError("`run` has not been started")
        self._cancel(name)
        task = self._tasks[name] = _Task(settings)
        self._nursery.start_soon(self._run_task, name, task, run)

    def _cancel(self, name: str) -> None:
        if (task := self._tasks.pop(name, None)) is not None:
            task.scope.cancel()

    async def _run_task(self, name: str, task: _Task, run: Callable[[], Awaitable[None]]) -> None:
        with task.scope:
            await trio.lowlevel.checkpoint()  # it may have been cancelled before it began
            await run()
        if self._tasks.get(name) is task:
            del self._tasks[name]

    # Removed ..........................................................................................................

    async def _forget_when_idle(self, node: Node, polls_ended: trio.Event) -> None:
        while _requests(node) or self._is_busy(node.name):
            with trio.move_on_after(RECHECK_S):
                await self._fleet.wait_changed()
        self._fleet.forget(node.name)
        log.info("neuron_forgotten", node=node.name)
        with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
            await _close(self._clients.pop(node.name), polls_ended)

    # Changed ..........................................................................................................

    async def _move(self, settings: NeuronSettings) -> None:
        name, new, polls_ended = settings.name, self._make_client(settings), None
        unused = new
        try:
            report = await self._ask(settings, new)
            with trio.move_on_after(JOB_PATIENCE_S):
                await self._wait_for_jobs(name)
            await trio.lowlevel.checkpoint()  # the last chance to be cancelled: the swap must be whole
            polls_ended = self._poller.remove(name)
            unused, self._clients[name] = self._clients[name], new
            self._fleet.move(settings, report)
            self._poller.add(name, new)
            await self._wait_for_jobs(name)  # an older one may still use the old client
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                await _close(unused, polls_ended)

    async def _wait_for_jobs(self, node: str) -> None:
        while self._is_busy(node):  # noqa: ASYNC110 - the end of a job wakes no task
            await trio.sleep(RECHECK_S)

    async def _ask(self, settings: NeuronSettings, client: ControlClient) -> NodeReport | None:
        """The first answer at the new address; None if there is none, and then the move goes on without it.

        A neuron that is down at its old address has nothing to lose: it moves at once.
        """
        for attempt in range(self._poll.misses):
            if not self._fleet.nodes[settings.name].healthy:
                return None
            if attempt:
                await trio.sleep(DOWN_INTERVAL_S)
            try:
                return await poll_once(settings, client, self._fleet, self._poll)
            except NeuronError as error:
                log.warning("new_address_does_not_answer", node=settings.name, reason=str(error))
        return None


class _Task:
    """What is under way for one neuron. `settings` are those that it will have."""

    __slots__ = ("scope", "settings")

    def __init__(self, settings: NeuronSettings) -> None:
        self.settings = settings
        self.scope = trio.CancelScope()


def _requests(node: Node) -> int:
    return sum(model.leases + model.shadows for model in node.models.values())


async def _close(client: ControlClient, polls_ended: trio.Event | None) -> None:
    if polls_ended is not None:
        await polls_ended.wait()
    await client.aclose()
