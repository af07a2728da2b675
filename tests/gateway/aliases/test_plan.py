"""gateway.aliases.plan and planned_fleet: what a new file would load and evict, by the rules of the fleet itself."""

import dataclasses

import msgspec
import pytest
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from catalogue.models import Alias, Target
from catalogue.warming import given_up, hold_back
from gateway.aliases.plan import plan
from gateway.fleet.readiness import FleetReadiness

A, B, C = (a_profile(model, vram_mb=size) for model, size in (("A", 8000), ("B", 8000), ("C", 20_000)))


@pytest.fixture
def fleet():
    """`small` has A and no memory for anything else; `large` has 24,000 MB, all free."""
    fleet = a_fleet("large", "small", clock=Clock())
    answers(fleet, "small", a_model("A", vram_used_mb=8000), devices=(a_gpu(0, 10_000, 2000),))
    answers(fleet, "large", devices=(a_gpu(0, 24_000, 24_000),))
    return fleet


def to(target, *profiles, **more):
    """A catalogue whose alias `tier` has this target."""
    return a_catalogue(*(profiles or (A, B, C)), aliases={"tier": target}, **more)


def with_alias(**alias):
    base = a_catalogue(A, B, C)
    return dataclasses.replace(base, aliases={"tier": Alias("tier", **alias)})


def placement(planned):
    """The only placement of the only alias."""
    (alias,) = planned.aliases
    (only,) = alias.placements
    return only


def test_file_with_the_same_meaning_changes_nothing(fleet):
    """Comments and layout are no change."""
    planned = plan(to("A"), to("A", generation=2), fleet)

    assert (planned.verdict, planned.aliases) == ("nothing", ())


def test_loaded_target_needs_no_load(fleet):
    """The plan names its node."""
    planned = plan(to("B"), to("A"), fleet)

    assert planned.verdict == "changes"
    assert (placement(planned).state, placement(planned).nodes) == ("loaded", ("small",))
    assert (planned.aliases[0].old, planned.aliases[0].new) == ("B", "A")
    assert all(device.used_before_mb == device.used_after_mb for device in planned.devices)


def test_cold_target_is_placed_where_routing_would_load_it(fleet):
    """In free memory first; each device has its memory before and after."""
    planned = plan(to("A"), to("B"), fleet)

    only = placement(planned)
    assert (only.state, only.nodes, only.devices, only.evicts, only.vram_mb) == ("to_load", ("large",), (0,), (), 8000)
    assert planned.aliases[0].is_warm
    assert [(device.node, device.used_before_mb, device.used_after_mb) for device in planned.devices] == [
        ("large", 0, 8000),
        ("small", 8000, 8000),
    ]


def test_planning_does_not_change_the_fleet(fleet):
    """Its snapshot stays the same."""
    before = msgspec.json.encode(fleet.snapshot())

    plan(to("A"), to("C"), fleet)

    assert msgspec.json.encode(fleet.snapshot()) == before


def test_victims_are_named(fleet):
    """The idle model that the eviction rules choose, and the memory that it frees."""
    answers(fleet, "large", a_model("X", vram_used_mb=10_000), devices=(a_gpu(0, 24_000, 14_000),))

    planned = plan(to("A"), to("C"), fleet)

    only = placement(planned)
    assert (only.state, only.nodes, only.evicts) == ("to_load", ("large",), ("X",))
    large = planned.devices[0]
    assert (large.node, large.used_before_mb, large.used_after_mb) == ("large", 10_000, 20_000)


def test_young_models_are_spared_where_older_ones_can_be_evicted():
    """As the scheduler does: the node with less free memory comes first if the other would lose a young model."""
    clock = Clock()
    fleet = a_fleet("roomy", "tight", clock=clock)
    answers(fleet, "tight", a_model("old", vram_used_mb=8000), devices=(a_gpu(0, 10_000, 1500),))
    clock.now = 100
    answers(fleet, "roomy", a_model("young", vram_used_mb=8000), devices=(a_gpu(0, 10_000, 1900),))
    clock.now = 110

    assert placement(plan(to("A"), to("B"), fleet, min_residency_s=30)).evicts == ("old",)
    assert placement(plan(to("A"), to("B"), fleet, min_residency_s=5)).evicts == ("young",)


def test_memory_freed_on_other_devices_is_counted():
    """The victim is on two devices, and the new model needs one of them."""
    fleet = a_fleet("pair", clock=Clock())
    wide = a_model("wide", vram_used_mb=16_000, devices=(0, 1))
    answers(fleet, "pair", wide, devices=(a_gpu(0, 10_000, 2000), a_gpu(1, 10_000, 2000)))

    planned = plan(to("A"), to("B"), fleet)

    assert (placement(planned).devices, placement(planned).evicts) == ((0,), ("wide",))
    assert [(device.used_before_mb, device.used_after_mb) for device in planned.devices] == [(8000, 8000), (8000, 0)]


def test_second_load_is_planned_after_the_first(fleet):
    """Both aliases need the same memory."""
    old = a_catalogue(A, B, C, aliases={"one": "A", "two": "A"})
    new = a_catalogue(A, B, C, a_profile("D", vram_mb=20_000), aliases={"one": "C", "two": "D"})

    one, two = plan(old, new, fleet).aliases

    assert (one.placements[0].state, one.placements[0].nodes) == ("to_load", ("large",))
    assert (two.placements[0].state, two.placements[0].evicts) == ("to_load", ("C",))


def test_two_aliases_of_one_model_load_it_once(fleet):
    """The second alias finds it placed."""
    old = a_catalogue(A, B, aliases={"one": "A", "two": "A"})
    new = a_catalogue(A, B, aliases={"one": "B", "two": "B"})

    planned = plan(old, new, fleet)

    assert [alias.placements[0].nodes for alias in planned.aliases] == [("large",), ("large",)]
    assert planned.devices[0].used_after_mb == 8000


def test_model_that_fits_no_topology_is_impossible(fleet):
    """The reason has what it needs, and what each neuron has."""
    huge = a_profile("huge", min_devices=2, min_device_vram_mb=24_000)

    planned = plan(to("A"), to("huge", A, huge), fleet)

    assert planned.verdict == "impossible"
    assert placement(planned).reason == (
        "no neuron can hold huge: needs 2 devices of 24,000 MB; large has 1 of 24,000 MB, small has 1 of 10,000 MB"
    )


def test_pin_is_part_of_the_reason(fleet):
    """The model would fit on the other neuron."""
    pinned = a_profile("C", vram_mb=20_000, min_device_vram_mb=16_000, pinned_on=("small",))

    assert placement(plan(to("A"), to("C", A, pinned), fleet)).reason.startswith(
        "no neuron can hold C: needs 1 device of 20,000 MB on small, where it is pinned; "
    )


def test_model_larger_than_every_device_is_impossible(fleet):
    """Its size counts, whatever else the profile says."""
    vast = a_profile("vast", vram_mb=60_000)

    planned = plan(to("A"), to("vast", A, vast), fleet)

    assert planned.verdict == "impossible"
    assert placement(planned).reason == (
        "no neuron can hold vast: needs 1 device of 60,000 MB; large has 1 of 24,000 MB, small has 1 of 10,000 MB"
    )


def test_unknown_model_is_impossible(fleet):
    """Its requests would get a 404."""
    planned = plan(to("A"), to("unknown/model", A), fleet)

    assert planned.verdict == "impossible"
    assert placement(planned).reason == "no neuron has unknown/model, and no [[models]] table describes it"


def test_warm_swap_without_memory_beside_the_old_target_is_impossible(fleet):
    """A warm swap keeps the old target loaded until the new one is; a cold swap evicts it."""
    tight = a_profile("T", vram_mb=9000, pinned_on=("small",))
    warm = to("T", A, tight)
    cold = dataclasses.replace(warm, aliases={"tier": Alias("tier", (Target("T"),), swap="cold")})

    assert plan(to("A", A, tight), warm, fleet).verdict == "impossible"
    assert 'swap = "cold"' in placement(plan(to("A", A, tight), warm, fleet)).reason
    planned = plan(to("A", A, tight), cold, fleet)
    assert (placement(planned).state, placement(planned).evicts) == ("to_load", ("A",))
    assert not planned.aliases[0].is_warm


def test_model_waits_for_a_busy_one_that_could_be_evicted(fleet):
    """The running requests end some time."""
    answers(fleet, "large", a_model("X", vram_used_mb=20_000), devices=(a_gpu(0, 24_000, 4000),))

    with fleet.lease("large", "X"):
        planned = plan(to("A"), to("C"), fleet)

    assert planned.verdict == "changes"
    assert (placement(planned).state, placement(planned).reason) == (
        "waits",
        "large has memory once X (1 request) can be evicted",
    )


def test_model_waits_for_a_neuron_that_is_drained(fleet):
    """It is possible, but not now."""
    fleet.drain("large", draining=True)

    planned = plan(to("A"), to("C"), fleet)

    assert (placement(planned).state, placement(planned).reason) == (
        "waits",
        "model 'C' fits only on large (draining)",
    )


def test_model_waits_for_a_drained_neuron_if_the_open_one_has_no_memory(fleet):
    """The open one is large enough, but its memory is taken by the model that serves until the move."""
    fleet.drain("large", draining=True)
    wide = a_profile("W", vram_mb=9000)

    planned = plan(to("A"), to("W", A, wide), fleet)

    assert (placement(planned).state, placement(planned).nodes) == ("waits", ("large",))
    assert placement(planned).reason == "large could hold it, but is unavailable now"


def test_load_evicts_nothing_while_another_device_has_room():
    """The other GPU of the same neuron has the memory; its index is higher."""
    fleet = a_fleet("pair", clock=Clock())
    big = a_model("A", vram_used_mb=20_000, devices=(0,))
    answers(fleet, "pair", big, devices=(a_gpu(0, 24_000, 4000), a_gpu(1, 24_000, 17_000)))

    planned = plan(to("A"), to("B"), fleet)

    assert (placement(planned).devices, placement(planned).evicts) == ((1,), ())
    assert [device.used_after_mb for device in planned.devices] == [20_000, 15_000]


def test_every_target_with_a_weight_is_placed(fleet):
    """Targets with weight 0 are not."""
    wanted = with_alias(targets=(Target("A", 90), Target("B", 10), Target("C", 0)))

    (alias,) = plan(to("A"), wanted, fleet).aliases

    assert [(each.model, each.state) for each in alias.placements] == [("A", "loaded"), ("B", "to_load")]
    assert alias.new == "[A 90, B 10, C 0]"


def test_alias_of_a_changed_model_is_affected(fleet):
    """The alias itself is the same in the file."""
    larger = dataclasses.replace(C, vram_mb=60_000)

    planned = plan(to("C"), to("C", A, B, larger), fleet)

    assert (planned.aliases[0].change, planned.verdict) == ("affected", "impossible")


def test_changed_profile_of_a_loaded_model_applies_from_its_next_load(fleet):
    """The model is not reloaded; a note says so."""
    planned = plan(to("B"), to("B", dataclasses.replace(A, quant="q4"), B), fleet)

    assert planned.notes == ("A is loaded on small: its new quant will apply from its next load on",)


def test_removed_model_stays_loaded_until_it_is_evicted(fleet):
    """Removing a model from the catalogue does not unload it."""
    planned = plan(a_catalogue(A, B), a_catalogue(B), fleet)

    assert planned.notes == ("A stays loaded on small until it is evicted, and is not loaded again",)


def test_model_that_was_loaded_from_a_source_is_found_under_its_name_on_the_neuron(fleet):
    """A neuron lists it as source:id, and the note is about its id."""
    hub = a_profile("H", source="hub", quant="q8")
    answers(fleet, "small", a_model("hub:H", vram_used_mb=8000), devices=(a_gpu(0, 10_000, 2000),))

    planned = plan(to("H", hub), to("H", dataclasses.replace(hub, quant="q4")), fleet)

    assert planned.notes == ("H is loaded on small: its new quant will apply from its next load on",)


def test_running_requests_are_counted_by_model(fleet):
    """Those of the aliases that change; they end where they are."""
    live = [("tier", "A"), ("tier", "A"), ("tier", "B"), ("other", "A"), ("zeta", "A"), (None, "A"), ("tier", None)]

    planned = plan(to("A"), to("B"), fleet, live=live)

    assert planned.aliases[0].in_flight == {"A": 2, "B": 1}


def test_removed_and_added_aliases(fleet):
    """The removed one has no placements; the added one does not warm, since it has no old target."""
    planned = plan(a_catalogue(A, aliases={"old": "A"}), a_catalogue(A, B, aliases={"new": "B"}), fleet)

    new, old = planned.aliases
    assert (old.change, old.new, old.placements) == ("removed", None, ())
    assert (new.change, new.old, new.is_warm) == ("added", None, False)


def test_warming_alias_counts_as_moved(fleet):
    """A file that is accepted already is not a change again."""
    warming = hold_back(to("B"), to("A"), FleetReadiness(fleet))
    assert warming.warming

    assert plan(warming, to("B"), fleet).verdict == "nothing"
    assert placement(plan(to("A"), warming, fleet)).nodes == ("large",)
    assert plan(warming, to("A"), fleet).verdict == "changes"


def test_unknown_size_makes_the_memory_after_unknown(fleet):
    """The profile has no size, so the memory left on its device is unknown."""
    vague = a_profile("vague")

    planned = plan(to("A"), to("vague", A, vague), fleet)

    assert placement(planned).state == "to_load"
    assert [each.used_after_mb for each in planned.devices if each.node in placement(planned).nodes] == [None]


def test_plan_is_plain_json(fleet):
    """For the admin API and the audit log."""
    planned = plan(to("A"), to("C"), fleet, live=[("tier", "A")])

    body = msgspec.json.decode(msgspec.json.encode(planned.as_json()))
    assert body["verdict"] == "changes"
    assert body["aliases"][0]["placements"][0]["nodes"] == ["large"]
    assert body["summary"] == "~alias tier: A -> C"


def test_alias_that_could_not_be_moved_is_still_to_be_changed(fleet):
    """The file says so already, but requests go to the old target: the plan is not `nothing`, and says why."""
    warming = given_up(hold_back(to("B"), to("A"), FleetReadiness(fleet)), "tier", "no room")
    planned = plan(warming, to("B"), fleet)

    assert planned.verdict == "changes"
    assert (planned.aliases[0].old, planned.aliases[0].new) == ("A", "B")
    assert planned.notes == ("tier stays on A: B could not be warmed: no room",)
    assert plan(warming, to("A"), fleet).verdict == "nothing"


def test_alias_that_is_still_moving_is_a_note(fleet):
    """Nothing is to be done, but the alias is not there yet."""
    warming = hold_back(to("B"), to("A"), FleetReadiness(fleet))

    assert plan(warming, to("B"), fleet).notes == ("tier stays on A until B is warm",)


@pytest.mark.parametrize(("status", "state"), [("recovering", "waits"), ("poisoned", "to_load"), ("asleep", "to_load")])
def test_reason_of_a_status_is_shown(fleet, status, state):
    """In the note, and in what a placement waits for."""
    answers(
        fleet,
        "small",
        a_model("B", status, vram_used_mb=500, reason="the engine hung\nlines"),
        devices=(a_gpu(0, 10_000, 9_500),),
    )
    planned = plan(to("C"), to("B"), fleet)

    assert placement(planned).state == state
    assert placement(planned).wakes is (status == "asleep")
    assert f"B is {status} on small (the engine hung)" in planned.notes
    if state == "waits":
        assert placement(planned).reason == "model 'B' is recovering on small (the engine hung)"


def test_woken_model_takes_what_it_does_not_hold(fleet):
    """The plan of the device counts the sleeper's rest once."""
    asleep = a_model("B", "asleep", vram_used_mb=500, devices=(0,), asleep_level=1)
    answers(fleet, "small", asleep, devices=(a_gpu(0, 10_000, 9_500),))
    planned = plan(to("C"), to("B"), fleet)

    assert placement(planned).nodes == ("small",)
    after = {device.node: device.used_after_mb for device in planned.devices}
    assert after["small"] == 8000
