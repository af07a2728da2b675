"""The body of `/health`."""

import pytest
from fakes.fleets import a_fleet, a_model, answers

from gateway.server.health import health_body

GOOD = {"generation": 3, "loaded_at": 1.5, "path": "/etc/m.toml", "error": None}
BAD = GOOD | {"error": {"message": "unknown key"}}


@pytest.mark.parametrize(
    ("healthy", "servable", "catalogue", "status"),
    [
        (True, True, GOOD, "ok"),
        (True, False, GOOD, "impaired"),
        (True, True, BAD, "impaired"),
        (False, True, GOOD, "degraded"),
        (False, False, BAD, "degraded"),
    ],
)
def test_status_is_the_worst_that_applies(healthy, servable, catalogue, status):
    """No healthy neuron: degraded. A refused file or an unservable model on a healthy neuron: impaired."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m", servable_ok=servable, servable_reason=None if servable else "no room"))
    if not healthy:
        for _ in range(3):
            fleet.missed("a")
    body = health_body(fleet, catalogue)
    assert body["status"] == status
    assert body["nodes"] == {"healthy": int(healthy), "total": 2}
    assert body["catalogue"] == catalogue
    named = [{"node": "a", "model": "m", "reason": "no room"}]
    assert body.get("unservable") == (named if healthy and not servable else None)
