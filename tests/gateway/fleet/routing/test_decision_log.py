"""Notes on routing decisions: none on a trivial one, a verdict on every node where something stood in the way."""

import pytest
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers

from gateway.errors import GatewayError
from gateway.fleet.routing import decision_log
from gateway.fleet.routing.choose import WaitForSlot, choose
from gateway.fleet.routing.decision_log import LIMIT, NodeVerdict


@pytest.fixture
def fleet():
    """Three nodes that have answered, and one that never did."""
    clock = Clock()
    clock.now = 100.0
    fleet = a_fleet("a", "b", "c", "d", clock=clock)
    for name in "abc":
        answers(fleet, name)
    return fleet


def noted(fleet, *profiles, model="m", failed_on=(), made=None, into=None):
    """The notes on the decision that `choose` makes now."""
    kept = [] if into is None else into
    catalogue = a_catalogue(*profiles)
    if made is None:
        try:
            made = choose(model, fleet, catalogue, exclude=failed_on)
        except GatewayError as error:
            made = error
    decision_log.note_decision(kept, made, model=model, fleet=fleet, catalogue=catalogue, failed_on=failed_on)
    return kept


def states(choice):
    return {verdict.node: (verdict.state, verdict.detail) for verdict in choice.node_verdicts()}


def test_decision_for_the_only_replica_is_not_noted(fleet):
    """The record of the attempt says enough."""
    answers(fleet, "a", a_model("m"))

    assert noted(fleet) == []


def test_several_replicas_are_noted_with_their_load(fleet):
    """With the load at the time; nodes without the model are left out."""
    answers(fleet, "a", a_model("m", in_flight=2))
    answers(fleet, "b", a_model("m"))
    [choice] = noted(fleet)
    with fleet.lease("b", "m"):
        assert choice[:4] == (100.0, "m", "route", "b")
        assert choice.node_verdicts() == (
            NodeVerdict("a", "passed over", "2 requests"),
            NodeVerdict("b", "chosen", "0 requests"),
        )


def test_cold_model_gets_a_verdict_on_every_neuron(fleet):
    """Where the model fits, how, and why not."""
    answers(fleet, "a", devices=(a_gpu(free_mb=20_000),))
    answers(fleet, "b", devices=(a_gpu(free_mb=100),))
    answers(fleet, "c", devices=(a_gpu(total_mb=8_000, free_mb=8_000),))
    [choice] = noted(fleet, a_profile("m", vram_mb=9_000, min_device_vram_mb=9_000))

    assert (choice.decision, choice.node) == ("load", None)
    assert states(choice) == {
        "a": ("not loaded", "it fits, 20000 MB free"),
        "b": ("not loaded", "no room, 100 MB free"),
        "c": ("not loaded", "cannot hold it"),
        "d": ("unhealthy", "never answered"),
    }


def test_load_under_way_is_noted(fleet):
    """With the node that loads it."""
    fleet.loading("b", "m")
    [choice] = noted(fleet, a_profile("m"))

    assert choice.decision == "wait for the load"
    assert states(choice)["b"] == ("loading", "")
    answers(fleet, "b", a_model("m", "loading", progress=0.4))
    [choice] = noted(fleet, a_profile("m"))
    assert states(choice)["b"] == ("loading", "40% done")


@pytest.mark.parametrize("status", ["recovering", "poisoned", "asleep"])
def test_reason_of_a_status_is_noted(fleet, status):
    """The first line of what the neuron says; `choose` has it in its error."""
    answers(fleet, "b", a_model("m", status, reason="the engine hung\n  its last lines", vram_used_mb=500))
    [choice] = noted(fleet, a_profile("m", pinned_on=("b",)))
    state, detail = states(choice)["b"]

    assert state == status
    assert detail.startswith("the engine hung")
    assert "last lines" not in detail
    if status != "asleep":  # which is woken
        with pytest.raises(GatewayError, match=f"{status} on b \\(the engine hung\\)|on b \\(the engine hung\\)"):
            choose("m", fleet, a_catalogue(a_profile("m", pinned_on=("b",))))


def test_failed_draining_and_unhealthy_nodes_are_noted(fleet):
    """`failed before` is about this request only."""
    for name in "abc":
        answers(fleet, name, a_model("m"))
    fleet.drain("b", draining=True)
    for _ in range(3):
        fleet.missed("c", "gone")
    [choice] = noted(fleet, failed_on={"a"})

    assert choice.decision == "service_unavailable"
    assert states(choice) == {
        "a": ("failed before", "this request"),
        "b": ("draining", ""),
        "c": ("unhealthy", "3 misses in a row: gone"),
        "d": ("unhealthy", "never answered"),
    }


def test_open_breaker_and_retry_after_are_noted(fleet):
    """They explain why the request went to the third node."""
    for name in "abc":
        answers(fleet, name, a_model("m"))
    for _ in range(5):
        fleet.nodes["a"].breaker.failed(fleet.now(), "it broke off")
    fleet.busy("b", "m", 30)
    [choice] = noted(fleet)

    assert choice.node == "c"
    assert states(choice) == {
        "a": ("breaker open", "it broke off"),
        "b": ("busy", "its Retry-After ends in 30 s"),
        "c": ("chosen", ""),
        "d": ("unhealthy", "never answered"),
    }


def test_model_that_cannot_serve_is_noted_with_its_state(fleet):
    """With the neuron's reason, clipped."""
    answers(fleet, "a", a_model("m", servable_ok=False, servable_reason="out of memory" + "!" * 999))
    answers(fleet, "b", a_model("m", "poisoned"))
    [choice] = noted(fleet)

    assert choice.decision == "service_unavailable"
    assert states(choice)["a"][0] == "not servable"
    assert states(choice)["a"][1].startswith("out of memory!")
    assert len(states(choice)["a"][1]) == 200
    assert states(choice)["b"] == ("poisoned", "")


def test_wait_for_a_slot_is_noted_with_the_load(fleet):
    """Of each node that has the model."""
    answers(fleet, "a", a_model("m"))
    with fleet.lease("a", "m"), fleet.lease("a", "m"):
        [choice] = noted(fleet, made=WaitForSlot("m"))

    assert choice.decision == "wait for a place"
    assert states(choice)["a"] == ("waited for", "2 requests")


def test_model_under_its_source_name_is_noted(fleet):
    """A neuron lists it as `source:id`."""
    answers(fleet, "a", a_model("hf:m"))
    answers(fleet, "b", a_model("hf:m"))
    [choice] = noted(fleet, a_profile("m", source="hf"))

    assert [verdict.node for verdict in choice.node_verdicts()] == ["a", "b"]


def test_notes_of_one_request_are_bounded(fleet):
    """However often a decision is made."""
    kept = []
    for _ in range(LIMIT + 5):
        noted(fleet, into=kept)

    assert len(kept) == LIMIT
