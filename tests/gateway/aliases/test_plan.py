"""gateway.aliases.plan: what a new file would take of the fleet, forecast by the rules that would decide."""

import dataclasses

import msgspec
import pytest
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from catalogue.models import Alias, Target
from gateway.aliases.plan import plan

A, B, C = (a_profile(model, vram_mb=size) for model, size in (("A", 8000), ("B", 8000), ("C", 20_000)))


@pytest.fixture
def fleet():
    """`small` has A and room for nothing else; `large` has 24,000 MB, all free."""
    fleet = a_fleet("large", "small", clock=Clock())
    answers(fleet, "small", a_model("A", vram_used_mb=8000), devices=(a_gpu(0, 10_000, 2000),))
    answers(fleet, "large", devices=(a_gpu(0, 24_000, 24_000),))
    return fleet


def to(target, *profiles, **more):
    """A catalogue whose tier stands for this model."""
    return a_catalogue(*(profiles or (A, B, C)), aliases={"tier": target}, **more)


def with_alias(**alias):
    base = a_catalogue(A, B, C)
    return dataclasses.replace(base, aliases={"tier": Alias("tier", **alias)})


def placement(planned):
    """Of the only model of the only alias."""
    (alias,) = planned.aliases
    (only,) = alias.placements
    return only


def test_same_meaning_is_nothing_to_do(fleet):
    """Comments and layout are no change."""
    planned = plan(to("A"), to("A", generation=2), fleet)

    assert (planned.verdict, planned.aliases) == ("nothing", ())


def test_target_that_is_loaded_needs_nothing(fleet):
    """It is named where it is."""
    planned = plan(to("B"), to("A"), fleet)

    assert planned.verdict == "changes"
    assert (placement(planned).state, placement(planned).nodes) == ("loaded", ("small",))
    assert (planned.aliases[0].old, planned.aliases[0].new) == ("B", "A")
    assert all(device.used_before_mb == device.used_after_mb for device in planned.devices)


def test_target_that_is_not_loaded_goes_where_routing_would_load_it(fleet):
    """Into free memory first; before and after are of each device."""
    planned = plan(to("A"), to("B"), fleet)

    only = placement(planned)
    assert (only.state, only.nodes, only.devices, only.evicts, only.vram_mb) == ("to_load", ("large",), (0,), (), 8000)
    assert planned.aliases[0].is_warm
    assert [(device.node, device.used_before_mb, device.used_after_mb) for device in planned.devices] == [
        ("large", 0, 8000),
        ("small", 8000, 8000),
    ]


def test_fleet_is_not_touched(fleet):
    """A plan is a thought."""
    before = msgspec.json.encode(fleet.snapshot())

    plan(to("A"), to("C"), fleet)

    assert msgspec.json.encode(fleet.snapshot()) == before


def test_what_must_go_is_named(fleet):
    """The idle model that eviction would choose, and the memory it gives back."""
    answers(fleet, "large", a_model("X", vram_used_mb=10_000), devices=(a_gpu(0, 24_000, 14_000),))

    planned = plan(to("A"), to("C"), fleet)

    only = placement(planned)
    assert (only.state, only.nodes, only.evicts) == ("to_load", ("large",), ("X",))
    large = planned.devices[0]
    assert (large.node, large.used_before_mb, large.used_after_mb) == ("large", 10_000, 20_000)


def test_young_models_are_spared_where_others_can_go():
    """As the lifecycle would: rather the place with less room than a model that has only just come."""
    clock = Clock()
    fleet = a_fleet("roomy", "tight", clock=clock)
    answers(fleet, "tight", a_model("old", vram_used_mb=8000), devices=(a_gpu(0, 10_000, 1500),))
    clock.now = 100
    answers(fleet, "roomy", a_model("young", vram_used_mb=8000), devices=(a_gpu(0, 10_000, 1900),))
    clock.now = 110

    assert placement(plan(to("A"), to("B"), fleet, min_residency_s=30)).evicts == ("old",)
    assert placement(plan(to("A"), to("B"), fleet, min_residency_s=5)).evicts == ("young",)


def test_memory_that_is_freed_beside_the_newcomer_is_counted():
    """A victim over two devices makes room on both, and what comes needs one."""
    fleet = a_fleet("pair", clock=Clock())
    wide = a_model("wide", vram_used_mb=16_000, devices=(0, 1))
    answers(fleet, "pair", wide, devices=(a_gpu(0, 10_000, 2000), a_gpu(1, 10_000, 2000)))

    planned = plan(to("A"), to("B"), fleet)

    assert (placement(planned).devices, placement(planned).evicts) == ((0,), ("wide",))
    assert [(device.used_before_mb, device.used_after_mb) for device in planned.devices] == [(8000, 8000), (8000, 0)]


def test_second_load_finds_what_the_first_has_left(fleet):
    """Two aliases, one room: the plan counts what it has given away."""
    old = a_catalogue(A, B, C, aliases={"one": "A", "two": "A"})
    new = a_catalogue(A, B, C, a_profile("D", vram_mb=20_000), aliases={"one": "C", "two": "D"})

    one, two = plan(old, new, fleet).aliases

    assert (one.placements[0].state, one.placements[0].nodes) == ("to_load", ("large",))
    assert (two.placements[0].state, two.placements[0].evicts) == ("to_load", ("C",))


def test_two_aliases_of_one_model_load_it_once(fleet):
    """The second finds it placed."""
    old = a_catalogue(A, B, aliases={"one": "A", "two": "A"})
    new = a_catalogue(A, B, aliases={"one": "B", "two": "B"})

    planned = plan(old, new, fleet)

    assert [alias.placements[0].nodes for alias in planned.aliases] == [("large",), ("large",)]
    assert planned.devices[0].used_after_mb == 8000


def test_need_that_no_topology_meets_is_impossible(fleet):
    """In words: what it needs, what everybody has."""
    huge = a_profile("huge", min_devices=2, min_device_vram_mb=24_000)

    planned = plan(to("A"), to("huge", A, huge), fleet)

    assert planned.verdict == "impossible"
    assert placement(planned).reason == (
        "no neuron can hold huge: needs 2 devices of 24,000 MB; large has 1 of 24,000 MB, small has 1 of 10,000 MB"
    )


def test_pin_is_part_of_the_need(fleet):
    """It fits, but not where it must be."""
    pinned = a_profile("C", vram_mb=20_000, min_device_vram_mb=16_000, pinned_on=("small",))

    assert placement(plan(to("A"), to("C", A, pinned), fleet)).reason.startswith(
        "no neuron can hold C: needs 1 device of 16,000 MB on small, where it is pinned; "
    )


def test_more_than_any_device_has_is_impossible(fleet):
    """The topology would do, the memory never will."""
    vast = a_profile("vast", vram_mb=60_000)

    planned = plan(to("A"), to("vast", A, vast), fleet)

    assert planned.verdict == "impossible"
    assert placement(planned).reason.startswith("no neuron has room for vast: needs 60,000 MB; large has 24000 MB")


def test_model_that_nobody_knows_is_impossible(fleet):
    """Its requests would get 404."""
    planned = plan(to("A"), to("nobody/has-it", A), fleet)

    assert planned.verdict == "impossible"
    assert placement(planned).reason == "no neuron has nobody/has-it, and no [[models]] table describes it"


def test_only_place_is_held_by_the_old_target(fleet):
    """A warm swap keeps the old one until the new one is there; cold is a way."""
    tight = a_profile("T", vram_mb=9000, pinned_on=("small",))
    warm = to("T", A, tight)
    cold = dataclasses.replace(warm, aliases={"tier": Alias("tier", (Target("T"),), swap="cold")})

    assert plan(to("A", A, tight), warm, fleet).verdict == "impossible"
    assert 'swap = "cold"' in placement(plan(to("A", A, tight), warm, fleet)).reason
    planned = plan(to("A", A, tight), cold, fleet)
    assert (placement(planned).state, placement(planned).evicts) == ("to_load", ("A",))
    assert not planned.aliases[0].is_warm


def test_room_that_is_busy_is_worth_waiting_for(fleet):
    """Not impossible: whoever holds it has requests that end."""
    answers(fleet, "large", a_model("X", vram_used_mb=20_000), devices=(a_gpu(0, 24_000, 4000),))

    with fleet.lease("large", "X"):
        planned = plan(to("A"), to("C"), fleet)

    assert planned.verdict == "changes"
    assert (placement(planned).state, placement(planned).reason) == (
        "waits",
        "large has room once X (1 requests) can go",
    )


def test_neuron_that_is_down_or_draining_is_not_counted_on(fleet):
    """Not now is not never."""
    fleet.drain("large", draining=True)

    planned = plan(to("A"), to("C"), fleet)

    assert (placement(planned).state, placement(planned).reason) == (
        "waits",
        "there is room on large, which does not take requests now",
    )


def test_every_target_that_gets_requests_is_placed(fleet):
    """And those with weight 0 are not."""
    wanted = with_alias(targets=(Target("A", 90), Target("B", 10), Target("C", 0)))

    (alias,) = plan(to("A"), wanted, fleet).aliases

    assert [(each.model, each.state) for each in alias.placements] == [("A", "loaded"), ("B", "to_load")]
    assert alias.new == "[A 90, B 10, C 0]"


def test_model_whose_profile_changes_concerns_its_alias(fleet):
    """The file says the same of the alias; what it can be is another matter."""
    larger = dataclasses.replace(C, vram_mb=60_000)

    planned = plan(to("C"), to("C", A, B, larger), fleet)

    assert (planned.aliases[0].change, planned.verdict) == ("affected", "impossible")


def test_profile_of_a_loaded_model_counts_next_time(fleet):
    """Nothing is reloaded for it, and that is said."""
    planned = plan(to("B"), to("B", dataclasses.replace(A, quant="q4"), B), fleet)

    assert planned.notes == ("A is loaded on small: its quant will count when it is loaded next",)


def test_model_that_is_taken_out_stays_until_it_must_go(fleet):
    """A catalogue is not a command to unload."""
    planned = plan(a_catalogue(A, B), a_catalogue(B), fleet)

    assert planned.notes == ("A stays loaded on small until it has to make room, and is not loaded again after that",)


def test_requests_under_way_are_counted_by_what_they_went_to(fleet):
    """Those of the aliases that change: they end where they are."""
    live = [("tier", "A"), ("tier", "A"), ("tier", "B"), ("other", "A"), ("zeta", "A"), (None, "A"), ("tier", None)]

    planned = plan(to("A"), to("B"), fleet, live=live)

    assert planned.aliases[0].in_flight == {"A": 2, "B": 1}


def test_alias_that_goes_and_alias_that_comes(fleet):
    """One has no targets any more; the other is there at once, having nothing to wait for."""
    planned = plan(a_catalogue(A, aliases={"old": "A"}), a_catalogue(A, B, aliases={"new": "B"}), fleet)

    new, old = planned.aliases
    assert (old.change, old.new, old.placements) == ("removed", None, ())
    assert (new.change, new.old, new.is_warm) == ("added", None, False)


def test_alias_on_its_way_is_compared_with_where_it_goes(fleet):
    """A file that was accepted and waits is not a change once more."""
    from catalogue.warming import hold_back  # noqa: PLC0415 - of this test only
    from gateway.fleet.readiness import FleetReadiness  # noqa: PLC0415 - as above

    waiting = hold_back(to("B"), to("A"), FleetReadiness(fleet))
    assert waiting.warming

    assert plan(waiting, to("B"), fleet).verdict == "nothing"
    assert placement(plan(to("A"), waiting, fleet)).nodes == ("large",)
    assert plan(waiting, to("A"), fleet).verdict == "changes"


def test_unknown_sizes_stay_unknown(fleet):
    """A device whose new model says no size: nobody knows what is left."""
    vague = a_profile("vague")

    planned = plan(to("A"), to("vague", A, vague), fleet)

    assert placement(planned).state == "to_load"
    assert [each.used_after_mb for each in planned.devices if each.node in placement(planned).nodes] == [None]


def test_plan_is_plain_json(fleet):
    """For the admin API and the trail."""
    planned = plan(to("A"), to("C"), fleet, live=[("tier", "A")])

    told = msgspec.json.decode(msgspec.json.encode(planned.as_json()))
    assert told["verdict"] == "changes"
    assert told["aliases"][0]["placements"][0]["nodes"] == ["large"]
    assert told["summary"] == "~alias tier: A -> C"
