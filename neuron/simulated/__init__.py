"""A simulated neuron: the whole neuron API over real sockets, without a GPU, with faults on request.

Here: devices, models, loads, inference at a model's own pace, and every fault an engine is known for. Not here:
anything that imports the gateway; it is an independent peer. Start with `neuron.py`, then `api.py` for the routes.
"""

from neuron.simulated.fleet import demo_fleet, neuron
from neuron.simulated.hardware import PRESETS, SimDevice, SimModel
from neuron.simulated.neuron import SimNeuron
from neuron.simulated.text import PROBE, PROBE_ANSWER

__all__ = ["PRESETS", "PROBE", "PROBE_ANSWER", "SimDevice", "SimModel", "SimNeuron", "demo_fleet", "neuron"]
