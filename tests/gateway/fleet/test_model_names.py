"""Under which names neurons list a model, and where it is under any of them."""

from fakes.fleets import a_catalogue, a_fleet, a_model, a_profile, answers

from gateway.fleet.model_names import catalogue_id, holders_of, names_on_neurons, profile_of, replicas_of

CATALOGUE = a_catalogue(a_profile("plain"), a_profile("m", source="hf"))


def test_model_with_a_source_has_two_names():
    """The id comes first; without a source, or outside the catalogue, it is the only name."""
    assert names_on_neurons("m", CATALOGUE) == ("m", "hf:m")
    assert names_on_neurons("plain", CATALOGUE) == ("plain",)
    assert names_on_neurons("unlisted", CATALOGUE) == ("unlisted",)


def test_both_names_lead_back_to_the_profile():
    """A name that no profile has leads nowhere and stays as it is."""
    assert [profile_of(name, CATALOGUE).id for name in ("m", "hf:m", "plain")] == ["m", "m", "plain"]
    assert profile_of("hf:plain", CATALOGUE) is None
    assert [catalogue_id(name, CATALOGUE) for name in ("m", "hf:m", "hf:plain")] == ["m", "m", "hf:plain"]


def test_replicas_and_holders_are_found_under_either_name():
    """Replicas can take requests; holders may be in any state."""
    fleet = a_fleet("a", "b", "c")
    answers(fleet, "a", a_model("hf:m"))
    answers(fleet, "b", a_model("m"))
    answers(fleet, "c", a_model("hf:m", "unloaded"))

    assert [replica.node.name for replica in replicas_of("m", fleet, CATALOGUE)] == ["b", "a"]
    assert [holder.node.name for holder in holders_of("m", fleet, CATALOGUE)] == ["b", "a", "c"]
