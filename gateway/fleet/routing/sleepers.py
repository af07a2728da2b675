"""Models that sleep on a node: where one is, and the memory that waking takes. Pure.

A sleeper's engine runs and keeps its devices, but it has given back most of their memory. To load the model on its node
is to wake it, which takes the devices that it had.
"""

from __future__ import annotations

from math import ceil

from catalogue.models import ModelProfile
from catalogue.placement import share_mb
from gateway.fleet.model_names import neuron_model_id
from gateway.fleet.node import Node, NodeModel

__all__ = ["ASLEEP", "load_share_mb", "sleeper_on"]

ASLEEP = "asleep"


def sleeper_on(node: Node, profile: ModelProfile) -> NodeModel | None:
    """The model of this profile if it sleeps on the node and the node reports on which devices; else None."""
    for name in (profile.id, neuron_model_id(profile)):
        model = node.models.get(name)
        if model is None or model.report is None or model.change == "unloading":
            continue
        if model.report.status == ASLEEP and model.report.devices:  # our load that wakes it may have begun
            return model
    return None


def load_share_mb(profile: ModelProfile, sleeper: NodeModel | None) -> int | None:
    """What must be free on each device of a load, in MB; None if the model's size is unknown.

    Args:
        profile: The model.
        sleeper: What is to be woken, which holds a part already; None for a load from nothing.
    """
    if sleeper is None or sleeper.report is None or profile.vram_mb is None:
        return share_mb(profile)
    count, held_mb = len(sleeper.report.devices), sleeper.report.vram_used_mb or 0
    return max(ceil((profile.vram_mb - held_mb) / count), 0)
