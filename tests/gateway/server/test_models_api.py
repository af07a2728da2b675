"""The entries of `/v1/models`, pass by pass."""

import dataclasses

import msgspec
import structlog
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from catalogue.models import Alias, Cost, Limit, Target
from gateway.fleet.reports import ActivationReport
from gateway.server.models_api import ModelsApi


def listed(catalogue, fleet, api=None):
    entries = (api or ModelsApi(owned_by="helexa", unix_time=lambda: 1_700_000_000.9)).list_models(catalogue, fleet)
    return {entry["id"]: entry for entry in msgspec.json.decode(msgspec.json.encode(entries))}


def test_pass_1_every_profile_is_listed_with_the_nodes_that_satisfy_it():
    """Listed even when nowhere feasible; only healthy nodes with known devices count."""
    fleet = a_fleet("big", "down", "never", "small", "unknown")
    answers(fleet, "big", devices=(a_gpu(total_mb=80_000),))
    answers(fleet, "small")
    answers(fleet, "unknown", devices=None)
    answers(fleet, "down")
    for _ in range(3):
        fleet.missed("down")
    entries = listed(
        a_catalogue(a_profile("any"), a_profile("huge", min_devices=9), a_profile("large", min_device_vram_mb=48_000)),
        fleet,
    )
    assert {key: entry["feasible_on"] for key, entry in entries.items()} == {
        "any": ["big", "small"],
        "huge": [],
        "large": ["big"],
    }
    assert entries["any"]["loaded"] is False
    assert entries["any"]["locations"] == []


def test_pass_1_size_of_the_model_counts():
    """Each of `min_devices` devices must hold its share of `vram_mb`, whether it is free now or not."""
    fleet = a_fleet("one", "two")
    answers(fleet, "one", devices=(a_gpu(0, 24_000, 0),))
    answers(fleet, "two", devices=(a_gpu(0, 12_000, 0), a_gpu(1, 12_000, 0)))
    needs = {
        "12": (12_000, 1),
        "24": (24_000, 1),
        "25": (25_000, 1),
        "24 on two": (24_000, 2),
        "25 on two": (25_000, 2),
    }
    profiles = [a_profile(name, vram_mb=size, min_devices=count) for name, (size, count) in needs.items()]
    assert {key: entry["feasible_on"] for key, entry in listed(a_catalogue(*profiles), fleet).items()} == {
        "12": ["one", "two"],
        "24": ["one"],
        "25": [],
        "24 on two": ["two"],
        "25 on two": [],
    }


def test_pass_2_every_node_that_knows_a_model_is_a_location():
    """`loaded` is true only if some node has it loaded."""
    fleet = a_fleet("a", "b")
    answers(fleet, "b", a_model("m", vram_used_mb=4_000), a_model("stray", "reloading"))
    answers(fleet, "a", a_model("m", "unloaded"))
    entries = listed(a_catalogue(a_profile("m")), fleet)
    assert entries["m"]["locations"] == [
        {"node": "a", "status": "unloaded", "vram_estimate_mb": None},
        {"node": "b", "status": "loaded", "vram_estimate_mb": 4_000},
    ]
    assert entries["m"]["loaded"] is True
    assert (entries["stray"]["loaded"], entries["stray"]["feasible_on"]) == (False, [])


def test_pass_2_model_loaded_from_a_source_has_its_profile_s_entry():
    """The id on the node differs from the profile's."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("ollama:m"))
    assert list(listed(a_catalogue(a_profile("m", source="ollama")), fleet)) == ["m"]


def test_pass_3_prewarming_models_are_loading_unless_the_node_reports_a_status():
    """Each model that a neuron is about to load is listed, once per node."""
    fleet = a_fleet("a")
    warming = ActivationReport("pre_warming", "now", ("next", "known"))
    answers(fleet, "a", a_model("known", "recovering"), activation=warming)
    entries = listed(a_catalogue(), fleet)
    statuses = {key: [location["status"] for location in entry["locations"]] for key, entry in entries.items()}
    assert statuses == {"known": ["recovering"], "next": ["loading"], "now": ["loading"]}


def test_pass_4_alias_is_an_entry_of_its_own_with_its_targets_fields():
    """With `alias_of`, and an id of its own."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"), a_model("stray"))
    entries = listed(a_catalogue(a_profile("m"), aliases={"tier/small": "m", "tier/x": "stray"}), fleet)
    assert list(entries) == ["m", "stray", "tier/small", "tier/x"]
    assert entries["tier/small"] == entries["m"] | {"id": "tier/small", "alias_of": "m"}
    assert entries["tier/x"]["loaded"] is True


def test_pass_4_alias_shadows_a_model_of_its_name():
    """As for requests."""
    entries = listed(a_catalogue(a_profile("m"), a_profile("n"), aliases={"m": "n", "x": "m"}), a_fleet())
    assert (entries["m"]["alias_of"], entries["x"]["alias_of"]) == ("n", "m")


def test_pass_4_alias_of_several_models_is_shown_as_the_listed_one_with_the_greatest_weight():
    """An entry names one model."""
    targets = (Target("m", 1), Target("n", 5), Target("gone", 9))
    catalogue = dataclasses.replace(
        a_catalogue(a_profile("m"), a_profile("n")),
        aliases={"x": Alias("x", targets), "dead": Alias("dead", targets[2:])},
    )

    entries = listed(catalogue, a_fleet())
    assert entries["x"] == entries["n"] | {"id": "x", "alias_of": "n"}
    assert "dead" not in entries


def test_pass_4_dead_alias_is_skipped_with_one_warning_per_generation():
    """Not one warning per request."""
    api, fleet = ModelsApi(owned_by="helexa"), a_fleet("a")
    with structlog.testing.capture_logs() as logged:
        for generation in (1, 2):
            catalogue = a_catalogue(aliases={"dead": "gone"}, generation=generation)
            for _ in range(3):
                assert api.list_models(catalogue, fleet) == []
                answers(fleet, "a", a_model("m"))
                answers(fleet, "a")
    assert [(entry["event"], entry["aliases"], entry["generation"]) for entry in logged] == [
        ("dead_aliases", ["dead"], 1),
        ("dead_aliases", ["dead"], 2),
    ]


def test_entry_fields_have_a_fixed_order():
    """The optional fields come last, and only if they are known; 0.0 is a known price."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m", tool_call=False, reasoning=True, capabilities=("vision",)), a_model("bare"))
    profile = a_profile("m", limit=Limit(context=4096), cost=Cost(input=0.0))
    entries = listed(a_catalogue(profile, aliases={"x": "m"}), fleet)
    first = ["id", "object", "created", "owned_by", "loaded", "feasible_on", "locations"]
    assert list(entries["bare"]) == first
    more = ["capabilities", "limit", "cost", "tool_call", "reasoning", "max_model_len", "alias_of"]
    assert list(entries["x"]) == [*first, *more]
    assert entries["m"]["max_model_len"] == 4096
    assert entries["m"]["limit"] == {"context": 4096}
    assert entries["m"]["cost"] == {"input": 0.0}
    assert (entries["m"]["tool_call"], entries["m"]["capabilities"]) == (False, ["vision"])
    assert (entries["m"]["object"], entries["m"]["owned_by"], entries["m"]["created"]) == (
        "model",
        "helexa",
        1_700_000_000,
    )


def test_created_is_when_an_id_was_first_listed_and_stays():
    """Also after an eviction, a reload of the catalogue and a change of an alias."""
    clock, fleet = Clock(), a_fleet("a")
    api = ModelsApi(owned_by="helexa", unix_time=clock)
    clock.now = 10
    answers(fleet, "a", a_model("m"))
    assert listed(a_catalogue(a_profile("p"), aliases={"x": "m"}), fleet, api)["m"]["created"] == 10
    clock.now = 20
    answers(fleet, "a")
    assert listed(a_catalogue(a_profile("p"), a_profile("q"), aliases={"x": "q"}), fleet, api)["q"]["created"] == 20
    answers(fleet, "a", a_model("m"))
    entries = listed(a_catalogue(a_profile("p"), aliases={"x": "p"}), fleet, api)
    assert {key: entry["created"] for key, entry in entries.items()} == {"m": 10, "p": 10, "x": 10}


def test_list_is_rebuilt_when_the_catalogue_or_the_fleet_changes():
    """Otherwise the same entries are returned."""
    api, fleet, catalogue = ModelsApi(owned_by="x"), a_fleet("a"), a_catalogue(a_profile("m"))
    seen = []

    def observe():
        entry = api.model_entry(catalogue, fleet, "m")
        assert api.model_entry(catalogue, fleet, "m") is entry
        seen.append((entry.feasible_on, [location.status for location in entry.locations]))

    observe()
    answers(fleet, "a", devices=None)
    observe()
    answers(fleet, "a")
    observe()
    fleet.loading("a", "m")
    observe()
    fleet.loaded("a", a_model("m"))
    observe()
    answers(fleet, "a", activation=ActivationReport("pre_warming", "m"))
    observe()
    for _ in range(3):
        fleet.missed("a")
    observe()
    assert seen == [
        ((), []),
        ((), []),
        (("a",), []),
        (("a",), ["loading"]),
        (("a",), ["loaded"]),
        (("a",), ["loading"]),
        ((), []),  # a neuron that is down loads nothing
    ]


def test_one_entry_is_found_by_id_or_alias_and_unknown_is_none():
    """Ids may contain slashes."""
    api, catalogue = ModelsApi(owned_by="x"), a_catalogue(a_profile("lab/m"), aliases={"t/s": "lab/m", "dead": "gone"})
    fleet = a_fleet()
    assert api.model_entry(catalogue, fleet, "lab/m").id == "lab/m"
    assert api.model_entry(catalogue, fleet, "t/s").alias_of == "lab/m"
    assert api.model_entry(catalogue, fleet, "dead") is None
    assert api.model_entry(catalogue, fleet, "gone") is None


def test_models_of_a_neuron_that_is_down_are_unreachable():
    """What it last reported may not be true any more; a drained neuron still has what it has."""
    api, fleet, catalogue = ModelsApi(owned_by="x"), a_fleet("a", "b"), a_catalogue(aliases={"tier": "m"})
    answers(fleet, "a", a_model("m"))
    answers(fleet, "b", a_model("n"))
    fleet.drain("b", draining=True)
    for _ in range(3):
        fleet.missed("a")
    entries = listed(catalogue, fleet, api)
    assert {name: (entry["loaded"], entry["locations"][0]["status"]) for name, entry in entries.items()} == {
        "m": (False, "unreachable"),
        "n": (True, "loaded"),
        "tier": (False, "unreachable"),
    }
