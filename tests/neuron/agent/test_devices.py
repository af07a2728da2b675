"""Devices and their memory: readings of drivers, and what is measured of an engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from neuron.agent.devices.device_memory import DeviceMemory, MemoryNeed
from neuron.agent.devices.devices import (
    AmdDevices,
    CpuDevice,
    DeviceProcess,
    DeviceUsage,
    HostDevice,
    NvmlDevices,
    open_devices,
)
from neuron.agent.errors import DoesNotFit
from neuron.agent.process.launcher import descendants
from neuron.agent.process.survivors import start_time
from neuron.agent.supervision.state_file import LearntLoad, StateDirectoryInUse, StateFile, locked_state_dir

MIB = 2**20


class NVMLError(Exception):
    pass


def nvml(**broken: object) -> SimpleNamespace:
    """Two GPUs as pynvml shows them."""

    def fail(*_: object) -> None:
        raise NVMLError

    library = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlSystemGetDriverVersion=lambda: b"570.1",
        nvmlSystemGetCudaDriverVersion=lambda: 12080,
        nvmlDeviceGetCudaComputeCapability=lambda _: (9, 0),
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(
            total=80_000 * MIB, used=(1_000 + index) * MIB, free=(79_000 - index) * MIB
        ),
        nvmlDeviceGetName=lambda _: "H",
        nvmlDeviceGetUUID=lambda index: f"GPU-{index}",
        nvmlDeviceGetPowerUsage=lambda _: 123_456,
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=42),
        nvmlDeviceGetTemperature=lambda *_: 61,
        nvmlDeviceGetComputeRunningProcesses=lambda index: [SimpleNamespace(pid=7 + index, usedGpuMemory=500 * MIB)],
    )
    for name in broken:
        setattr(library, name, fail)
    return library


def test_nvidia_devices() -> None:
    devices = NvmlDevices(nvml())  # type: ignore[arg-type]

    assert (devices.driver_version, devices.runtime_version) == ("570.1", "12.8")
    assert devices.infos[1] == HostDevice(1, "H", 80_000, "9.0", "GPU-1")
    assert devices.environment([1, 0]) == {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-0"}
    assert devices.read()[0] == DeviceUsage(0, 1_000, 79_000, 42, 61, 123.456, (DeviceProcess(7, 500),))


def test_readings_that_a_gpu_lacks_are_left_out() -> None:
    broken = dict.fromkeys(("nvmlDeviceGetPowerUsage", "nvmlDeviceGetComputeRunningProcesses"), True)
    usage = NvmlDevices(nvml(**broken)).read()[0]  # type: ignore[arg-type]
    assert (usage.power_w, usage.processes, usage.temperature_c) == (None, (), 61)
    assert NvmlDevices(nvml()).read() != []  # type: ignore[arg-type]


class AmdSmiException(Exception):
    pass


def amdsmi(**broken: object) -> SimpleNamespace:
    """One GPU as amdsmi shows it."""

    def fail(*_: object) -> None:
        raise AmdSmiException

    library = SimpleNamespace(
        AmdSmiException=AmdSmiException,
        AmdSmiMemoryType=SimpleNamespace(VRAM=0),
        AmdSmiTemperatureType=SimpleNamespace(EDGE=0),
        AmdSmiTemperatureMetric=SimpleNamespace(CURRENT=0),
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: ["handle"],
        amdsmi_get_gpu_driver_info=lambda _: {"driver_version": "6.12"},
        amdsmi_get_gpu_memory_total=lambda *_: 192_000 * MIB,
        amdsmi_get_gpu_memory_usage=lambda *_: 2_000 * MIB,
        amdsmi_get_gpu_asic_info=lambda _: {"market_name": "MI300X", "target_graphics_version": "gfx942"},
        amdsmi_get_gpu_device_uuid=lambda _: "uuid",
        amdsmi_get_power_info=lambda _: {"average_socket_power": 250},
        amdsmi_get_gpu_activity=lambda _: {"gfx_activity": 42},
        amdsmi_get_temp_metric=lambda *_: 61,
        amdsmi_get_gpu_process_list=lambda _: [{"pid": 7, "name": "x", "memory_usage": {"vram_mem": 500 * MIB}}],
    )
    for name in broken:
        setattr(library, name, fail)
    return library


def test_amd_devices() -> None:
    devices = AmdDevices(amdsmi())  # type: ignore[arg-type]

    assert list(devices.infos) == [HostDevice(0, "MI300X", 192_000, "gfx942", "uuid")]
    assert (devices.driver_version, devices.environment([0])) == ("6.12", {"ROCR_VISIBLE_DEVICES": "0"})
    assert devices.read() == [DeviceUsage(0, 2_000, 190_000, 42, 61, 250.0, (DeviceProcess(7, 500),))]


def test_readings_that_an_amd_gpu_lacks_are_left_out() -> None:
    names = (
        "amdsmi_get_power_info",
        "amdsmi_get_gpu_activity",
        "amdsmi_get_temp_metric",
        "amdsmi_get_gpu_process_list",
    )
    devices = AmdDevices(amdsmi(**dict.fromkeys(names)))  # type: ignore[arg-type]

    assert devices.read() == [DeviceUsage(0, 2_000, 190_000, 0, 0, None, ())]


@pytest.mark.parametrize(("library", "kind"), [(amdsmi(), AmdDevices), (amdsmi(amdsmi_init=1), CpuDevice)])
def test_amd_is_looked_for_where_there_is_no_nvidia_gpu(library, kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """And if its library fails, the host has a CPU, with the reason."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    devices = open_devices()

    assert type(devices) is kind
    if kind is CpuDevice:
        assert "AMD SMI" in str(devices.unavailable_reason)


def test_cpu_is_one_device_with_the_memory_of_the_machine(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16384000 kB\nMemFree: 1 kB\nMemAvailable: 8192000 kB\n")
    device = CpuDevice("no GPU", meminfo)

    assert device.infos == [HostDevice(0, "cpu", 16_000, "", None)]
    assert (device.read()[0].memory_used_mb, device.read()[0].memory_free_mb) == (8_000, 8_000)
    assert device.unavailable_reason == "no GPU"


class Gpu:
    """One GPU whose readings a test sets."""

    def __init__(self) -> None:
        self.used_mb = 0
        self.processes: tuple[DeviceProcess, ...] = ()

    async def read(self) -> list[DeviceUsage]:
        await trio.lowlevel.checkpoint()
        return [DeviceUsage(0, self.used_mb, 10_000 - self.used_mb, 0, 0, None, self.processes)]

    def memory(self) -> DeviceMemory:
        return DeviceMemory([HostDevice(0, "G", 10_000, "9.0", "GPU-0")], self.read)


async def test_memory_of_an_engine_is_that_of_its_processes() -> None:
    """As the driver lists them, whatever else takes memory meanwhile."""
    gpu = Gpu()
    memory = gpu.memory()
    claim = await memory.admit(MemoryNeed("m", None, 1))
    command = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '600'])"]
    with subprocess.Popen(command) as launcher:  # noqa: ASYNC220 - it starts at once
        try:
            claim.launcher = launcher.pid
            with trio.fail_after(60):
                while not descendants(launcher.pid):
                    await trio.sleep(0.01)
            (engine,) = descendants(launcher.pid)
            gpu.used_mb, gpu.processes = 7_000, (DeviceProcess(engine, 3_000), DeviceProcess(1, 4_000))
            assert await memory.measure(claim) == {0: 3_000}
            memory.settle(claim, {0: 3_000})
            with pytest.raises(DoesNotFit) as caught:
                await memory.admit(MemoryNeed("n", 5_000, 1))
            assert "model 'm' holds 3000 MB, process 1 (" in str(caught.value)
            assert ") holds 4000 MB" in str(caught.value)
            assert str(engine) not in str(caught.value)
            (foreign,) = memory.foreign[0]
            assert (foreign.pid, foreign.memory_mb) == (1, 4_000)
            gpu.processes = (DeviceProcess(engine, 3_000),)
            await memory.refresh()
            assert not any(memory.foreign.values())
        finally:
            for pid in [*descendants(launcher.pid), launcher.pid]:
                os.kill(pid, signal.SIGKILL)


async def test_memory_of_an_engine_that_the_driver_does_not_list_is_the_difference(autojump_clock) -> None:
    gpu = Gpu()
    memory = gpu.memory()
    gpu.used_mb = 1_000
    claim = await memory.admit(MemoryNeed("m", None, 1))
    gpu.used_mb = 5_000
    assert await memory.measure(claim) == {0: 4_000}
    memory.settle(claim, {0: 4_000})
    claim.launcher = 4_000_000
    memory.unsettle(claim, releasing=True)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.wait_until_released, claim, 20.0)
        await trio.sleep(3)
        gpu.used_mb = 1_100
    assert 3 <= trio.current_time() - began < 4


async def test_difference_is_not_measured_while_another_model_changes() -> None:
    gpu = Gpu()
    memory = gpu.memory()
    claim = await memory.admit(MemoryNeed("m", 1_000, 1))
    await memory.admit(MemoryNeed("n", 1_000, 1))
    gpu.used_mb = 2_000
    assert await memory.measure(claim) is None


# The state file .......................................................................................................


async def test_state_survives_a_restart(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    state.learn("x", LearntLoad(5_000, 12.5))
    state.process_started("m", 77, 1234, 20000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.run)
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
    again = StateFile(tmp_path / "state.json")
    again.read()

    assert again.learnt("x") == LearntLoad(5_000, 12.5)
    assert again.learnt("y") == LearntLoad()
    assert again.started() == [(77, 1234)]


async def test_last_change_is_written_at_the_end(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.run)
        await trio.testing.wait_all_tasks_blocked()
        state.learn("x", LearntLoad(1))
        nursery.cancel_scope.cancel()
    again = StateFile(tmp_path / "state.json")
    again.read()
    assert again.learnt("x") == LearntLoad(1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": "x"}', b'{"learnt": {"a": 7}}'])
def test_damaged_state_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    state = StateFile(tmp_path / "state.json")
    state.read()
    assert state.started() == []


def test_state_directory_is_for_one_neuron(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "state"
    with (
        locked_state_dir(folder),
        pytest.raises(StateDirectoryInUse, match=r"another neuron runs with .*: stop it"),
        locked_state_dir(folder),
    ):
        pass
    with locked_state_dir(folder):
        pass


def test_start_time_of_a_process() -> None:
    assert start_time(1) is not None
    assert start_time(2**22 + 1) is None
