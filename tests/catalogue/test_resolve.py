"""One exact lookup, and a draw by weight if an alias has several targets."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogue.load import parse
from catalogue.models import Alias, Resolution, Target
from catalogue.resolve import drawn, drawn_by_key, resolve

CATALOGUE = parse(
    b"""
    [aliases]
    "helexa/large" = "Qwen/Qwen3.6-27B"
    shadow = "other"
    limited = { target = "m", deadline_seconds = 5 }
    by_chance = { targets = [{ model = "a", weight = 90 }, { model = "b", weight = 10 }] }
    by_key = { targets = ["a", "b"], sticky = "key" }
    [[models]]
    id = "shadow"
    harness = "h"
    """,
    path="models.toml",
    generation=1,
    loaded_at=0.0,
)


def test_alias_resolves_to_its_target():
    """The result has both names: the model for routing, the alias for the log."""
    assert resolve(CATALOGUE, "helexa/large") == Resolution(model="Qwen/Qwen3.6-27B", alias="helexa/large")


def test_any_other_name_resolves_to_itself():
    """Also an unknown name: routing refuses that later."""
    assert resolve(CATALOGUE, "Qwen/Qwen3.6-27B") == Resolution(model="Qwen/Qwen3.6-27B", alias=None)
    assert resolve(CATALOGUE, "nonsense") == Resolution(model="nonsense", alias=None)


def test_alias_name_must_match_exactly():
    """Case and white space count."""
    for name in ("Helexa/large", "helexa/large ", "large", ""):
        assert resolve(CATALOGUE, name).alias is None


def test_alias_hides_a_model_of_the_same_name():
    """The alias always wins."""
    assert resolve(CATALOGUE, "shadow") == Resolution(model="other", alias="shadow")


def test_alias_with_more_keys_is_part_of_the_resolution():
    """The request path reads its other keys there."""
    assert resolve(CATALOGUE, "limited") == Resolution("m", "limited", CATALOGUE.aliases["limited"])


def test_key_of_a_request_is_computed_only_if_needed():
    """Computing it means reading the body."""
    calls = []

    def key_of(sticky):
        calls.append(sticky)
        return b"k"

    for name in ("nonsense", "helexa/large", "limited", "by_chance"):
        resolve(CATALOGUE, name, key_of)
    assert calls == []

    resolve(CATALOGUE, "by_key", key_of)
    assert calls == ["key"]


def test_request_without_a_key_is_drawn_at_random():
    """A sticky alias does not refuse it."""
    models = {
        resolve(CATALOGUE, "by_key", draw=lambda chance=chance: chance).model for chance in (0.0, 0.49, 0.51, 0.99)
    }

    assert models == {"a", "b"}


# Shares ...............................................................................................................

WEIGHTS = [(90, 10), (1, 1, 1), (50, 30, 15, 5), (99, 1), (0, 7, 3), (0.5, 0.25)]
CHI_SQUARE_AT_1_IN_10000 = {1: 15.14, 2: 18.42, 3: 21.11}  # by degrees of freedom


def alias_of(weights, name="helexa/x"):
    return Alias(name, tuple(Target(f"model-{index}", weight) for index, weight in enumerate(weights)))


def chi_square(counted, alias, draws):
    total = sum(target.weight for target in alias.targets)
    expected = {target.model: draws * target.weight / total for target in alias.targets if target.weight}
    assert counted.keys() <= expected.keys(), "a target with weight 0 was drawn"
    return sum((counted[model] - count) ** 2 / count for model, count in expected.items()), len(expected) - 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_are_those_of_the_weights(weights):
    """By key and at random. A chi-square test would reject one correct draw in 10,000."""
    alias, draws, chance = alias_of(weights), 20_000, random.Random(4)  # noqa: S311 - a seed is the point
    by_key = Counter(drawn_by_key(alias, b"conversation %d" % number) for number in range(draws))
    by_chance = Counter(drawn(alias, chance.random()) for _ in range(draws))

    for counted in (by_key, by_chance):
        statistic, freedom = chi_square(counted, alias, draws)
        assert statistic < CHI_SQUARE_AT_1_IN_10000[freedom]


def test_draws_of_two_aliases_are_independent():
    """Otherwise the same keys would get the small share of every alias."""
    first, second = alias_of((50, 50), "first"), alias_of((50, 50), "second")
    same = sum(drawn_by_key(first, b"%d" % n) == drawn_by_key(second, b"%d" % n) for n in range(4000))

    assert 1850 < same < 2150


weights_strategy = st.lists(st.integers(0, 100), min_size=2, max_size=6).filter(any)
keys = st.binary(max_size=20)


@given(weights_strategy, st.integers(0, 5), st.integers(1, 100), st.lists(keys, max_size=30))
def test_more_weight_moves_keys_to_that_target_only(weights, which, more, some_keys):
    """No key moves between the other targets."""
    which %= len(weights)
    before = alias_of(weights)
    after = alias_of([weight + more * (index == which) for index, weight in enumerate(weights)])

    for key in some_keys:
        old, new = drawn_by_key(before, key), drawn_by_key(after, key)
        assert new in {old, f"model-{which}"}


@given(weights_strategy, st.lists(keys, max_size=30), st.randoms())
def test_order_of_targets_does_not_matter_to_a_key(weights, some_keys, chance):
    """Nor does a common factor of all weights."""
    alias = alias_of(weights)
    targets = [Target(target.model, target.weight * 8) for target in alias.targets]
    chance.shuffle(targets)

    for key in some_keys:
        assert drawn_by_key(Alias(alias.name, tuple(targets)), key) == drawn_by_key(alias, key)


@given(weights_strategy, st.floats(0, 1, exclude_max=True))
def test_any_draw_hits_a_target_with_a_weight(weights, chance):
    """Also at both ends of the range."""
    alias = alias_of(weights)

    assert drawn(alias, chance) in alias.active
