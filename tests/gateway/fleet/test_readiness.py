"""Whether the fleet can serve a model, and has already."""

from fakes.fleets import a_catalogue, a_fleet, a_model, a_profile, answers

from gateway.fleet.circuit_breaker import FAILURES
from gateway.fleet.readiness import FleetReadiness

CATALOGUE = a_catalogue(a_profile("m", source="hf"))


def test_model_is_servable_once_loaded_and_proven_once_it_has_answered():
    """An error response proves nothing."""
    fleet = a_fleet("a")
    readiness = FleetReadiness(fleet)
    answers(fleet, "a")
    assert not readiness.is_servable("m", CATALOGUE)

    answers(fleet, "a", a_model("hf:m"))
    fleet.succeeded("a", "hf:m")
    assert readiness.is_servable("m", CATALOGUE)
    assert not readiness.is_proven("m", CATALOGUE)

    fleet.succeeded("a", "hf:m", answered=True)
    assert readiness.is_proven("m", CATALOGUE)


def test_model_behind_an_open_circuit_breaker_is_not_proven():
    """Its answers are older than the failures."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    fleet.succeeded("a", "m", answered=True)
    for _ in range(FAILURES):
        fleet.at_fault("a", "m", "500")

    assert not FleetReadiness(fleet).is_proven("m", CATALOGUE)
