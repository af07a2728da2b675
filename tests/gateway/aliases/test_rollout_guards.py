"""gateway.aliases.rollout_guards: worse targets trip the right guard, equal targets trip none."""

import random

import pytest

from gateway.aliases.rollout_guards import DEFAULT_ALPHA, DEFAULT_MINIMUM, DEFAULT_TOLERANCES, StepComparison
from gateway.telemetry.observation import Observation

STEPS = (0.05, 0.25, 0.5)


def seeded(seed):
    return random.Random(seed)  # noqa: S311 - reproducible


def a_request(rng, *, slower=1.0, failing=0.01, speed=1.0, cut_off=0.1, broken=0.02, leaving=0.02):
    """One request to a typical target: skewed times, some failures, some clients that leave."""
    if rng.random() < leaving:
        return Observation("a", "t", None, waited_s=slower * rng.expovariate(0.5))
    if rng.random() < failing:
        return Observation("a", "t", failed=True, error="upstream 500")
    calls_tools = rng.random() < 0.3
    return Observation(
        "a",
        "t",
        failed=False,
        first_token_s=slower * rng.lognormvariate(-0.7, 0.5),
        tokens_per_s=speed * rng.lognormvariate(3.5, 0.3),
        finish_reason="length" if rng.random() < cut_off else "tool_calls" if calls_tools else "stop",
        tool_calls_valid=rng.random() >= broken if calls_tools else None,
    )


def a_comparison(guards=DEFAULT_TOLERANCES, minimum=DEFAULT_MINIMUM):
    return StepComparison(guards, alpha=DEFAULT_ALPHA / len(STEPS), minimum=minimum, old="OLD", new="NEW")


def a_step(rng, share, at_least, *, guards=DEFAULT_TOLERANCES, **new):
    """Run a step that checks the guards after every request; its GuardTrip, or None."""
    comparison = a_comparison(guards)
    requests = 0
    while requests < at_least or not comparison.has_minimum:
        requests += 1
        is_new = rng.random() < share
        comparison.add(a_request(rng, **(new if is_new else {})), is_new=is_new)
        if trip := comparison.trip():
            return trip
    return None


def test_equal_targets_are_not_rolled_back():
    """At most four of 200 rollouts are, although the guards are checked after each request."""
    rolled_back = 0
    for seed in range(200):
        rng = seeded(seed)
        rolled_back += any(a_step(rng, share, 300) for share in STEPS)

    assert rolled_back <= 4


@pytest.mark.parametrize(
    ("new", "guard", "words"),
    [
        ({"failing": 0.5}, "errors", "requests failed at NEW (most often: upstream 500), "),
        ({"slower": 5}, "ttft", "p95 of the time to the first token is "),
        ({"slower": 60, "leaving": 0.9}, "ttft", "p95 of the time to the first token is "),
        ({"speed": 0.3}, "speed", "median speed is "),
        ({"cut_off": 0.8}, "finish", "of answers end with 'length' at NEW, "),
        ({"broken": 0.8}, "tools", "answers with tool calls cannot be parsed at NEW, "),
    ],
)
def test_worse_target_is_found_at_the_first_step_for_the_right_reason(new, guard, words):
    """The guard of the worse figure trips, in nineteen runs of twenty."""
    trips = [a_step(seeded(seed), STEPS[0], 800, **new) for seed in range(20)]

    found = [trip for trip in trips if trip is not None and trip.guard == guard]
    assert len(found) >= 19
    assert all(words in trip.figure for trip in found)
    assert str(found[0]).startswith(f"{guard}: ")


@pytest.mark.parametrize("new", [{"failing": 0.0}, {"slower": 0.3}, {"speed": 3}, {"broken": 0.0}])
def test_better_target_trips_no_guard(new):
    """Guards are one-sided, except for finish reasons."""
    guards = {guard: tolerance for guard, tolerance in DEFAULT_TOLERANCES.items() if guard != "finish"}

    assert not any(a_step(seeded(seed), 0.5, 600, guards=guards, **new) for seed in range(10))


def test_certain_difference_within_the_tolerance_is_accepted():
    """30 % more time is within a tolerance of 50 %."""
    guards = {"ttft": 0.5}

    assert not any(a_step(seeded(seed), 0.5, 1500, guards=guards, slower=1.3) for seed in range(5))
    assert all(a_step(seeded(seed), 0.5, 1500, guards=guards, slower=3.0) for seed in range(5))


def test_certain_failures_within_the_tolerance_are_accepted():
    """Three of two hundred against none are certain, and within a tolerance of five percent."""
    for tolerance, trips in ((0.05, False), (0.005, True)):
        comparison = a_comparison({"errors": tolerance})
        for number in range(4000):
            comparison.add(Observation("a", "t", failed=False), is_new=False)
            failed = number % 200 < 3
            error = "upstream 500" if failed else None
            comparison.add(Observation("a", "t", failed=failed, error=error), is_new=True)

        assert comparison._tests["errors"].e_value > comparison._trip_at
        assert (comparison.trip() is not None) == trips


def test_target_that_never_answers_trips_the_first_token_guard():
    """Its clients leave, after waiting longer than any client of the old target."""
    comparison = a_comparison({"ttft": 0.25})
    for _ in range(100):
        comparison.add(Observation("a", "t", failed=False, first_token_s=1.0), is_new=False)
        comparison.add(Observation("a", "t", None, waited_s=9.0), is_new=True)

    assert not comparison.has_minimum
    trip = comparison.trip()
    assert trip is not None
    assert "is 9 s at NEW, 1 s at OLD" in str(trip)


def test_alpha_is_divided_among_guards():
    """The more guards, the larger the e-value that each needs."""
    assert a_comparison(DEFAULT_TOLERANCES)._trip_at == pytest.approx(
        len(DEFAULT_TOLERANCES) * len(STEPS) / DEFAULT_ALPHA
    )


def test_guard_that_is_not_set_does_not_trip():
    """An operator who expects longer answers leaves `finish` out."""
    guards = {"errors": 0.02}

    assert not any(a_step(seeded(seed), 0.5, 600, guards=guards, cut_off=0.9, slower=9) for seed in range(5))


def failed(is_failed):
    return Observation("a", "t", failed=is_failed, error="upstream 500" if is_failed else None)


def test_no_guard_trips_before_the_minimum():
    """However large its e-value: 19 failures of 19 are fewer than 20."""
    comparison = a_comparison()
    for _ in range(500):
        comparison.add(failed(False), is_new=False)
    for _ in range(DEFAULT_MINIMUM - 1):
        comparison.add(failed(True), is_new=True)
        assert comparison.trip() is None
    assert not comparison.has_minimum

    comparison.add(failed(True), is_new=True)

    assert comparison.has_minimum
    assert comparison.trip().figure == ("20 of 20 requests failed at NEW (most often: upstream 500), 0 of 500 at OLD")


def test_minimum_applies_to_both_targets():
    """Without requests to the old target, nothing is compared."""
    comparison = a_comparison()
    for _ in range(500):
        comparison.add(failed(True), is_new=True)

    assert not comparison.has_minimum
    assert comparison.trip() is None
    assert comparison.requests == (0, 500)


def test_clients_that_leave_early_do_not_count():
    """They left before anything could be late, so they do not count as fast."""
    comparison = a_comparison({"ttft": 0.25})
    for _ in range(200):
        comparison.add(Observation("a", "t", failed=False, first_token_s=1.0), is_new=False)
        comparison.add(Observation("a", "t", None, waited_s=0.1), is_new=True)

    assert comparison.trip() is None
    assert comparison.requests == (200, 0)


def test_figures_are_those_of_each_target():
    """Finish reasons outside the list are "other"."""
    comparison = a_comparison()
    for first_token_s in (1.0, 2.0, 3.0):
        comparison.add(
            Observation(
                "a",
                "t",
                failed=False,
                first_token_s=first_token_s,
                tokens_per_s=40.0,
                finish_reason="eos",
                tool_calls_valid=False,
            ),
            is_new=True,
        )
    comparison.add(failed(True), is_new=True)

    old, new = comparison.figures()

    assert (old.requests, old.first_token_p95_s, old.tokens_per_s_median, old.finish_reasons) == (0, None, None, {})
    assert (new.requests, new.failed, new.first_token_p95_s, new.tokens_per_s_median) == (4, 1, 3.0, 40.0)
    assert (new.finish_reasons, new.broken_tool_calls, new.tool_calls) == ({"other": 3}, 3, 3)


def test_kept_values_are_bounded():
    """Requests are counted without limit, values are kept up to one."""
    comparison = a_comparison()
    for _ in range(5000):
        comparison.add(Observation("a", "t", failed=False, first_token_s=1.0), is_new=False)

    assert comparison.figures()[0].requests == 5000
    assert all(len(test._old) <= 1000 for test in comparison._tests.values())
    assert len(comparison._old.first_token_s) == 1000
