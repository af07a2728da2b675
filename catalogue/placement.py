"""Where a model may be loaded, and which models it may displace. Pure predicates; free memory is not known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from catalogue.models import ModelProfile

__all__ = ["DeviceCapacity", "feasible", "may_displace"]


class DeviceCapacity(Protocol):
    """What placement needs to know about a GPU."""

    @property
    def index(self) -> int:
        """The neuron's number for it, as in a load call."""

    @property
    def vram_total_mb(self) -> int:
        """All of its memory, used or not, in MB."""


def feasible(profile: ModelProfile, node_name: str, devices: Sequence[DeviceCapacity]) -> tuple[int, ...] | None:
    """The device indices that a load of `profile` on this node would use, or None if the node cannot have the model.

    These are the first `min_devices` devices, in the neuron's order, with at least `min_device_vram_mb`. Free memory
    does not count: the answer is for an empty node.
    """
    if profile.pinned_on and node_name not in profile.pinned_on:
        return None
    floor_mb = profile.min_device_vram_mb or 0
    large_enough = [device.index for device in devices if device.vram_total_mb >= floor_mb]
    if len(large_enough) < profile.min_devices:
        return None
    return tuple(large_enough[: profile.min_devices])


def may_displace(incoming_priority: int, resident_priority: int) -> bool:
    """Whether a model of one priority may evict a model of another.

    `>=`, not `>`: with `>`, a model never gets the memory of another model with the same priority, and whichever was
    loaded first stays.
    """
    return incoming_priority >= resident_priority
