"""The devices of a load: tables of a node's memory and residents, and what a load takes and evicts there."""

from __future__ import annotations

import itertools
import time

import pytest
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from gateway.errors import NoFeasibleNeuron
from gateway.fleet.loading.eviction import find_victims_young_last, rank_candidates, room_may_come
from gateway.fleet.loading.load_history import LoadHistory
from gateway.fleet.routing.choose import choose
from gateway.fleet.routing.placement import MAX_DEVICE_SETS, Fit, candidate_on, devices_for
from gateway.fleet.routing.victims import find_victims

FREE, EVICT, UNKNOWN, FULL = Fit.FREE, Fit.AFTER_EVICTION, Fit.UNKNOWN, Fit.FULL


class Box:
    """One node. `free_mb` has one reading for each GPU, None for an unknown one."""

    def __init__(self, *free_mb, total_mb=24_000):
        self.clock = Clock()
        self.fleet = a_fleet("box", clock=self.clock)
        totals = total_mb if isinstance(total_mb, tuple) else (total_mb,) * len(free_mb)
        self.devices = tuple(
            a_gpu(index, total, free) for index, (total, free) in enumerate(zip(totals, free_mb, strict=True))
        )
        self.reports, self.profiles = [], []
        answers(self.fleet, "box", devices=self.devices)

    def holds(self, model_id, used_mb, *devices, used_at=0, priority=None):
        """A resident on these devices, used last at that time."""
        self.reports.append(a_model(model_id, vram_used_mb=used_mb, devices=devices))
        answers(self.fleet, "box", *self.reports, devices=self.devices)
        self.clock.now = used_at
        with self.fleet.lease("box", model_id):
            pass
        if priority is not None:
            self.profiles.append(a_profile(model_id, residency_priority=priority))
        return self

    @property
    def node(self):
        return self.fleet.nodes["box"]

    @property
    def catalogue(self):
        return a_catalogue(*self.profiles)

    def choice(self, vram_mb, count=1, **more):
        """The fit, the devices, and the victims of a load; None if the node cannot have the model."""
        profile = a_profile("new", vram_mb=vram_mb, min_devices=count, **more)
        candidate = candidate_on(self.node, profile, self.catalogue)
        if candidate is None:
            return None
        victims = find_victims(profile, self.node, self.node.free_mb(candidate.devices), self.catalogue)
        return candidate.fit, candidate.devices, None if victims is None else {victim.id for victim in victims}


def old_and_new():
    """A 27B on GPU 0 that was used long ago, and a model on GPU 1 that was used just now."""
    return Box(4000, 4000).holds("old", 20_000, 0, used_at=1).holds("new", 20_000, 1, used_at=9)


@pytest.mark.parametrize(
    ("box", "needs", "expected"),
    [
        # Free memory: the least left over, whatever the index.
        (Box(4000, 17_000).holds("27B", 20_000, 0), (8000,), (FREE, (1,), set())),
        (Box(17_000, 4000).holds("27B", 20_000, 1), (8000,), (FREE, (0,), set())),
        (Box(24_000, 10_000, 12_000), (9000,), (FREE, (1,), set())),
        (Box(24_000, 10_000, 12_000), (10_000,), (FREE, (1,), set())),
        (Box(24_000, 10_000, 12_000), (10_001,), (FREE, (2,), set())),
        (Box(24_000, 10_000, 12_000), (20_000, 2), (FREE, (1, 2), set())),
        (Box(24_000, 10_000, 12_000), (20_001, 2), (FREE, (0, 2), set())),
        (Box(12_000, 12_000, 12_000), (8000,), (FREE, (0,), set())),
        (Box(24_000, 12_000, 12_000, 12_000), (8000, 2), (FREE, (1, 2), set())),
        # A model with little need leaves the large gap to a large one.
        (Box(20_000, 5000), (4000,), (FREE, (1,), set())),
        # Evictions: the fewest, then the least recently used, then the index.
        (old_and_new(), (8000,), (EVICT, (0,), {"old"})),
        (
            Box(4000, 4000).holds("a", 20_000, 0, used_at=9).holds("b", 20_000, 1, used_at=1),
            (8000,),
            (EVICT, (1,), {"b"}),
        ),
        (
            Box(4000, 4000).holds("a", 20_000, 0, used_at=5).holds("b", 20_000, 1, used_at=5),
            (8000,),
            (EVICT, (0,), {"a"}),
        ),
        (
            Box(0, 0).holds("a1", 4000, 0, used_at=1).holds("a2", 4000, 0, used_at=2).holds("b", 8000, 1, used_at=9),
            (8000,),
            (EVICT, (1,), {"b"}),
        ),
        (old_and_new(), (16_000, 2), (EVICT, (0, 1), {"old", "new"})),
        # One eviction that frees two devices costs less than two.
        (
            Box(0, 0, 0, 0).holds("x", 20_000, 0, used_at=1).holds("y", 20_000, 1, used_at=2)
            .holds("wide", 40_000, 2, 3, used_at=9),
            (40_000, 2),
            (EVICT, (2, 3), {"wide"}),
        ),
        # A free device and an eviction on one other.
        (
            Box(0, 24_000, 0).holds("x", 20_000, 0, used_at=9).holds("y", 20_000, 2, used_at=1),
            (40_000, 2),
            (EVICT, (1, 2), {"y"}),
        ),
        # Only permitted evictions count.
        (
            Box(4000, 4000).holds("a", 20_000, 0, used_at=1, priority=500).holds("b", 20_000, 1, used_at=9),
            (8000,),
            (EVICT, (1,), {"b"}),
        ),
        (
            Box(4000, 4000).holds("a", 20_000, 0, priority=500).holds("b", 20_000, 1, priority=500),
            (8000,),
            (FULL, (0,), None),
        ),
        # Floors.
        (Box(8000, 24_000, total_mb=(8000, 24_000)), (4000,), (FREE, (0,), set())),
        (Box(8000, 24_000, total_mb=(8000, 24_000)), (8001,), (FREE, (1,), set())),
        (Box(8000, 24_000, total_mb=(8000, 24_000)), (24_001,), None),
        (Box(8000, 24_000, total_mb=(8000, 24_000)), (16_000, 2), (FREE, (0, 1), set())),
        (Box(8000, 24_000, total_mb=(8000, 24_000)), (16_001, 2), None),
        # An unknown reading is not zero, and not room either: a load tries it if nothing else is possible.
        (Box(None, None), (8000,), (UNKNOWN, (0,), set())),
        (Box(None, 8000), (8000,), (FREE, (1,), set())),
        (Box(4000, None), (8000,), (UNKNOWN, (1,), set())),
        (Box(4000, None).holds("a", 20_000, 0), (8000,), (EVICT, (0,), {"a"})),
        (Box(4000, None).holds("a", 20_000, 0, priority=500), (8000,), (UNKNOWN, (1,), set())),
        (Box(9000, None, 0), (16_000, 2), (UNKNOWN, (0, 1), set())),
        (Box(0, None).holds("a", 20_000, 0, priority=500), (16_000, 2), (FULL, (0, 1), None)),
        # An unknown need: where there is the most memory.
        (Box(4000, 17_000).holds("27B", 20_000, 0), (None,), (UNKNOWN, (1,), set())),
        (Box(4000, 17_000, 9000), (None, 2), (UNKNOWN, (1, 2), set())),
        (Box(4000, 4000), (None,), (UNKNOWN, (0,), set())),
        (Box(0, None), (None,), (UNKNOWN, (1,), set())),
        (Box(None, 4000), (None,), (UNKNOWN, (1,), set())),
    ],
)  # fmt: skip
def test_devices_and_victims_of_a_load(box, needs, expected):
    """The fit, the devices in ascending order, and the models that are evicted."""
    assert box.choice(*needs) == expected


def test_device_floor_of_the_profile_narrows_the_choice():
    """The smaller GPU has less left over, but is below the floor."""
    box = Box(8000, 24_000, total_mb=(8000, 24_000))
    assert box.choice(4000, min_device_vram_mb=9000) == (FREE, (1,), set())
    assert box.choice(4000, 2, min_device_vram_mb=9000) is None


@pytest.mark.parametrize(("resident", "incoming"), [(20_000, 8000), (8000, 20_000)])
def test_large_and_small_models_of_one_class_evict_each_other(resident, incoming):
    """In both directions, and each takes the GPU of the model that was used less recently."""
    box = Box(24_000 - resident, 24_000 - resident)
    box.holds("recent", resident, 0, used_at=9).holds("stale", resident, 1, used_at=1)
    fit, devices, victims = box.choice(incoming)
    if incoming <= 24_000 - resident:
        assert (fit, devices, victims) == (FREE, (0,), set())
    else:
        assert (fit, devices, victims) == (EVICT, (1,), {"stale"})


def test_leased_model_is_not_evicted_although_it_was_used_less_recently():
    """Its device is no choice; once both are in use the node is full, and room may come."""
    box = old_and_new()
    with box.fleet.lease("box", "old"):
        assert box.choice(8000) == (EVICT, (1,), {"new"})
        with box.fleet.lease("box", "new"):
            assert box.choice(8000) == (FULL, (0,), None)
            assert room_may_come(a_profile("new", vram_mb=8000), box.node, box.catalogue)


def test_room_may_come_on_any_device():
    """Not only on those that a load would take now: here the first one keeps a model of a higher class."""
    box = Box(4000, 4000).holds("kept", 20_000, 0, priority=500).holds("busy", 20_000, 1)
    with box.fleet.lease("box", "busy"):
        assert room_may_come(a_profile("m", vram_mb=8000), box.node, box.catalogue)
        assert not room_may_come(a_profile("m", vram_mb=16_000, min_devices=2), box.node, box.catalogue)


def test_young_models_are_spared_on_the_other_device():
    """The young one would be the cheaper victim: it is one, the old ones are two."""
    box = Box(0, 0)
    box.holds("o1", 12_000, 1, used_at=0).holds("o2", 12_000, 1, used_at=0)
    box.clock.now = 100
    box.holds("young", 24_000, 0, used_at=100)
    profile = a_profile("new", vram_mb=20_000)
    candidate = candidate_on(box.node, profile, box.catalogue)
    assert candidate.devices == (0,)

    ((rank, chosen),) = rank_candidates(
        profile, [candidate], box.fleet, box.catalogue, loaded_before=50, times=LoadHistory()
    )

    assert (chosen.devices, chosen.fit, rank.evicts_young) == ((1,), EVICT, False)
    free_mb = box.node.free_mb(chosen.devices)
    victims = find_victims_young_last(profile, box.node, free_mb, box.catalogue, loaded_before=50)
    assert {victim.id for victim in victims} == {"o1", "o2"}
    ((rank, chosen),) = rank_candidates(
        profile, [candidate], box.fleet, box.catalogue, loaded_before=-1, times=LoadHistory()
    )
    assert (chosen.devices, rank.evicts_young) == ((0,), True)


@pytest.mark.parametrize(("vram_mb", "count"), [(24_001, 1), (48_001, 2)])
def test_model_that_is_too_large_for_the_devices_has_no_feasible_neuron(vram_mb, count):
    """Also if the profile names no floor; a request gets the error at once and evicts nothing."""
    box = Box(4000, 4000).holds("a", 20_000, 0)
    profile = a_profile("vast", vram_mb=vram_mb, min_devices=count)
    assert devices_for(profile, box.node) is None
    with pytest.raises(NoFeasibleNeuron):
        choose("vast", box.fleet, a_catalogue(profile))


def sixteen(seed):
    """16 GPUs without free memory, with models on one, two, four or eight of them, in a fixed disorder."""
    box = Box(*(0,) * 16)
    first = number = 0
    while first < 16:
        devices = range(first, min(first + (1, 2, 1, 4, 8, 1)[(number * seed + seed) % 6], 16))
        box.holds(f"m{number}", 24_000 * len(devices), *devices, used_at=(number * 7 + seed) % 11)
        first, number = devices.stop, number + 1
    return box


@pytest.mark.parametrize("seed", range(1, 12))
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_sixteen_devices_cost_as_few_models_as_possible(count, seed):
    """No set costs fewer, although only some of 12,870 sets are compared."""
    box = sixteen(seed)
    fit, devices, victims = box.choice(20_000 * count, count)
    holders = {model.id: set(model.report.devices) for model in box.node.models.values()}
    assert (fit, len(devices)) == (EVICT, count)
    fewest = next(
        size
        for size in range(1, len(holders) + 1)
        for some in itertools.combinations(holders.values(), size)
        if len(set().union(*some)) >= count
    )
    assert len(victims) == fewest


def test_number_of_compared_sets_is_bounded():
    """A neuron with 32 GPUs has 601,080,390 sets of 16. CPU time, so a busy machine changes nothing."""
    box = Box(*(0,) * 32)
    for index in range(32):
        box.holds(f"m{index}", 24_000, index, used_at=31 - index)
    began = time.process_time()
    fit, devices, victims = box.choice(20_000 * 16, 16)
    assert time.process_time() - began < 2
    assert (fit, devices, len(victims)) == (EVICT, tuple(range(16, 32)), 16)
    assert MAX_DEVICE_SETS >= 70  # every set of 8 GPUs is compared
