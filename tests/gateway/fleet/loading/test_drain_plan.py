"""gateway.fleet.loading.drain_plan: whether all models of a node have a place elsewhere, beside each other."""

from __future__ import annotations

import msgspec
import pytest
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from gateway.fleet.loading.drain_plan import choose_elsewhere, impossible_moves

M, N, P = a_profile("m", vram_mb=8000), a_profile("n", vram_mb=4000), a_profile("p", vram_mb=8000)


def fleet_of(**nodes):
    """Each node is its free memory per GPU of 10,000 MB, and its models: `id: (MB, GPU)`."""
    fleet = a_fleet(*nodes, clock=Clock())
    for name, (free_mb, models) in nodes.items():
        reports = [a_model(model, vram_used_mb=used, devices=(gpu,)) for model, (used, gpu) in models.items()]
        devices = tuple(a_gpu(index, 10_000, free) for index, free in enumerate(free_mb))
        answers(fleet, name, *reports, devices=devices)
    return fleet


HOME = ((2000, 6000), {"m": (8000, 0), "n": (4000, 1)})


@pytest.mark.parametrize(
    ("others", "profiles", "impossible"),
    [
        # Room for both: on one GPU, on two, on two neurons.
        ({"b": ((10_000, 10_000), {})}, (M, N), {}),
        ({"b": ((8000, 4000), {})}, (M, N), {}),
        ({"b": ((4000, 8000), {})}, (M, N), {}),
        ({"b": ((4000,), {}), "c": ((8000,), {})}, (M, N), {}),
        # Room for one of them only.
        ({"b": ((9000,), {})}, (M, N), {"n": "b has no room beside m, which would move there first"}),
        ({"b": ((5000,), {})}, (M, N), {"m": "too little memory free", "n": None}),
        # Rooms for one each by eviction, but both need the same one.
        ({"b": ((0,), {"x": (10_000, 0)})}, (M, N), {"n": "b has no room beside m"}),
        ({"b": ((0, 0), {"x": (10_000, 0), "y": (10_000, 1)})}, (M, N), {}),
        # A model of a higher class keeps its place.
        (
            {"b": ((0, 10_000), {"x": (10_000, 0)})},
            (M, N, a_profile("x", residency_priority=500)),
            {"n": "b has no room beside m"},
        ),
        # The other replica of `n` is evicted for `m`: then `n` is only on the node that leaves, and has no place.
        ({"b": ((6000,), {"n": (4000, 0)})}, (M, N), {"n": "b has no room beside m"}),
        # The size counts.
        ({"b": ((10_000,), {})}, (a_profile("m", vram_mb=10_001), N), {"m": "topology"}),
        ({"b": ((10_000,), {})}, (M, a_profile("n", pinned_on=("a",))), {"n": "fits only on a"}),
        ({"b": ((10_000, 10_000), {})}, (M,), {"n": "not in models.toml"}),
        # Unknown memory is not zero, and an unknown need is not too large.
        ({"b": ((None, None), {})}, (M, N), {}),
        ({"b": ((1000, 1000), {})}, (a_profile("m"), a_profile("n")), {}),
    ],
)
def test_moves_that_are_impossible_beside_each_other(others, profiles, impossible):
    """Each with its reason. None stands for a model that could be moved if it were alone."""
    fleet = fleet_of(a=HOME, **others)
    before = msgspec.json.encode(fleet.snapshot())

    found = dict(impossible_moves("a", fleet, a_catalogue(*profiles), min_residency_s=0))

    expected = {model: reason for model, reason in impossible.items() if reason is not None}
    assert found.keys() == expected.keys()
    for model, reason in expected.items():
        assert reason in found[model]
    assert msgspec.json.encode(fleet.snapshot()) == before  # the real fleet is only read


def test_running_request_on_the_model_in_the_way_makes_the_move_impossible():
    """Waiting for it could take for ever, with other models moved already. The reason names it."""
    fleet = fleet_of(a=((2000,), {"m": (8000, 0)}), b=((0,), {"x": (10_000, 0)}))
    with fleet.lease("b", "x"):
        ((model, reason),) = impossible_moves("a", fleet, a_catalogue(M), min_residency_s=0)
    assert (model, reason) == ("m", "no other neuron has room for it: b has room once x (1 request) can be evicted")
    assert impossible_moves("a", fleet, a_catalogue(M), min_residency_s=0) == []


def test_place_is_chosen_where_no_model_loses_its_last_replica():
    """On the other GPU of the same neuron, although the victim there was used more recently."""
    fleet = fleet_of(
        a=((2000,), {"m": (8000, 0)}),
        b=((0, 0), {"last": (10_000, 0), "double": (10_000, 1)}),
        c=((0,), {"double": (10_000, 0)}),
    )
    fleet._clock.now = 9
    with fleet.lease("b", "double"), fleet.lease("c", "double"):
        pass
    pinned = a_profile("m", vram_mb=8000, pinned_on=("a", "b"))

    decision = choose_elsewhere("a", "m", fleet, a_catalogue(pinned, a_profile("last"), a_profile("double")))

    assert [(candidate.node, candidate.devices) for candidate in decision.candidates] == [("b", (1,))]


def test_large_models_find_their_place_before_small_ones_take_it():
    """By name `a-small` would come first and evict the only model that makes room for the large one."""
    fleet = fleet_of(
        a=((0,), {"a-small": (4000, 0), "large": (6000, 0)}),
        b=((0,), {"x": (4000, 0), "y": (6000, 0)}),
    )
    small, large = a_profile("a-small", vram_mb=4000), a_profile("large", vram_mb=6000)
    assert impossible_moves("a", fleet, a_catalogue(small, large), min_residency_s=0) == []
