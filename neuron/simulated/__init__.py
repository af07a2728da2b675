"""The simulated neuron: the neuron API of contract section 2 for real, without a GPU, and with faults on demand."""

from neuron.simulated.fleet import demo_fleet, neuron
from neuron.simulated.hardware import PRESETS, SimDevice, SimModel
from neuron.simulated.neuron import SimNeuron
from neuron.simulated.text import PROBE, PROBE_ANSWER

__all__ = ["PRESETS", "PROBE", "PROBE_ANSWER", "SimDevice", "SimModel", "SimNeuron", "demo_fleet", "neuron"]
