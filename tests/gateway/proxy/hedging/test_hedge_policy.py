"""How long to wait before another is asked, and what that may cost: pure figures."""

import math
import random

import pytest

from catalogue.models import Alias, Hedge, Target
from gateway.proxy.hedging.hedge_policy import HISTORIES, MINIMUM_SAMPLE, TIE_S, WINDOW, HedgePolicy, RecentQuantile
from gateway.telemetry.metrics import Metrics


@pytest.fixture
def policy():
    return HedgePolicy(Metrics())


def an_alias(name="small", after=None, percent=5.0, *, hedges=True):
    return Alias(name, (Target("m"),), hedge=Hedge(after, percent) if hedges else None)


def learn(policy, alias, samples, *, model="m", stream=True):
    for sample in samples:
        policy.add_first_token(alias, model, stream=stream, after_s=sample)


# The quantile...


def test_quantile_is_that_of_the_window_whatever_came_before():
    """Checked against sorting the last so many, equals among them."""
    drawn = random.Random(7)  # noqa: S311 - replayable, not secret
    quantile, samples = RecentQuantile(0.95, 100), []
    for _ in range(1000):
        samples.append(drawn.choice([drawn.expovariate(1), 0.5, 1.0]))
        quantile.add(samples[-1])
        window = sorted(samples[-100:])
        assert len(quantile) == len(window)
        assert quantile.value == window[math.ceil(0.95 * len(window)) - 1]


# How long to wait...


def test_alias_without_hedge_never_does(policy):
    """And nothing is kept of it."""
    assert policy.delay_s(an_alias(hedges=False), "m", stream=True) is None
    assert policy.spend(an_alias(hedges=False)) is False


def test_seconds_are_what_they_say_from_the_first_request(policy):
    """No sample is needed."""
    assert policy.delay_s(an_alias(after=1.5), "m", stream=True) == 1.5


def test_p95_needs_a_sample(policy):
    """With few it is little but the longest there was."""
    alias = an_alias()
    learn(policy, alias, [1.0] * (MINIMUM_SAMPLE - 1))
    assert policy.delay_s(alias, "m", stream=True) is None
    learn(policy, alias, [1.0])
    assert policy.delay_s(alias, "m", stream=True) == 1.0 + TIE_S


def test_p95_is_recent(policy):
    """What was slow last week counts no more once there are enough new ones."""
    alias = an_alias()
    learn(policy, alias, [9.0] * WINDOW)
    learn(policy, alias, [0.5] * WINDOW)

    assert policy.delay_s(alias, "m", stream=True) == 0.5 + TIE_S


def test_streams_models_and_aliases_are_not_thrown_together(policy):
    """A whole answer takes as long as its stream, not as its first token; another model is another story."""
    alias, other = an_alias(), an_alias("large")
    learn(policy, alias, [1.0] * 99)
    learn(policy, alias, [7.0] * 99, stream=False)
    learn(policy, alias, [3.0] * 99, model="n")

    assert policy.delay_s(alias, "m", stream=True) == 1.0 + TIE_S
    assert policy.delay_s(alias, "m", stream=False) == 7.0 + TIE_S
    assert policy.delay_s(alias, "n", stream=True) == 3.0 + TIE_S
    assert policy.delay_s(other, "m", stream=True) is None


def test_histories_are_bounded(policy):
    """Aliases come and go; the one that was there first is forgotten first."""
    for number in range(HISTORIES + 5):
        alias = an_alias(str(number))
        policy.delay_s(alias, "m", stream=True)
        learn(policy, alias, [1.0] * MINIMUM_SAMPLE)

    assert (len(policy._histories), len(policy._budgets)) == (HISTORIES, HISTORIES)
    assert policy.delay_s(an_alias("4"), "m", stream=True) is None
    assert policy.delay_s(an_alias(str(HISTORIES + 4)), "m", stream=True) == 1.0 + TIE_S


# What it may cost...


@pytest.mark.parametrize(("percent", "hedges"), [(0, 0), (1, 10), (5, 50), (12.5, 125), (100, 1000)])
def test_budget_holds_at_any_moment(policy, percent, hedges):
    """Never more than so many of the requests so far; and all of it can be spent."""
    alias, spent = an_alias(after=1.0, percent=percent), 0
    for number in range(1, 1001):
        policy.delay_s(alias, "m", stream=True)
        spent += policy.spend(alias)
        assert spent <= number * percent / 100 + 1e-9

    assert spent == pytest.approx(hedges, abs=1)


def test_budget_is_of_recent_requests(policy):
    """A quiet week does not pay for a bad hour: at most ten in a row at 5 %."""
    alias = an_alias(after=1.0)
    for _ in range(10_000):
        policy.delay_s(alias, "m", stream=True)

    assert [policy.spend(alias) for _ in range(11)] == [True] * 10 + [False]


def test_aliases_do_not_spend_each_others_budget(policy):
    """One of them may be in trouble."""
    for _ in range(100):
        policy.delay_s(an_alias("a", 1.0), "m", stream=True)

    assert policy.spend(an_alias("a", 1.0)) is True
    assert policy.spend(an_alias("b", 1.0)) is False
