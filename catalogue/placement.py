"""Where a model may be loaded, and which models it may displace. Pure predicates; free memory is not known here."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Protocol

from catalogue.models import ModelProfile

__all__ = ["DeviceCapacity", "device_floor_mb", "may_displace", "share_mb", "usable_devices"]


class DeviceCapacity(Protocol):
    """What placement needs to know about a GPU."""

    @property
    def index(self) -> int:
        """The neuron's number for it, as in a load call."""

    @property
    def vram_total_mb(self) -> int:
        """All of its memory, used or not, in MB."""


def usable_devices(profile: ModelProfile, node_name: str, devices: Sequence[DeviceCapacity]) -> tuple[int, ...] | None:
    """The indices of the devices that are large enough, ascending; None if the node cannot have the model.

    A load uses `min_devices` of them. Free memory does not count: the answer is for an empty node.
    """
    if profile.pinned_on and node_name not in profile.pinned_on:
        return None
    floor_mb = device_floor_mb(profile)
    usable = sorted(device.index for device in devices if device.vram_total_mb >= floor_mb)
    return tuple(usable) if len(usable) >= profile.min_devices else None


def device_floor_mb(profile: ModelProfile) -> int:
    """How much memory each of the model's devices must have in all, in MB; 0 for any device."""
    return max(profile.min_device_vram_mb or 0, share_mb(profile) or 0)


def share_mb(profile: ModelProfile) -> int | None:
    """What the model takes on each of its devices, in MB: it is split evenly. None if its size is unknown."""
    return None if profile.vram_mb is None else ceil(profile.vram_mb / profile.min_devices)


def may_displace(incoming_priority: int, resident_priority: int) -> bool:
    """Whether a model of one priority may evict a model of another.

    `>=`, not `>`: with `>`, a model never gets the memory of another model with the same priority, and whichever was
    loaded first stays.
    """
    return incoming_priority >= resident_priority
