"""Token buckets in a time of their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.limits.token_bucket import TokenBucket


def test_a_bucket_holds_one_minutes_worth_and_refills_evenly():
    bucket = TokenBucket(60, now=0)
    for _ in range(60):
        assert bucket.wait_s(1, now=0) == 0
        bucket.take(1, now=0)
    assert bucket.wait_s(1, now=0) == 1
    assert bucket.level(now=30) == 30
    assert bucket.level(now=3600) == 60
    assert bucket.reading(now=3600) == (60, 0)


def test_an_amount_larger_than_the_bucket_passes_when_it_is_full_and_leaves_a_debt():
    bucket = TokenBucket(600, now=0)
    bucket.take(1, now=0)
    assert bucket.wait_s(3000, now=0) == pytest.approx(0.1)
    assert bucket.wait_s(3000, now=0.1) == 0
    bucket.take(3000, now=0.1)
    assert bucket.level(now=0.1) == -2400
    assert bucket.wait_s(1, now=0.1) == pytest.approx(240.1)


def test_what_was_reserved_too_much_comes_back_but_never_more_than_the_bucket_holds():
    bucket = TokenBucket(100, now=0)
    bucket.take(80, now=0)
    bucket.give_back(50)
    assert bucket.level(now=0) == 70
    bucket.give_back(500)
    assert bucket.level(now=0) == 100


def test_another_limit_keeps_what_was_taken():
    bucket = TokenBucket(100, now=0)
    bucket.take(60, now=0)
    bucket.resize(1000, now=0)
    assert bucket.level(now=0) == 940
    bucket.resize(50, now=0)
    assert bucket.level(now=0) == -10
    assert bucket.wait_s(1, now=0) == pytest.approx(11 * 60 / 50)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40)), max_size=200))
def test_no_minute_gives_more_than_the_bucket_and_its_refill(steps):
    """In any time, at most the bucket and what it refilled in that time, for amounts that fit."""
    bucket, now, taken = TokenBucket(60, now=0), 0.0, 0
    for pause_s, amount in steps:
        now += pause_s
        if bucket.wait_s(amount, now) == 0:
            bucket.take(amount, now)
            taken += amount
        assert taken <= 60 + now + 1e-6


@given(st.integers(1, 10_000), st.integers(1, 20_000), st.integers(0, 20_000))
def test_the_wait_is_exactly_as_long_as_needed(per_minute, amount, taken):
    early, late = TokenBucket(per_minute, now=0), TokenBucket(per_minute, now=0)
    early.take(taken, now=0)
    late.take(taken, now=0)
    wait_s = early.wait_s(amount, now=0)
    assert late.wait_s(amount, now=wait_s + 1e-3) == 0
    if wait_s > 0.01:
        assert early.wait_s(amount, now=wait_s - 0.01) > 0
