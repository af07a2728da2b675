"""gateway.aliases.e_process: e-values are valid under the null hypothesis, and grow if one target is worse."""

import itertools
import math
import random

import pytest

from gateway.aliases.e_process import EProcess

ODDS_RATIOS = (2.0, 8.0, 1 / 8)


def seeded(seed):
    return random.Random(seed)  # noqa: S311 - reproducible


@pytest.mark.parametrize(("new", "old", "bad"), [(5, 5, 3), (3, 12, 4), (1, 1, 1), (6, 4, 9), (5, 40, 2)])
def test_expectation_under_the_null_hypothesis_is_one(new, old, bad):
    """Exactly, over every choice of the bad requests among all; not only for large samples."""
    total = 0.0
    choices = 0
    for chosen in itertools.combinations(range(new + old), bad):
        e_process = EProcess(ODDS_RATIOS)
        e_process.update(new, old, sum(index < new for index in chosen), bad)
        total += e_process.value
        choices += 1

    assert total / choices == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("bad", [0, 10])
def test_block_with_one_possible_outcome_is_no_evidence(bad):
    """All requests are good, or all are bad."""
    e_process = EProcess(ODDS_RATIOS)

    e_process.update(4, 6, 4 if bad else 0, bad)

    assert e_process.value == pytest.approx(1)


def test_value_is_the_likelihood_ratio():
    """By hand: 2 new requests of which 1 is bad, 2 old ones of which none is; odds ratio 3."""
    e_process = EProcess((3.0,))

    e_process.update(2, 2, 1, 1)

    assert e_process.value == pytest.approx(3 * math.comb(4, 1) / (math.comb(2, 0) * 2 + 3 * math.comb(2, 1)))


def test_values_of_blocks_multiply():
    """Two equal blocks square the value."""
    once, twice = EProcess((4.0,)), EProcess((4.0,))
    once.update(5, 50, 4, 5)
    for _ in range(2):
        twice.update(5, 50, 4, 5)

    assert twice.value == pytest.approx(once.value**2)


def test_value_stays_finite():
    """After a long time of an evident difference, too."""
    e_process = EProcess((64.0,))
    for _ in range(10_000):
        e_process.update(50, 50, 50, 50)

    assert 1e300 < e_process.value < math.inf


def test_value_rarely_exceeds_the_limit_under_the_null_hypothesis():
    """Ville's inequality: at most one run in 20 ever reaches 20, checked after every block of a long run."""
    rng = seeded(7)
    exceeded = 0
    for _ in range(300):
        e_process = EProcess((2.0, 4.0, 8.0))
        for _ in range(60):
            bad_new, bad_old = (sum(rng.random() < 0.1 for _ in range(size)) for size in (5, 20))
            e_process.update(5, 20, bad_new, bad_new + bad_old)
            if e_process.value >= 20:
                exceeded += 1
                break

    assert exceeded / 300 <= 1 / 20
