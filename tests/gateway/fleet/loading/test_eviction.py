"""Which models are evicted so that another fits: tables of residents and victims."""

from __future__ import annotations

import pytest
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from gateway.fleet.loading import eviction
from gateway.fleet.routing.victims import find_victims, resident_before


class NodeWithModels:
    """One node with models that were loaded and used at given times."""

    def __init__(self, total_mb=24_000, gpus=1):
        self.clock = Clock()
        self.total_mb = total_mb
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

    def victims_of(self, vram_mb, free_mb, *, priority=100, **how):
        """The ids of the victims, or None."""
        free = free_mb if isinstance(free_mb, dict) else {0: free_mb}
        profile = a_profile("new", vram_mb=vram_mb, residency_priority=priority, min_devices=len(free))
        victims = find_victims(profile, self.node, free, self.catalogue, **how)
        return None if victims is None else [resident.id for resident in victims]

    def room_may_come(self, vram_mb, free_mb, *, priority=100):
        profile = a_profile("new", vram_mb=vram_mb, residency_priority=priority)
        answers(self.fleet, "a", *self.reports, devices=(a_gpu(0, self.total_mb, free_mb),))
        return eviction.room_may_come(profile, self.node, self.catalogue)


def three():
    """`old` was used first, `mid` next, `young` last."""
    return (
        NodeWithModels().holds("old", 4000, used_at=10).holds("mid", 8000, used_at=20).holds("young", 6000, used_at=30)
    )


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
def test_victims_are_the_least_recently_used_and_as_few_as_possible(need_mb, free_mb, victims):
    """The victims are found before the first unload."""
    assert three().victims_of(need_mb, free_mb) == victims


def test_leased_model_is_never_a_victim():
    """A model with a request stays, however old its last use is."""
    scene = three()
    with scene.fleet.lease("a", "old"):
        assert scene.victims_of(8000, 6000) == ["mid"]
    assert scene.victims_of(8000, 6000) == ["mid"]  # it has just been used


@pytest.mark.parametrize("status", ["loading", "unloaded", "recovering", "poisoned", "reloading"])
def test_only_loaded_models_are_victims(status):
    """Models in any other state are not victims."""
    scene = NodeWithModels()
    answers(scene.fleet, "a", a_model("m", status, vram_used_mb=9000), devices=scene.devices)
    assert scene.victims_of(8000, 0) is None


def test_model_with_requests_of_others_is_not_a_victim():
    """The neuron counts a request of another client."""
    scene = NodeWithModels()
    answers(scene.fleet, "a", a_model("m", vram_used_mb=9000, in_flight=1), devices=scene.devices)
    assert scene.victims_of(8000, 0) is None


@pytest.mark.parametrize(("resident", "incoming", "victims"), [(100, 100, ["m"]), (100, 99, None), (100, 101, ["m"])])
def test_victims_respect_residency_priorities(resident, incoming, victims):
    """A model displaces others of equal priority, so that two models can swap both ways, but not of higher."""
    scene = NodeWithModels().holds("m", 9000, residency_priority=resident)
    assert scene.victims_of(8000, 0, priority=incoming) == victims


def test_victims_are_only_models_loaded_before_the_given_time():
    """Models that were loaded later stay (minimum residency)."""
    scene = NodeWithModels().holds("early", 4000, came_at=0).holds("late", 8000, came_at=50)
    assert scene.victims_of(3000, 0, may_evict=resident_before(40)) == ["early"]
    assert scene.victims_of(8000, 0, may_evict=resident_before(40)) is None
    assert scene.victims_of(8000, 0) == ["late"]


def test_victims_make_room_on_each_of_two_devices():
    """Half is needed on each; models elsewhere, or where there is room, stay."""
    scene = NodeWithModels(gpus=3)
    scene.holds("left", 6000, devices=(0,)).holds("right", 6000, devices=(1,)).holds("third", 6000, devices=(2,))
    assert scene.victims_of(8000, {0: 0, 1: 0}) == ["left", "right"]
    assert scene.victims_of(8000, {0: 5000, 1: 0}) == ["right"]
    assert NodeWithModels(gpus=2).holds("wide", 8000, devices=(0, 1)).victims_of(8000, {0: 0, 1: 0}) == ["wide"]


def test_model_of_unknown_size_counts_as_in_the_catalogue_or_not_at_all():
    """Evicting a model that may free nothing would be a loss."""
    assert NodeWithModels().holds("m", None, vram_mb=9000).victims_of(8000, 0) == ["m"]
    assert NodeWithModels().holds("m", None).victims_of(8000, 0) is None


def test_room_may_come_from_a_model_of_unknown_size():
    """An unknown size is not zero, so waiting may help."""
    assert NodeWithModels().holds("m", None).room_may_come(8000, 0)
    assert not NodeWithModels().holds("m", 4000).room_may_come(8000, 0)


@pytest.mark.parametrize(("priority", "may_come"), [(100, False), (200, True)])
def test_room_may_come_from_permitted_classes_only(priority, may_come):
    """A lease ends, a priority does not."""
    scene = NodeWithModels().holds("m", 9000, residency_priority=200)
    with scene.fleet.lease("a", "m"):
        assert scene.room_may_come(8000, 0, priority=priority) is may_come


def test_idle_models_expire_at_their_time_to_live():
    """0 means no limit; an unused model counts from its load; a leased one is not idle."""
    scene = NodeWithModels().holds("used", 1000, used_at=50).holds("unused", 1000, came_at=20).holds("kept", 1000)
    ttl_s = {"used": 30.0, "unused": 30.0, "kept": 0.0}.__getitem__
    assert [resident.id for resident in eviction.idle_models(scene.node, 49.9, ttl_s)] == []
    assert [resident.id for resident in eviction.idle_models(scene.node, 50, ttl_s)] == ["unused"]
    assert [resident.id for resident in eviction.idle_models(scene.node, 80, ttl_s)] == ["used", "unused"]
    with scene.fleet.lease("a", "unused"):
        assert [resident.id for resident in eviction.idle_models(scene.node, 80, ttl_s)] == ["used"]
