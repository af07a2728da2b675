"""Where a model may be loaded and which models it may displace."""

from typing import NamedTuple

import pytest

from catalogue.models import ModelProfile
from catalogue.placement import feasible, may_displace


class Gpu(NamedTuple):
    index: int
    vram_total_mb: int


UNEQUAL = [Gpu(0, 8000), Gpu(1, 24000), Gpu(2, 12000), Gpu(3, 24000)]


@pytest.mark.parametrize(
    ("needs", "devices", "expected"),
    [
        ({}, UNEQUAL, (0,)),
        ({"min_devices": 2}, UNEQUAL, (0, 1)),
        ({"min_device_vram_mb": 12000}, UNEQUAL, (1,)),
        ({"min_devices": 2, "min_device_vram_mb": 12001}, UNEQUAL, (1, 3)),
        ({"min_devices": 3, "min_device_vram_mb": 12001}, UNEQUAL, None),
        ({"min_devices": 5}, UNEQUAL, None),
        ({}, [], None),
        ({"pinned_on": ("beast",)}, UNEQUAL, (0,)),
        ({"pinned_on": ("mule", "beast")}, UNEQUAL, (0,)),
        ({"pinned_on": ("mule",)}, UNEQUAL, None),
        ({"pinned_on": ("Beast",)}, UNEQUAL, None),
        ({"vram_mb": 999_999}, UNEQUAL, (0,)),  # free memory does not count
    ],
)
def test_feasible_names_the_devices_a_load_would_use(needs, devices, expected):
    """The first `min_devices` devices that are large enough, or None."""
    assert feasible(ModelProfile("m", "h", **needs), "beast", devices) == expected


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
