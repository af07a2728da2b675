"""What the host has to compute on: GPUs by NVML or AMD SMI, else the CPU with the machine's memory. Reading only.

The libraries block for milliseconds, so callers read in a worker thread (`read` is thread-safe after construction).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

__all__ = [
    "AmdDevices",
    "CpuDevice",
    "DeviceProcess",
    "DeviceUsage",
    "Devices",
    "HostDevice",
    "NvmlDevices",
    "open_devices",
]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HostDevice:
    """What does not change. `uuid` selects the device (`CUDA_VISIBLE_DEVICES`); None for the CPU."""

    index: int
    name: str
    memory_total_mb: int
    compute_capability: str
    uuid: str | None


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that uses a device's memory; whether it is one of ours, the caller knows."""

    pid: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """One device at one moment. `power_w` is None where it cannot be read."""

    index: int
    memory_used_mb: int
    memory_free_mb: int
    utilization_percent: int
    temperature_c: int
    power_w: float | None
    processes: tuple[DeviceProcess, ...]


class Devices(Protocol):
    """The devices of this host."""

    @property
    def infos(self) -> Sequence[HostDevice]:
        """Every device, by index."""
        ...

    @property
    def driver_version(self) -> str | None:
        """Of the GPU driver, or None without one."""
        ...

    @property
    def runtime_version(self) -> str | None:
        """The highest CUDA version that the driver supports, or None."""
        ...

    @property
    def unavailable_reason(self) -> str | None:
        """Why there is no GPU, or None if there is one."""
        ...

    def read(self) -> list[DeviceUsage]:
        """Every device now. Blocks for milliseconds. A device that cannot be read is left out."""
        ...

    def environment(self, indices: Sequence[int]) -> dict[str, str]:
        """The environment variables that show an engine these devices only, in this order."""
        ...


class NvmlDevices:
    """NVIDIA GPUs, by NVML (https://docs.nvidia.com/deploy/nvml-api/).

    Args:
        nvml: The module `pynvml`, initialised.
    """

    unavailable_reason = None

    def __init__(self, nvml: ModuleType) -> None:
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self.infos = [self._info(index, handle) for index, handle in enumerate(self._handles)]
        self.driver_version: str | None = _text(nvml.nvmlSystemGetDriverVersion())
        version = nvml.nvmlSystemGetCudaDriverVersion()
        self.runtime_version: str | None = f"{version // 1000}.{version % 1000 // 10}"

    def _info(self, index: int, handle: object) -> HostDevice:
        nvml = self._nvml
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        total_mb = int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB
        name, uuid = _text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlDeviceGetUUID(handle))
        return HostDevice(index, name, total_mb, f"{major}.{minor}", uuid)

    def read(self) -> list[DeviceUsage]:
        """See `Devices`."""
        readings = []
        for info, handle in zip(self.infos, self._handles, strict=True):
            with suppress(self._nvml.NVMLError):
                readings.append(self._read_one(info.index, handle))
        return readings

    def _read_one(self, index: int, handle: object) -> DeviceUsage:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        power_w, utilization, temperature = None, 0, 0
        processes: tuple[DeviceProcess, ...] = ()
        with suppress(nvml.NVMLError):
            power_w = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        with suppress(nvml.NVMLError):
            utilization = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with suppress(nvml.NVMLError):
            temperature = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        with suppress(nvml.NVMLError):
            processes = tuple(
                DeviceProcess(each.pid, int(each.usedGpuMemory or 0) // MIB)
                for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            )
        used, free = int(memory.used) // MIB, int(memory.free) // MIB
        return DeviceUsage(index, used, free, utilization, temperature, power_w, processes)

    def environment(self, indices: Sequence[int]) -> dict[str, str]:
        """By UUID: indices differ between NVML (PCI order) and CUDA (fastest first)."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.infos[index].uuid or str(index) for index in indices)}


class AmdDevices:
    """AMD GPUs, by AMD SMI (https://rocm.docs.amd.com/projects/amdsmi/).

    Args:
        smi: The module `amdsmi`, initialised.
    """

    unavailable_reason = None
    runtime_version = None

    def __init__(self, smi: ModuleType) -> None:
        self._smi = smi
        self._handles = smi.amdsmi_get_processor_handles()
        self.infos = [self._info(index, handle) for index, handle in enumerate(self._handles)]
        self.driver_version: str | None = None
        with suppress(smi.AmdSmiException, IndexError, KeyError):
            self.driver_version = str(smi.amdsmi_get_gpu_driver_info(self._handles[0])["driver_version"])

    def _info(self, index: int, handle: object) -> HostDevice:
        smi = self._smi
        total_mb = int(smi.amdsmi_get_gpu_memory_total(handle, smi.AmdSmiMemoryType.VRAM)) // MIB
        asic = smi.amdsmi_get_gpu_asic_info(handle)
        uuid = str(smi.amdsmi_get_gpu_device_uuid(handle))
        return HostDevice(
            index, str(asic.get("market_name", "AMD GPU")), total_mb, str(asic.get("target_graphics_version", "")), uuid
        )

    def read(self) -> list[DeviceUsage]:
        """See `Devices`."""
        readings = []
        for info, handle in zip(self.infos, self._handles, strict=True):
            with suppress(self._smi.AmdSmiException):
                readings.append(self._read_one(info, handle))
        return readings

    def _read_one(self, info: HostDevice, handle: object) -> DeviceUsage:
        smi = self._smi
        used_mb = int(smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM)) // MIB
        power_w, utilization, temperature = None, 0, 0
        with suppress(smi.AmdSmiException, KeyError, TypeError, ValueError):
            power_w = float(smi.amdsmi_get_power_info(handle)["average_socket_power"])
        with suppress(smi.AmdSmiException, KeyError, TypeError, ValueError):
            utilization = int(smi.amdsmi_get_gpu_activity(handle)["gfx_activity"])
        with suppress(smi.AmdSmiException, TypeError, ValueError):
            kind, metric = smi.AmdSmiTemperatureType.EDGE, smi.AmdSmiTemperatureMetric.CURRENT
            temperature = int(smi.amdsmi_get_temp_metric(handle, kind, metric))
        processes: tuple[DeviceProcess, ...] = ()
        with suppress(smi.AmdSmiException, KeyError, TypeError, ValueError):
            processes = tuple(
                DeviceProcess(int(each["pid"]), int(each["memory_usage"]["vram_mem"]) // MIB)
                for each in smi.amdsmi_get_gpu_process_list(handle)
            )
        free_mb = max(info.memory_total_mb - used_mb, 0)
        return DeviceUsage(info.index, used_mb, free_mb, utilization, temperature, power_w, processes)

    def environment(self, indices: Sequence[int]) -> dict[str, str]:
        """ROCm takes indices."""
        return {"ROCR_VISIBLE_DEVICES": ",".join(map(str, indices))}


class CpuDevice:
    """The machine's own memory as one device, for engines that run on the CPU.

    Args:
        reason: Why no GPU is used.
        meminfo: Where the kernel reports memory (proc(5)).
    """

    driver_version = None
    runtime_version = None

    def __init__(self, reason: str, meminfo: Path = Path("/proc/meminfo")) -> None:
        self.unavailable_reason: str | None = reason
        self._meminfo = meminfo
        total_mb, _ = self._memory_mb()
        self.infos = [HostDevice(0, "cpu", total_mb, "", None)]

    def _memory_mb(self) -> tuple[int, int]:
        """(total, available)."""
        kib = {}
        for line in self._meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            kib[name] = int(rest.split()[0])
        return kib["MemTotal"] // 1024, kib.get("MemAvailable", kib["MemFree"]) // 1024

    def read(self) -> list[DeviceUsage]:
        """See `Devices`. The utilization is the load average over the number of CPUs."""
        total_mb, free_mb = self._memory_mb()
        utilization = min(100, round(100 * os.getloadavg()[0] / (os.cpu_count() or 1)))
        return [DeviceUsage(0, total_mb - free_mb, free_mb, utilization, 0, None, ())]

    def environment(self, indices: Sequence[int]) -> dict[str, str]:
        """Hide GPUs: an engine that was placed on the CPU stays there."""
        del indices
        return {"CUDA_VISIBLE_DEVICES": ""}


def open_devices() -> Devices:
    """The devices of this host. Opens the vendor's library for the life of the process."""
    try:
        import pynvml  # noqa: PLC0415 - loads the driver's library; not wanted at import

        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount():
            return NvmlDevices(pynvml)
        reason = "NVML finds no GPU"
    except Exception as error:  # noqa: BLE001 - whatever a driver's library raises, the host has no usable NVIDIA GPU
        reason = f"NVML: {error}"
    try:
        import amdsmi  # noqa: PLC0415 - only on hosts with ROCm

        amdsmi.amdsmi_init()
        if amdsmi.amdsmi_get_processor_handles():
            return AmdDevices(amdsmi)
    except Exception as error:  # noqa: BLE001 - as above
        reason += "" if isinstance(error, ImportError) else f"; AMD SMI: {error}"
    return CpuDevice(reason)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
