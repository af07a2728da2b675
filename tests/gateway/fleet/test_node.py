"""A model on a node: whether it is routable, its load, and its residency."""

import pytest
from fakes.fleets import Clock, a_fleet, a_model, answers, where

from gateway.fleet.reports import NodeReport


@pytest.mark.parametrize(
    ("status", "routable"),
    [
        ("loaded", True),
        ("reloading", True),
        ("unloaded", False),
        ("loading", False),
        ("recovering", False),
        ("poisoned", False),
        ("LOADED", False),
        ("something-new", False),
        ("", False),
    ],
)
def test_only_loaded_and_reloading_are_routable(status, routable):
    """An unknown status is not routable."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m", status))
    assert bool(fleet.replicas("m")) is routable


@pytest.mark.parametrize("more", [{"servable_ok": False}, {"url": None}])
def test_loaded_is_not_routable_when_unservable_or_without_a_url(more):
    """A model that cannot answer, or whose URL is unknown, is not a replica."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m", **more))
    assert fleet.replicas("m") == ()


def test_model_being_loaded_is_routable_as_soon_as_the_neuron_reports_it_loaded():
    """A poll may see the end of a load before the load call returns."""
    fleet = a_fleet("a")
    answers(fleet, "a")
    fleet.loading("a", "m")
    assert fleet.nodes["a"].is_loading("m")
    answers(fleet, "a", a_model("m", "loading"))
    assert fleet.replicas("m") == ()
    answers(fleet, "a", a_model("m"))
    assert where(fleet, "m") == ["a"]


def test_model_being_unloaded_takes_no_requests_but_is_still_there():
    """A model that is being evicted stays known, so a request for it does not get a 404."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    fleet.unloading("a", "m")
    assert fleet.replicas("m") == ()
    answers(fleet, "a", a_model("m"))
    assert fleet.holders("m")[0].status == "unloading"
    fleet.unchanged("a", "m")
    assert where(fleet, "m") == ["a"]


def test_load_counts_our_own_requests_once():
    """The neuron's counters include our requests; only the rest are requests of others."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    with fleet.lease("a", "m"), fleet.lease("a", "m"):
        answers(fleet, "a", a_model("m", in_flight=4, queue_depth=1))
        assert fleet.replicas("m")[0].load == 5
    assert fleet.replicas("m")[0].load == 3


def test_load_does_not_count_an_ended_request_of_ours_as_a_request_of_others():
    """A request that ended during the poll was ours when the neuron counted it."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    with fleet.lease("a", "m"):
        mark = fleet.mark("a")
    fleet.answered("a", NodeReport((a_model("m", in_flight=1),)), since=mark)
    assert fleet.replicas("m")[0].load == 0


def test_overdue_load_is_shown_as_loading_but_not_waited_for():
    """The next load of the model is not overdue."""
    fleet = a_fleet("a")
    answers(fleet, "a")
    for end in (lambda: fleet.unchanged("a", "m"), lambda: fleet.loaded("a", a_model("m"))):
        fleet.loading("a", "m")
        assert fleet.nodes["a"].is_loading("m")
        fleet.overdue("a", "m")
        assert fleet.nodes["a"].models["m"].status == "loading"
        assert not fleet.nodes["a"].is_loading("m")
        end()
    assert where(fleet, "m") == ["a"]
    assert not fleet.nodes["a"].models["m"].is_overdue


def test_residence_begins_when_first_seen_loaded_and_ends_with_it():
    """Residency counts from when the model was first seen loaded, and ends when it is not."""
    clock = Clock()
    fleet = a_fleet("a", clock=clock)
    since = []
    for now, status in [(1, "loading"), (2, "loaded"), (3, "reloading"), (4, "unloaded"), (5, "loaded")]:
        clock.now = now
        answers(fleet, "a", a_model("m", status))
        since.append(fleet.holders("m")[0].resident_since)
    assert since == [None, 2, 2, None, 5]
