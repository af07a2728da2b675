"""The fleet at one moment."""

import msgspec
from fakes.fleets import a_fleet, a_model, answers


def test_snapshot_is_json_and_does_not_change_with_the_fleet():
    """A snapshot is immutable."""
    fleet = a_fleet("b", "a")
    answers(fleet, "a", a_model("m"))
    snapshot = fleet.snapshot()
    text = msgspec.json.encode(snapshot)
    fleet.dropped("a", "m")
    assert msgspec.json.encode(snapshot) == text
    assert [node["name"] for node in msgspec.json.decode(text)["nodes"]] == ["a", "b"]
    assert msgspec.json.decode(text)["nodes"][0]["models"][0]["routable"] is True
