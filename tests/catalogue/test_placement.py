"""Where a model may be loaded and which models it may displace."""

from typing import NamedTuple

import pytest

from catalogue.models import ModelProfile
from catalogue.placement import may_displace, usable_devices


class Gpu(NamedTuple):
    index: int
    vram_total_mb: int


UNEQUAL = [Gpu(0, 8000), Gpu(1, 24000), Gpu(2, 12000), Gpu(3, 24000)]


@pytest.mark.parametrize(
    ("needs", "devices", "expected"),
    [
        ({}, UNEQUAL, (0, 1, 2, 3)),
        ({"min_devices": 2}, UNEQUAL, (0, 1, 2, 3)),
        ({"min_device_vram_mb": 12000}, UNEQUAL, (1, 2, 3)),
        ({"min_devices": 2, "min_device_vram_mb": 12001}, UNEQUAL, (1, 3)),
        ({"min_devices": 3, "min_device_vram_mb": 12001}, UNEQUAL, None),
        ({"min_devices": 5}, UNEQUAL, None),
        ({}, [], None),
        ({"pinned_on": ("beast",)}, UNEQUAL, (0, 1, 2, 3)),
        ({"pinned_on": ("mule", "beast")}, UNEQUAL, (0, 1, 2, 3)),
        ({"pinned_on": ("mule",)}, UNEQUAL, None),
        ({"pinned_on": ("Beast",)}, UNEQUAL, None),
        # The size counts: each device must be able to hold the model's share.
        ({"vram_mb": 12000}, UNEQUAL, (1, 2, 3)),
        ({"vram_mb": 12001}, UNEQUAL, (1, 3)),
        ({"vram_mb": 24000}, UNEQUAL, (1, 3)),
        ({"vram_mb": 24001}, UNEQUAL, None),
        ({"vram_mb": 48000, "min_devices": 2}, UNEQUAL, (1, 3)),
        ({"vram_mb": 48001, "min_devices": 2}, UNEQUAL, None),
        ({"vram_mb": 36000, "min_devices": 3}, UNEQUAL, (1, 2, 3)),
        ({"vram_mb": 36001, "min_devices": 3}, UNEQUAL, None),  # a third is not a whole number: 12,000.3
        ({"vram_mb": 32000, "min_devices": 4}, UNEQUAL, (0, 1, 2, 3)),
        ({"vram_mb": 32001, "min_devices": 4}, UNEQUAL, None),
        ({"vram_mb": 8000, "min_device_vram_mb": 24000}, UNEQUAL, (1, 3)),  # the larger of the two floors
        ({"vram_mb": 24000, "min_device_vram_mb": 8000}, UNEQUAL, (1, 3)),
        ({}, [Gpu(7, 8000), Gpu(2, 8000)], (2, 7)),
    ],
)
def test_usable_devices_are_those_that_are_large_enough(needs, devices, expected):
    """Ascending; None if there are fewer than the model needs."""
    assert usable_devices(ModelProfile("m", "h", **needs), "beast", devices) == expected


def test_models_of_equal_priority_may_displace_each_other():
    """In both directions; otherwise a swap would work only once."""
    assert may_displace(100, 100)
    assert may_displace(1000, 100)
    assert not may_displace(100, 1000)


@pytest.mark.parametrize(
    ("keys", "priority"),
    [
        ({}, 100),
        ({"pinned_on": ("beast",)}, 1000),
        ({"pinned_on": ("beast",), "residency_priority": 7}, 7),
        ({"residency_priority": -5}, -5),
    ],
)
def test_priority_is_as_given_or_follows_from_pinned_on(keys, priority):
    """A pinned model has a high priority unless its profile sets another."""
    assert ModelProfile("m", "h", **keys).priority == priority
