"""When to hedge, and how many requests: pure numbers."""

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


def test_quantile_is_that_of_the_last_samples():
    """Compared with sorting the window, with equal samples."""
    drawn = random.Random(7)  # noqa: S311 - replayable, not secret
    quantile, samples = RecentQuantile(0.95, 100), []
    for _ in range(1000):
        samples.append(drawn.choice([drawn.expovariate(1), 0.5, 1.0]))
        quantile.add(samples[-1])
        window = sorted(samples[-100:])
        assert len(quantile) == len(window)
        assert quantile.value == window[math.ceil(0.95 * len(window)) - 1]


# The delay...


def test_alias_without_hedge_is_never_hedged(policy):
    """Nothing is stored for it."""
    assert policy.delay_s(an_alias(hedges=False), "m", stream=True) is None
    assert policy.spend(an_alias(hedges=False)) is False


def test_configured_delay_applies_from_the_first_request(policy):
    """No samples are needed."""
    assert policy.delay_s(an_alias(after=1.5), "m", stream=True) == 1.5


def test_p95_needs_a_minimum_of_samples(policy):
    """The p95 of a few is little but the longest."""
    alias = an_alias()
    learn(policy, alias, [1.0] * (MINIMUM_SAMPLE - 1))
    assert policy.delay_s(alias, "m", stream=True) is None
    learn(policy, alias, [1.0])
    assert policy.delay_s(alias, "m", stream=True) == 1.0 + TIE_S


def test_p95_is_recent(policy):
    """Old samples do not count once there are enough new ones."""
    alias = an_alias()
    learn(policy, alias, [9.0] * WINDOW)
    learn(policy, alias, [0.5] * WINDOW)

    assert policy.delay_s(alias, "m", stream=True) == 0.5 + TIE_S


def test_streams_models_and_aliases_have_separate_histories(policy):
    """A complete answer takes longer than a first token, and models differ."""
    alias, other = an_alias(), an_alias("large")
    learn(policy, alias, [1.0] * 99)
    learn(policy, alias, [7.0] * 99, stream=False)
    learn(policy, alias, [3.0] * 99, model="n")

    assert policy.delay_s(alias, "m", stream=True) == 1.0 + TIE_S
    assert policy.delay_s(alias, "m", stream=False) == 7.0 + TIE_S
    assert policy.delay_s(alias, "n", stream=True) == 3.0 + TIE_S
    assert policy.delay_s(other, "m", stream=True) is None


def test_histories_are_bounded(policy):
    """The oldest alias is dropped first."""
    for number in range(HISTORIES + 5):
        alias = an_alias(str(number))
        policy.delay_s(alias, "m", stream=True)
        learn(policy, alias, [1.0] * MINIMUM_SAMPLE)

    assert (len(policy._histories), len(policy._budgets)) == (HISTORIES, HISTORIES)
    assert policy.delay_s(an_alias("4"), "m", stream=True) is None
    assert policy.delay_s(an_alias(str(HISTORIES + 4)), "m", stream=True) == 1.0 + TIE_S


# The budget...


@pytest.mark.parametrize(("percent", "hedges"), [(0, 0), (1, 10), (5, 50), (12.5, 125), (100, 1000)])
def test_budget_is_never_exceeded_and_can_be_spent_whole(policy, percent, hedges):
    """At any moment, for any share of the requests so far."""
    alias, spent = an_alias(after=1.0, percent=percent), 0
    for number in range(1, 1001):
        policy.delay_s(alias, "m", stream=True)
        spent += policy.spend(alias)
        assert spent <= number * percent / 100 + 1e-9

    assert spent == pytest.approx(hedges, abs=1)


def test_budget_is_saved_from_recent_requests_only(policy):
    """At 5 % at most ten hedges in a row, after however quiet a week."""
    alias = an_alias(after=1.0)
    for _ in range(10_000):
        policy.delay_s(alias, "m", stream=True)

    assert [policy.spend(alias) for _ in range(11)] == [True] * 10 + [False]


def test_each_alias_has_its_own_budget(policy):
    """One of them may be in trouble."""
    for _ in range(100):
        policy.delay_s(an_alias("a", 1.0), "m", stream=True)

    assert policy.spend(an_alias("a", 1.0)) is True
    assert policy.spend(an_alias("b", 1.0)) is False
