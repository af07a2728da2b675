"""The bodies of `/discovery`, `/health` and `/models`, from the state of the host. Synchronous: one moment each."""

from __future__ import annotations

import platform
import socket
from typing import Any

import trio

from neuron.agent.devices.devices import Devices
from neuron.agent.engines.kinds import traits_of
from neuron.agent.supervision.host import ModelHost
from neuron.agent.supervision.model_status import ModelStatus
from neuron.agent.supervision.model_supervisor import ModelSupervisor

__all__ = ["NeuronViews"]


class NeuronViews:
    """What the neuron reports.

    Args:
        host: Its models.
        devices: Its devices.
    """

    def __init__(self, host: ModelHost, devices: Devices) -> None:
        self._host = host
        self._devices = devices
        self._started_at = trio.current_time()

    def discovery(self) -> dict[str, Any]:
        """`GET /discovery`."""
        found: dict[str, Any] = {
            "hostname": socket.gethostname(),
            "os": _operating_system(),
            "kernel": platform.release(),
            "cuda_version": self._devices.runtime_version,
            "driver_version": self._devices.driver_version,
            "devices": [
                {
                    "index": device.index,
                    "name": device.name,
                    "vram_total_mb": device.memory_total_mb,
                    "compute_capability": device.compute_capability,
                }
                for device in self._devices.infos
            ],
            "harnesses": sorted(self._host.settings.engines),
        }
        if self._devices.unavailable_reason is not None:
            found["cuda_unavailable_reason"] = self._devices.unavailable_reason
        return found

    def health(self) -> dict[str, Any]:
        """`GET /health`."""
        preload = self._host.preload
        return {
            "uptime_secs": int(trio.current_time() - self._started_at),
            "devices": [self._device(device.index) for device in self._devices.infos],
            "activation": {
                "state": "pre_warming" if preload.pending or preload.in_progress else "ready",
                "pending": list(preload.pending),
                "in_progress": preload.in_progress,
                "completed": list(preload.completed),
                "failed": [{"model_id": model_id, "error": error} for model_id, error in preload.failed],
            },
            "models": [
                _counters(supervisor)
                for supervisor in self._host.models.values()
                if supervisor.is_in(ModelStatus.LOADED)
            ],
        }

    def _device(self, index: int) -> dict[str, Any]:
        """What is free is what a load may use: less than the driver reports while a load is under way."""
        memory = self._host.memory
        usage, free_mb = memory.usage.get(index), memory.free_mb(index)
        foreign = [process._asdict() for process in memory.foreign.get(index, ())]
        return {
            "index": index,
            "vram_used_mb": memory.devices[index].memory_total_mb - free_mb,
            "vram_free_mb": free_mb,
            "utilization_pct": 0 if usage is None else usage.utilization_percent,
            "temp_c": 0 if usage is None else usage.temperature_c,
            "power_w": None if usage is None else usage.power_w,
            **({"foreign": foreign} if foreign else {}),
        }

    def models(self) -> list[dict[str, Any]]:
        """`GET /models`."""
        return [_entry(supervisor) for supervisor in self._host.models.values()]

    def capabilities(self, supervisor: ModelSupervisor) -> dict[str, Any]:
        """`GET /models/{id}/capabilities`."""
        return {"id": supervisor.id, **_limit(supervisor)}

    def openai_models(self) -> dict[str, Any]:
        """`GET /v1/models`: what is loaded."""
        entry = {"object": "model", "created": 0, "owned_by": socket.gethostname()}
        return {"object": "list", "data": [{"id": supervisor.id, **entry} for supervisor in self._loaded()]}

    def _loaded(self) -> list[ModelSupervisor]:
        return [supervisor for supervisor in self._host.models.values() if supervisor.is_routable]


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _counters(supervisor: ModelSupervisor) -> dict[str, Any]:
    load = supervisor.load
    return {
        "id": supervisor.id,
        "in_flight": None if load is None else load.in_flight,
        "queue_depth": None if load is None else load.queued,
    }


def _entry(supervisor: ModelSupervisor) -> dict[str, Any]:
    launch = supervisor.running or supervisor.launch
    claim, kind = supervisor.claim, launch.engine.kind
    entry: dict[str, Any] = {
        "id": supervisor.id,
        "harness": launch.model.engine,
        "status": supervisor.reported_status,
        "devices": [] if claim is None else list(claim.devices),
        "vram_used_mb": None if claim is None else claim.total_mb,
        **_limit(supervisor),
        "dialects": list(traits_of(kind).dialects),
    }
    known = {
        "engine": None if kind == "openai" else kind,
        "serves": None if supervisor.served is None else supervisor.served.name,
        "reason": supervisor.reason,
        "progress": supervisor.progress,
        "asleep_level": supervisor.asleep_level if supervisor.is_in(ModelStatus.ASLEEP) else None,
        "notice": "its changed configuration takes effect at the next load"
        if supervisor.changes_at_next_load
        else None,
    }
    return entry | {key: value for key, value in known.items() if value is not None}


_CHANGED = "its changed configuration takes effect at the next load"


def _limit(supervisor: ModelSupervisor) -> dict[str, Any]:
    context = None if supervisor.served is None else supervisor.served.context
    context = context or supervisor.launch.model.context
    return {} if context is None else {"limit": {"context": context, "output": context}}
