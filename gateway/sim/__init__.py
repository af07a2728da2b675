"""The simulated neuron: the neuron API of contract section 2 for real, without a GPU, and with faults on demand."""

from gateway.sim.fleet import demo_fleet, neuron
from gateway.sim.hardware import PRESETS, SimDevice, SimModel
from gateway.sim.neuron import SimNeuron
from gateway.sim.text import PROBE, PROBE_ANSWER

__all__ = ["PRESETS", "PROBE", "PROBE_ANSWER", "SimDevice", "SimModel", "SimNeuron", "demo_fleet", "neuron"]
