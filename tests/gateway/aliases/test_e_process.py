"""gateway.aliases.e_process: bets that are fair between equals and pay when one group is worse."""

import itertools
import math
import random

import pytest

from gateway.aliases.e_process import Evidence

RATIOS = (2.0, 8.0, 1 / 8)


def seeded(seed):
    return random.Random(seed)  # noqa: S311 - chance that can be had again


@pytest.mark.parametrize(("new", "old", "bad"), [(5, 5, 3), (3, 12, 4), (1, 1, 1), (6, 4, 9), (5, 40, 2)])
def test_bet_is_fair_whoever_is_bad(new, old, bad):
    """Over every way to choose the bad ones among all, the mean wealth is the stake: exactly, not for large samples."""
    total = 0.0
    choices = 0
    for chosen in itertools.combinations(range(new + old), bad):
        bets = Evidence(RATIOS)
        bets.take(new, old, sum(index < new for index in chosen), bad)
        total += bets.wealth
        choices += 1

    assert total / choices == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("bad", [0, 10])
def test_block_without_a_difference_to_see_is_no_evidence(bad):
    """All well or all bad: nobody wins or loses."""
    bets = Evidence(RATIOS)

    bets.take(4, 6, 4 if bad else 0, bad)

    assert bets.wealth == pytest.approx(1)


def test_wealth_is_the_likelihood_ratio():
    """By hand: 2 new of which 1 is bad, 2 old of which none is; odds ratio 3."""
    bets = Evidence((3.0,))

    bets.take(2, 2, 1, 1)

    assert bets.wealth == pytest.approx(3 * math.comb(4, 1) / (math.comb(2, 0) * 2 + 3 * math.comb(2, 1)))


def test_blocks_multiply():
    """Two blocks are two bets, the second with what the first has made."""
    once, twice = Evidence((4.0,)), Evidence((4.0,))
    once.take(5, 50, 4, 5)
    for _ in range(2):
        twice.take(5, 50, 4, 5)

    assert twice.wealth == pytest.approx(once.wealth**2)


def test_certainty_is_a_number():
    """After a long time of evident difference, too."""
    bets = Evidence((64.0,))
    for _ in range(10_000):
        bets.take(50, 50, 50, 50)

    assert 1e300 < bets.wealth < math.inf


def test_wealth_seldom_exceeds_a_limit_between_equals():
    """Ville: at most one in 20 ever doubles its stake twentyfold, looked at after every block of a long run."""
    rng = seeded(7)
    exceeded = 0
    for _ in range(300):
        bets = Evidence((2.0, 4.0, 8.0))
        for _ in range(60):
            bad_new, bad_old = (sum(rng.random() < 0.1 for _ in range(size)) for size in (5, 20))
            bets.take(5, 20, bad_new, bad_new + bad_old)
            if bets.wealth >= 20:
                exceeded += 1
                break

    assert exceeded / 300 <= 1 / 20
