"""Who has how much device memory, and which load may begin. Decisions are synchronous; only readings wait.

A model claims its memory before its engine starts, and keeps the claim until its memory is free again. So two loads
that do not fit together are never started together: the second waits for the first, and is then refused or admitted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from neuron.agent.devices.devices import DeviceProcess, Devices, DeviceUsage, HostDevice
from neuron.agent.devices.process_memory import ForeignProcess, foreign_processes, resident_mb
from neuron.agent.errors import DoesNotFit
from neuron.agent.process.launcher import descendants

__all__ = ["DeviceMemory", "MemoryClaim", "MemoryNeed", "read_in_thread"]

READ_INTERVAL_S = 2.0
RELEASE_POLL_S = 0.25
RELEASED_SHARE = 0.9
"""Of the memory that an engine had: drivers keep a little."""

log = structlog.get_logger("cortex.neuron.memory")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a load wants.

    Args:
        model_id: For messages.
        memory_mb: On all devices together; None if unknown.
        device_count: Over how many devices it spreads.
        devices: The devices to use, or None for a choice by free memory.
    """

    model_id: str
    memory_mb: int | None
    device_count: int
    devices: tuple[int, ...] | None = None


@dataclass(slots=True, eq=False)
class MemoryClaim:
    """Device memory of one model.

    Args:
        model_id: The model.
        memory_mb: By device index; None while unknown.
        devices: The devices, ascending.
        free_before_mb: What each device had free before the load.
        disturbed: Other models have taken or freed memory on these devices since.
        settled: The engine is ready and has all its memory. False during loads, restarts and unloads.
        releasing: The engine has ended or is ending.
        launcher: The process id of the engine's launcher, to tell its memory from that of foreign processes.
        pids: The engine's processes that the driver has listed.
        free_at_stop_mb: What each device had free when the engine was asked to stop.
    """

    model_id: str
    devices: tuple[int, ...]
    memory_mb: dict[int, int] | None
    free_before_mb: dict[int, int] = field(default_factory=dict)
    disturbed: bool = False
    settled: bool = False
    releasing: bool = False
    launcher: int | None = None
    pids: frozenset[int] = frozenset()
    free_at_stop_mb: dict[int, int] = field(default_factory=dict)

    @property
    def total_mb(self) -> int | None:
        """On all devices together, or None while unknown."""
        return None if self.memory_mb is None else sum(self.memory_mb.values())


def read_in_thread(devices: Devices) -> Callable[[], Awaitable[list[DeviceUsage]]]:
    """Readings of these devices, one at a time, in a thread of their own: drivers block, some for seconds."""
    return partial(trio.to_thread.run_sync, devices.read, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))


class DeviceMemory:
    """The memory of this host's devices.

    Args:
        devices: What does not change about them.
        read: Reads them now.
    """

    def __init__(self, devices: Sequence[HostDevice], read: Callable[[], Awaitable[list[DeviceUsage]]]) -> None:
        self.devices = {device.index: device for device in devices}
        self._read = read
        self._claims: list[MemoryClaim] = []
        self._changed = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self.usage: dict[int, DeviceUsage] = {}
        self.foreign: dict[int, tuple[ForeignProcess, ...]] = {}
        """By device, the processes that have memory there and are none of ours."""

    # Readings .........................................................................................................

    async def run(self) -> None:
        """Read the devices every few seconds, forever."""
        while True:
            await self.refresh()
            await trio.sleep(READ_INTERVAL_S)

    async def refresh(self) -> None:
        """Read the devices now. A device that cannot be read keeps its last reading."""
        self.usage |= {usage.index: usage for usage in await self._read()}
        processes = {index: usage.processes for index, usage in self.usage.items() if usage.processes}
        launchers = [claim.launcher for claim in self._claims if claim.launcher is not None]
        if processes or self.foreign:
            self.foreign = await trio.to_thread.run_sync(
                foreign_processes, processes, launchers, abandon_on_cancel=True, limiter=self._limiter
            )

    def free_mb(self, index: int) -> int:
        """What a new load may use: what is free now and not awaited by a load under way, nor claimed by a model."""
        total, usage = self.devices[index].memory_total_mb, self.usage.get(index)
        free = total if usage is None else usage.memory_free_mb
        claimed = {claim: (claim.memory_mb or {}).get(index, 0) for claim in self._claims}
        free -= sum(mb for claim, mb in claimed.items() if not claim.settled and not claim.releasing)
        return max(min(free, total - sum(claimed.values())), 0)

    # Claims ...........................................................................................................

    async def admit(self, need: MemoryNeed) -> MemoryClaim:
        """Wait until the load may begin; return its claim, which the caller releases.

        Raises:
            DoesNotFit: And no load or unload is under way that could change it.
        """
        self._refuse_impossible(need)
        while True:
            await self.refresh()
            changed = self._changed
            claim = self._decide(need)
            if claim is not None:
                self._claims.append(claim)
                self._changed_on(claim)
                return claim
            await changed.wait()

    def settle(self, claim: MemoryClaim, memory_mb: dict[int, int] | None) -> None:
        """The engine is ready and has this much memory."""
        if memory_mb is not None:
            claim.memory_mb = memory_mb
        claim.settled = True
        self._changed_on(claim)

    def unsettle(self, claim: MemoryClaim, *, releasing: bool = False) -> None:
        """The engine is about to take its memory again, or to give it back."""
        claim.settled, claim.releasing = False, releasing
        if claim.launcher is not None:  # otherwise it has ended before, and its memory may be free already
            claim.free_at_stop_mb = self._free_now(claim.devices)
        self._changed_on(claim)

    def release(self, claim: MemoryClaim) -> None:
        """The memory is free."""
        if claim in self._claims:
            self._claims.remove(claim)
        self._changed_on(claim)

    def _changed_on(self, changed: MemoryClaim) -> None:
        for claim in self._claims:
            if claim is not changed and set(claim.devices) & set(changed.devices):
                claim.disturbed = True
        self._changed.set()
        self._changed = trio.Event()

    def _refuse_impossible(self, need: MemoryNeed) -> None:
        unknown = [index for index in need.devices or () if index not in self.devices]
        if unknown:
            raise DoesNotFit(f"no such device: {unknown[0]}; this host has {len(self.devices)}")
        if need.device_count > len(self.devices):
            text = f"needs {need.device_count} devices; this host has {len(self.devices)}"
            raise DoesNotFit(f"model '{need.model_id}' {text}")

    def _decide(self, need: MemoryNeed) -> MemoryClaim | None:
        """A claim, or None to wait. Raises DoesNotFit."""
        free = {index: self.free_mb(index) for index in self.devices}
        emptiest = sorted(self.devices, key=lambda index: (-free[index], index))[: need.device_count]
        chosen = tuple(sorted(need.devices or emptiest))
        under_way = [claim for claim in self._claims if not claim.settled and set(claim.devices) & set(chosen)]
        # What a load of unknown size will take cannot be subtracted, and two of them cannot be measured apart.
        if under_way and (need.memory_mb is None or any(claim.memory_mb is None for claim in under_way)):
            return None
        share = 0 if need.memory_mb is None else -(-need.memory_mb // len(chosen))
        if any(free[index] < share for index in chosen):
            if under_way:
                return None
            raise DoesNotFit(self._explain(need, chosen, share))
        memory_mb = None if need.memory_mb is None else dict.fromkeys(chosen, share)
        return MemoryClaim(need.model_id, chosen, memory_mb, self._free_now(chosen))

    def _free_now(self, indices: Sequence[int]) -> dict[int, int]:
        return {index: self.usage[index].memory_free_mb for index in indices if index in self.usage}

    def _explain(self, need: MemoryNeed, chosen: Sequence[int], share: int) -> str:
        short = [index for index in chosen if self.free_mb(index) < share]
        text = f"model '{need.model_id}' does not fit: it needs {share} MB on each of {len(chosen)} device(s)"
        return "; ".join([text, *(self._explain_device(index) for index in short)])

    def _explain_device(self, index: int) -> str:
        holders = [
            f"model '{claim.model_id}' holds {claim.memory_mb[index]} MB"
            for claim in self._claims
            if claim.memory_mb is not None and index in claim.memory_mb
        ]
        holders += [
            f"process {process.pid} ({process.name}) holds {process.memory_mb} MB"
            for process in self.foreign.get(index, ())
        ]
        total = self.devices[index].memory_total_mb
        held = ", ".join(holders) or "other processes hold the rest"
        return f"device {index} has {self.free_mb(index)} of {total} MB free: {held}"

    # Measuring ........................................................................................................

    async def measure(self, claim: MemoryClaim) -> dict[int, int] | None:
        """How much memory an engine that is ready has, by device; None if that is unknown.

        By the driver's list of processes; else, as in containers, by the difference to before the load, unless other
        models have changed meanwhile. For an engine on the CPU: its resident memory.
        """
        await self.refresh()
        pids = [] if claim.launcher is None else descendants(claim.launcher)
        if all(self.devices[index].uuid is None for index in claim.devices):
            return {index: resident_mb(pids) // len(claim.devices) for index in claim.devices}
        listed = {index: self._processes_of(pids, index) for index in claim.devices}
        claim.pids = frozenset(process.pid for found in listed.values() for process in found)
        if claim.pids:
            return {index: sum(process.memory_mb for process in found) for index, found in listed.items()}
        free = self._free_now(claim.devices)
        taken = {index: max(claim.free_before_mb.get(index, mb) - mb, 0) for index, mb in free.items()}
        return taken if any(taken.values()) and not claim.disturbed else None

    async def begin_measurement(self, claim: MemoryClaim) -> None:
        """Note what is free now, for a `measure` of the difference."""
        await self.refresh()
        claim.free_before_mb, claim.disturbed = self._free_now(claim.devices), False

    async def measure_rest(self, claim: MemoryClaim) -> dict[int, int]:
        """How much memory an engine still has that has gone to sleep since `begin_measurement`.

        0 where that is unknown: no load is admitted to memory that the driver reports as used.
        """
        held = claim.memory_mb or {}
        before, after = dict(claim.free_before_mb), await self.measure(claim)
        if claim.pids and after is not None:
            return after
        free = self._free_now(claim.devices)
        if claim.disturbed:
            return dict.fromkeys(claim.devices, 0)
        return {i: max(held.get(i, 0) - max(free.get(i, 0) - before.get(i, 0), 0), 0) for i in claim.devices}

    def _processes_of(self, pids: Sequence[int], index: int) -> list[DeviceProcess]:
        usage, own = self.usage.get(index), set(pids)
        return [] if usage is None else [process for process in usage.processes if process.pid in own]

    async def wait_until_released(self, claim: MemoryClaim, release_s: float) -> None:
        """Return when the memory of an engine that has ended is free, or after `release_s`."""
        with trio.move_on_after(release_s) as deadline:
            while True:
                await self.refresh()
                if all(self._is_released(claim, index) for index in claim.devices):
                    return
                await trio.sleep(RELEASE_POLL_S)
        if deadline.cancelled_caught and release_s:
            log.warning("memory_not_released", model=claim.model_id, waited_s=release_s)

    def _is_released(self, claim: MemoryClaim, index: int) -> bool:
        """By the driver's list of processes; where that has never shown the engine, by the free memory."""
        usage, at_stop_mb = self.usage.get(index), claim.free_at_stop_mb.get(index)
        if usage is None or self.devices[index].uuid is None:
            return True  # the memory of a process of the host is free when it has ended
        if claim.pids:
            return not any(process.pid in claim.pids for process in usage.processes)
        if at_stop_mb is None:
            return True
        held_mb = (claim.memory_mb or {}).get(index, 0)
        wanted_mb = at_stop_mb + RELEASED_SHARE * held_mb
        if not claim.disturbed and index in claim.free_before_mb:  # the last reading may be older than its memory
            wanted_mb = min(wanted_mb, claim.free_before_mb[index] - (1 - RELEASED_SHARE) * held_mb)
        return usage.memory_free_mb >= wanted_mb
