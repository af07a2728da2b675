"""Ready-made fleets of simulated neurons, for the demo, the bench and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from neuron.simulated.hardware import PRESETS, SimDevice, SimModel
from neuron.simulated.neuron import SimNeuron


def neuron(
    name: str,
    vram_mb: Sequence[int],
    loaded: Sequence[str] = (),
    *,
    models: Sequence[SimModel] | None = None,
    speed: float = 1.0,
) -> SimNeuron:
    """A neuron with one device per entry of `vram_mb` and, by default, every preset model on disk."""
    devices = [SimDevice(index, f"Simulated {size // 1024} GB", size) for index, size in enumerate(vram_mb)]
    return SimNeuron(name, devices, PRESETS.values() if models is None else models, loaded=loaded, speed=speed)


def demo_fleet(speed: float = 1.0) -> list[SimNeuron]:
    """Three neurons with unequal GPUs, each with something loaded, none of them full.

    `beast` alone can hold the 27B model, `beast` and `benjy` the 14B one, and the 1.7B one is on two of them. The 8B
    one on `beast` sleeps instead of being unloaded.
    """
    sleepy = [replace(model, sleep=int(model.id == "Qwen/Qwen3-8B")) for model in PRESETS.values()]
    return [
        neuron("beast", [24576, 24576], ["Qwen/Qwen3.6-27B", "Qwen/Qwen3-8B"], models=sleepy, speed=speed),
        neuron("benjy", [16384], ["Qwen/Qwen3-1.7B", "Qwen/Qwen3-Embedding-0.6B"], speed=speed),
        neuron("quadbrat", [8192], ["Qwen/Qwen3-1.7B"], speed=speed),
    ]
