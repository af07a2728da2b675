"""Which aliases of a new file must be warmed, and how a warm swap ends."""

import pytest

from catalogue.diff import diff
from catalogue.load import parse
from catalogue.models import Warming
from catalogue.warming import given_up, hold_back, moved, tried_again


class Fleet:
    """Which models can serve, and which have answered a request."""

    def __init__(self, *servable, proven=()):
        self.servable = servable
        self.proven = proven

    def is_servable(self, model, _catalogue):
        return model in self.servable

    def is_proven(self, model, _catalogue):
        return model in self.proven


def catalogue(text, generation=1):
    return parse(f"[aliases]\n{text}".encode(), path="models.toml", generation=generation, loaded_at=0.0)


def swap_result(before, after, fleet):
    """The targets in force after a change of the file, and the models that are warmed."""
    found = hold_back(catalogue(after, 2), catalogue(before), fleet)
    in_force = [(target.model, target.weight) for target in found.aliases["x"].targets]
    return in_force, {name: warming.newcomers for name, warming in found.warming.items()}


@pytest.mark.parametrize(
    ("before", "after", "fleet", "in_force", "warming"),
    [
        ('x = "a"', 'x = "b"', Fleet("a"), [("a", 1)], {"x": ("b",)}),
        ('x = "a"', 'x = "b"', Fleet("a", "b"), [("a", 1)], {"x": ("b",)}),  # loaded, but not proven
        ('x = "a"', 'x = "b"', Fleet("a", "b", proven="b"), [("b", 1)], {}),
        ('x = "a"', 'x = "b"', Fleet(), [("b", 1)], {}),  # no old target can serve
        ('x = "a"', 'x = { target = "b", swap = "cold" }', Fleet("a"), [("b", 1)], {}),
        ('x = { target = "a", swap = "cold" }', 'x = "b"', Fleet("a"), [("a", 1)], {"x": ("b",)}),
        ('y = "a"', 'x = "b"\ny = "a"', Fleet("a"), [("b", 1)], {}),  # a new alias
        ('x = ["a", "b"]', 'x = "b"', Fleet("a", "b"), [("b", 1)], {}),  # it had traffic already
        ('x = ["a", "b"]', 'x = ["b", "c"]', Fleet("b"), [("a", 1), ("b", 1)], {"x": ("c",)}),
        ('x = ["a"]', 'x = ["c", "a", "b"]', Fleet("a", proven="c"), [("a", 1)], {"x": ("c", "b")}),
        ('x = [["a", 9], ["b", 1]]', 'x = [["a", 1], ["b", 9]]', Fleet("a"), [("a", 1), ("b", 9)], {}),
        ('x = [["a", 9], ["b", 0]]', 'x = [["a", 9], ["b", 1]]', Fleet("a"), [("a", 9), ("b", 0)], {"x": ("b",)}),
        ('x = "a"', 'x = [["a", 9], ["b", 0]]', Fleet("a"), [("a", 9), ("b", 0)], {}),  # no traffic for b
    ],
)
def test_alias_waits_for_targets_that_may_be_cold(before, after, fleet, in_force, warming):
    """If they are new in the alias, and an old target can serve meanwhile."""

    def written(text):
        lines = []
        for line in text.split("\n"):
            name, _, value = line.partition(" = ")
            if value.startswith("[["):
                pairs = [pair.strip("[] ").split(", ") for pair in value.split("], [")]
                value = "[" + ", ".join(f"{{ model = {model}, weight = {weight} }}" for model, weight in pairs) + "]"
            lines.append(f"{name} = {{ targets = {value} }}" if value.startswith("[") else line)
        return "\n".join(lines)

    assert swap_result(written(before), written(after), fleet) == (in_force, warming)


def test_rest_of_the_file_is_in_force_at_once():
    """Also the other keys of the alias: only its targets wait."""
    before = catalogue('x = "a"\ny = "a"\ngone = "a"')
    after = catalogue('x = { target = "b", deadline_seconds = 5 }\ny = { target = "a", echo = "alias" }\nnew = "b"')
    found = hold_back(after, before, Fleet("a"))

    assert found.aliases["x"].target == "a"
    assert found.aliases["x"].deadline_seconds == 5
    assert found.aliases["y"].echo == "alias"
    assert found.aliases.keys() == {"x", "y", "new"}
    assert found.warming == {"x": Warming(after.aliases["x"], ("b",), frozenset("a"))}
    assert (found.guarded, found.kept_until_loaded("b"), found.kept_until_loaded("z")) == ({"a", "b"}, {"a"}, set())


def test_completed_swap_is_one_new_generation():
    """The alias is as in the file, and no models are guarded."""
    waiting = hold_back(catalogue('x = "b"', 2), catalogue('x = "a"'), Fleet("a"))
    found = moved(waiting, "x")

    assert (found.generation, found.aliases["x"].target, found.warming, found.guarded) == (3, "b", {}, frozenset())
    assert (found.digest, waiting.aliases["x"].target) == (waiting.digest, "a")
    assert str(diff(waiting, found)) == "~alias x: a -> b"


def test_failed_swap_keeps_the_old_target_and_guards_nothing():
    """A failure must not keep two models loaded for ever. The generation stays, because no requests moved."""
    waiting = hold_back(catalogue('x = "b"', 2), catalogue('x = "a"'), Fleet("a"))
    found = given_up(waiting, "x", "no room")

    assert (found.generation, found.aliases["x"].target, found.warming["x"].failed) == (2, "a", "no room")
    assert (found.guarded, found.kept_until_loaded("b")) == (frozenset(), frozenset())
    assert str(diff(waiting, found)) == "!alias x: not moved: no room"
    assert diff(waiting, found).as_json()["swaps_failed"] == [{"name": "x", "reason": "no room"}]

    again = tried_again(found, "x")
    assert again == waiting
    assert str(diff(found, again)) == "~alias x: a -> b once warm"


def test_newer_file_replaces_the_warm_swap_of_an_older_one():
    """Back to the old target: nothing to do. To a third target: that one is warmed."""
    waiting = hold_back(catalogue('x = "b"', 2), catalogue('x = "a"'), Fleet("a"))

    back = hold_back(catalogue('x = "a"', 3), waiting, Fleet("a"))
    assert (back.aliases["x"].target, back.warming) == ("a", {})
    assert not diff(waiting, back)

    on = hold_back(catalogue('x = "c"', 3), waiting, Fleet("a"))
    assert (on.aliases["x"].target, on.warming["x"].newcomers) == ("a", ("c",))

    same = hold_back(catalogue('x = "b"\ny = "z"', 3), waiting, Fleet("a"))
    assert str(diff(waiting, same)) == "+alias y -> z"
    failed = given_up(waiting, "x", "no room")
    assert hold_back(catalogue('x = "b"\ny = "z"', 3), failed, Fleet("a")).warming["x"].failed is None


def test_diff_lists_a_warm_swap():
    """As a future change, not as one in force."""
    before = catalogue('x = "a"')
    waiting = hold_back(catalogue('x = { targets = ["b", "c"], sticky = "key" }', 2), before, Fleet("a"))
    changes = diff(before, waiting)

    assert str(changes) == "~alias x: sticky none -> key; ~alias x: a -> [b 1, c 1] once warm"
    assert changes.as_json()["aliases_warming"][0]["fields"][0]["new"] == [
        {"model": "b", "weight": 1.0},
        {"model": "c", "weight": 1.0},
    ]
