"""Who must go so that a model fits: tables of residents and what the plan says of them."""

from __future__ import annotations

import pytest
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from gateway.fleet.loading import eviction


class House:
    """One node, and models on it that came and were used at times of our choosing."""

    def __init__(self, total_mb=24_000, gpus=1):
        self.clock = Clock()
        self.fleet = a_fleet("a", clock=self.clock)
        self.node = self.fleet.nodes["a"]
        self.devices = tuple(a_gpu(index, total_mb, total_mb) for index in range(gpus))
        self.reports = []
        self.profiles = []

    def holds(self, model_id, used_mb, *, used_at=None, came_at=0, devices=(0,), **profile):
        """A resident; `profile` keywords put it in the catalogue."""
        self.clock.now = came_at
        self.reports.append(a_model(model_id, vram_used_mb=used_mb, devices=devices))
        answers(self.fleet, "a", *self.reports, devices=self.devices)
        if used_at is not None:
            self.clock.now = used_at
            with self.fleet.lease("a", model_id):
                pass
        if profile:
            self.profiles.append(a_profile(model_id, **profile))
        return self

    @property
    def catalogue(self):
        return a_catalogue(*self.profiles)

    def plan(self, vram_mb, free_mb, *, priority=100, **how):
        """The victims' ids, or None."""
        free = free_mb if isinstance(free_mb, dict) else {0: free_mb}
        profile = a_profile("new", vram_mb=vram_mb, residency_priority=priority)
        victims = eviction.find_victims(profile, self.node, free, self.catalogue, **how)
        return None if victims is None else [held.id for held in victims]

    def room_may_come(self, vram_mb, free_mb, *, priority=100):
        profile = a_profile("new", vram_mb=vram_mb, residency_priority=priority)
        return eviction.room_may_come(profile, self.node, {0: free_mb}, self.catalogue)


def three():
    """`old` was used first, `mid` next, `young` last."""
    return House().holds("old", 4000, used_at=10).holds("mid", 8000, used_at=20).holds("young", 6000, used_at=30)


@pytest.mark.parametrize(
    ("need_mb", "free_mb", "victims"),
    [
        (4000, 6000, []),
        (6000, 6000, []),
        (8000, 6000, ["old"]),
        (10_001, 6000, ["mid"]),  # `old` alone is not enough, and with `mid` it is not needed
        (15_000, 6000, ["old", "mid"]),
        (24_000, 6000, ["old", "mid", "young"]),
        (24_001, 6000, None),
        (None, 0, []),
    ],
)
def test_plan_takes_the_least_recently_used_and_no_more_than_needed(need_mb, free_mb, victims):
    """Computed whole before anything is unloaded."""
    assert three().plan(need_mb, free_mb) == victims


def test_plan_never_takes_a_leased_model():
    """Whoever is at work stays, however old its last use."""
    house = three()
    with house.fleet.lease("a", "old"):
        assert house.plan(8000, 6000) == ["mid"]
    assert house.plan(8000, 6000) == ["mid"]  # it has just been used


@pytest.mark.parametrize("status", ["loading", "unloaded", "recovering", "poisoned", "reloading"])
def test_plan_takes_only_what_is_loaded(status):
    """Least of all what is loading."""
    house = House()
    answers(house.fleet, "a", a_model("m", status, vram_used_mb=9000), devices=house.devices)
    assert house.plan(8000, 0) is None


def test_plan_spares_a_model_that_others_use_at_the_neuron():
    """The neuron counts a request that is not ours."""
    house = House()
    answers(house.fleet, "a", a_model("m", vram_used_mb=9000, in_flight=1), devices=house.devices)
    assert house.plan(8000, 0) is None


@pytest.mark.parametrize(("resident", "incoming", "victims"), [(100, 100, ["m"]), (100, 99, None), (100, 101, ["m"])])
def test_plan_respects_residency_classes(resident, incoming, victims):
    """Equal may displace equal, so that two models can swap both ways; a lower one never a higher one."""
    house = House().holds("m", 9000, residency_priority=resident)
    assert house.plan(8000, 0, priority=incoming) == victims


def test_plan_spares_the_young_when_told_to():
    """Minimum residency: models that came after the given time stay."""
    house = House().holds("early", 4000, came_at=0).holds("late", 8000, came_at=50)
    assert house.plan(3000, 0, loaded_before=40) == ["early"]
    assert house.plan(8000, 0, loaded_before=40) is None
    assert house.plan(8000, 0) == ["late"]


def test_plan_over_two_devices_makes_room_on_each():
    """Half on each; what sits elsewhere, or where there is room already, stays."""
    house = House(gpus=3)
    house.holds("left", 6000, devices=(0,)).holds("right", 6000, devices=(1,)).holds("third", 6000, devices=(2,))
    assert house.plan(8000, {0: 0, 1: 0}) == ["left", "right"]
    assert house.plan(8000, {0: 5000, 1: 0}) == ["right"]
    assert House(gpus=2).holds("wide", 8000, devices=(0, 1)).plan(8000, {0: 0, 1: 0}) == ["wide"]


def test_model_without_a_known_size_is_counted_as_the_catalogue_says_or_not_at_all():
    """Evicting on hope would cost somebody a model and gain nothing."""
    assert House().holds("m", None, vram_mb=9000).plan(8000, 0) == ["m"]
    assert House().holds("m", None).plan(8000, 0) is None


def test_model_without_a_known_size_keeps_hope_of_room_alive():
    """Unknown is not zero: waiting may help."""
    assert House().holds("m", None).room_may_come(8000, 0)
    assert not House().holds("m", 4000).room_may_come(8000, 0)


@pytest.mark.parametrize(("priority", "may_come"), [(100, False), (200, True)])
def test_room_may_come_from_permitted_classes_only(priority, may_come):
    """Leased or not: a lease ends, a class does not."""
    house = House().holds("m", 9000, residency_priority=200)
    with house.fleet.lease("a", "m"):
        assert house.room_may_come(8000, 0, priority=priority) is may_come


def test_idle_models_expire_at_their_time_to_live():
    """0 is for ever; a model that was never used counts from when it came; a leased one is not idle."""
    house = House().holds("used", 1000, used_at=50).holds("unused", 1000, came_at=20).holds("kept", 1000)
    ttl_s = {"used": 30.0, "unused": 30.0, "kept": 0.0}.__getitem__
    assert [held.id for held in eviction.idle_models(house.node, 49.9, ttl_s)] == []
    assert [held.id for held in eviction.idle_models(house.node, 50, ttl_s)] == ["unused"]
    assert [held.id for held in eviction.idle_models(house.node, 80, ttl_s)] == ["used", "unused"]
    with house.fleet.lease("a", "unused"):
        assert [held.id for held in eviction.idle_models(house.node, 80, ttl_s)] == ["used"]
