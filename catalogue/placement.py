"""Where a model may go, and what it may push out: pure predicates. What is free right now is the fleet's business.

The rules are the contract's, section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from catalogue.models import ModelProfile


class Device(Protocol):
    """A GPU as its neuron describes it."""

    @property
    def index(self) -> int:
        """The neuron's number for it; what a load call names."""

    @property
    def vram_total_mb(self) -> int:
        """All of its memory, used or not."""


def feasible(profile: ModelProfile, node_name: str, devices: Sequence[Device]) -> tuple[int, ...] | None:
    """The device indices a load of `profile` on this node would use, or None if the node cannot have it.

    The first `min_devices` devices, in the neuron's own order, that reach `min_device_vram_mb`. Says nothing about
    free memory: feasible is what the topology allows, on an empty node.
    """
    if profile.pinned_on and node_name not in profile.pinned_on:
        return None
    floor_mb = profile.min_device_vram_mb or 0
    large_enough = [device.index for device in devices if device.vram_total_mb >= floor_mb]
    if len(large_enough) < profile.min_devices:
        return None
    return tuple(large_enough[: profile.min_devices])


def may_displace(incoming_priority: int, resident_priority: int) -> bool:
    """Whether a model of one residency class may evict one of another.

    `>=`, not `>`: with `>` two models of the same class swap one way only (lessons.md).
    """
    return incoming_priority >= resident_priority
