"""Limits and reservations in a time of their own: what passes, what is refused, and what is given back."""

import random
from datetime import UTC, datetime

import pytest
import trio
from fakes.reservations import reserved

from gateway import errors
from gateway.access.keys.key import Key
from gateway.access.limits.amounts import FIRST_TOKENS, Amounts, LearntMeans
from gateway.access.limits.limit import Budget, Limits
from gateway.access.limits.limiter import Limiter
from gateway.access.limits.rate_limit_headers import anthropic_headers, openai_headers, openai_lines

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()


class Clock:
    """Monotonic and unix time, which tests move."""

    def __init__(self):
        self.now = 1000.0

    def unix(self):
        return NOON + self.now - 1000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def exceeded():
    return []


@pytest.fixture
def limiter(clock, exceeded):
    return Limiter(
        clock=lambda: clock.now,
        unix_time=clock.unix,
        count_exceeded=lambda limit, enforced: exceeded.append((limit, enforced)),
    )


def a_key(**limits):
    return Key("k1", "alice", limits=Limits(**limits))


def spend(limiter, key, tokens=0.0, money=0.0, gpu_s=0.0, estimate=None):
    used = Amounts(tokens, money, gpu_s)
    with reserved(limiter.use_of(key), used if estimate is None else estimate) as reservation:
        reservation.used = used


def test_a_key_without_limits_is_only_counted(limiter):
    key = a_key()
    with reserved(limiter.use_of(key)):
        assert (limiter.live, limiter.use_of(key).running) == (1, 1)
    assert (limiter.live, limiter.use_of(key).running) == (0, 0)


def test_requests_beyond_rpm_wait_for_the_refill(limiter, clock):
    key = a_key(rpm=6)
    for _ in range(6):
        spend(limiter, key)
    with pytest.raises(errors.RateLimited, match=r"'alice' may use 6 requests per minute \(rpm\)") as caught:
        spend(limiter, key)
    assert caught.value.headers == [(b"retry-after", b"10")]
    clock.now += 10
    spend(limiter, key)


def test_refused_request_takes_nothing_of_any_limit(limiter):
    key = a_key(rpm=10, concurrency=1)
    with reserved(limiter.use_of(key)):
        for _ in range(3):
            with pytest.raises(errors.RateLimited, match="concurrency") as caught:
                limiter.use_of(key).reserve()
            assert caught.value.retry_after_s == 1
        assert limiter.use_of(key).requests.level(1000) == 9
    assert limiter.use_of(key).exceeded == {"concurrency": 3}


def test_tokens_are_reserved_first_and_settled_with_the_true_usage(limiter):
    key = a_key(tpm=1000)
    use = limiter.use_of(key)
    with reserved(use, Amounts(800)) as reservation:
        assert use.tokens.level(1000) == 200
        with pytest.raises(errors.RateLimited, match="1000 tokens per minute"):
            use.reserve(Amounts(300))
        reservation.used = Amounts(250)
    assert use.tokens.level(1000) == 750
    with reserved(use, Amounts(100)) as reservation:
        reservation.used = Amounts(900)  # an answer longer than expected
    assert use.tokens.level(1000) == -150


def test_request_larger_than_the_bucket_passes_when_it_is_full(limiter, clock):
    key = a_key(tpm=100)
    spend(limiter, key, tokens=5000)
    with pytest.raises(errors.RateLimited):
        spend(limiter, key, tokens=1)
    clock.now += 4900 / 100 * 60
    with pytest.raises(errors.RateLimited):
        spend(limiter, key, tokens=5000)
    clock.now += 60
    spend(limiter, key, tokens=5000)


@pytest.mark.parametrize(
    ("unit", "used"), [("tokens", Amounts(tokens=40)), ("money", Amounts(money=40)), ("gpu-seconds", Amounts(gpu_s=40))]
)
def test_a_spent_budget_refuses_until_its_window_ends(limiter, clock, unit, used):
    key = a_key(budgets=(Budget(unit, 100, "day"),))
    spend(limiter, key, *used)
    spend(limiter, key, *used)
    with pytest.raises(errors.InsufficientQuota, match="per day") as caught:
        spend(limiter, key, *used)
    assert (caught.value.retry_after_s, caught.value.headers) == (None, [(b"x-should-retry", b"false")])
    clock.now += 12 * 3600 - 1
    with pytest.raises(errors.InsufficientQuota):
        spend(limiter, key, *used)
    clock.now += 1  # midnight
    spend(limiter, key, *used)


def test_nothing_stays_reserved_when_the_last_request_had_no_budget(limiter):
    """Sums of floats drift: a rest, however small, would refuse what may exceed an unused budget once."""
    budgets = (Budget("money", 1.0, "day"),)
    use = limiter.use_of(a_key(budgets=budgets))
    taken = [use.reserve(Amounts(0, money, 0)) for money in (0.1, 0.2, 0.3)]
    taken.append(limiter.use_of(a_key()).reserve())
    for one in taken:
        use.settle(one, Amounts(0, 0, 0), NOON)
    with reserved(limiter.use_of(a_key(budgets=budgets)), Amounts(0, 2.0, 0)):
        pass


def test_a_budget_counts_what_live_requests_have_reserved_here_and_elsewhere(limiter):
    key = a_key(budgets=(Budget("tokens", 100, "hour"),))
    use = limiter.use_of(key)
    with reserved(use, Amounts(60)) as reservation:
        with pytest.raises(errors.InsufficientQuota):
            use.reserve(Amounts(60))
        reservation.used = Amounts(20)
    use.elsewhere[0] = 70.0
    with pytest.raises(errors.InsufficientQuota):
        use.reserve(Amounts(11))
    spend(limiter, key, tokens=10)


def test_a_budget_never_cuts_what_runs_and_an_untouched_one_lets_a_large_request_pass(limiter):
    key = a_key(budgets=(Budget("tokens", 100, "hour"),))
    spend(limiter, key, tokens=5000, estimate=Amounts(1000))
    assert limiter.use_of(key).budgets[0].spent(NOON) == 5000


def test_usage_counts_in_the_window_in_which_its_request_started(limiter, clock):
    key = a_key(budgets=(Budget("tokens", 100, "minute"),))
    with reserved(limiter.use_of(key), Amounts(90)) as reservation:
        clock.now += 60
        limiter.use_of(key).budgets[0].spent(clock.unix())
        reservation.used = Amounts(90)
    assert limiter.use_of(key).budgets[0].spent(clock.unix()) == 0


def test_what_the_store_counts_is_not_counted_twice(limiter, clock):
    key = a_key(budgets=(Budget("tokens", 100, "day"),))
    spend(limiter, key, tokens=30)
    budget = limiter.use_of(key).budgets[0]
    limiter.written("k1", Amounts(30), clock.unix())
    budget.stored = 50.0  # 30 of ours, 20 of another gateway
    assert budget.spent(clock.unix()) == 50
    limiter.written("other", Amounts(30), clock.unix())


def test_observed_limits_refuse_nothing_and_are_counted(limiter, exceeded):
    key = a_key(
        rpm=1, tpm=10, concurrency=0, observe=frozenset({"rpm", "tpm", "concurrency"}),
        budgets=(Budget("tokens", 10, "day", enforce=False),),
    )  # fmt: skip
    for _ in range(3):
        spend(limiter, key, tokens=10)
    assert limiter.use_of(key).exceeded == {"concurrency": 3, "rpm": 2, "tpm": 2, "budget": 2}
    assert set(exceeded) == {(limit, False) for limit in ("rpm", "tpm", "concurrency", "budget")}
    assert limiter.use_of(key).tokens.level(1000) == 0


def test_an_edited_key_keeps_what_it_used(limiter):
    spend(limiter, a_key(rpm=10, budgets=(Budget("tokens", 100, "day"),)), tokens=80)
    edited = a_key(rpm=5, tpm=100, budgets=(Budget("tokens", 90, "day"), Budget("money", 1, "month")))
    use = limiter.use_of(edited)
    assert (use.requests.level(1000), use.tokens.level(1000)) == (4, 100)
    with pytest.raises(errors.InsufficientQuota):
        spend(limiter, edited, tokens=20)
    spend(limiter, a_key(), tokens=10_000)


def test_defaults_hold_for_what_a_key_leaves_out(clock):
    limiter = Limiter(defaults=Limits(rpm=1, tpm=50), clock=lambda: clock.now, unix_time=clock.unix)
    use = limiter.use_of(a_key(rpm=7))
    assert (use.requests.per_minute, use.tokens.per_minute, use.limits.concurrency) == (7, 50, None)


def test_keys_that_are_gone_are_forgotten_when_their_last_request_has_ended(limiter):
    with reserved(limiter.use_of(a_key())):
        limiter.forget_all_but(())
        assert len(limiter.uses()) == 1
    limiter.use_of(Key("k2", "bob"))
    limiter.forget_all_but({"k2"})
    assert [use.key_id for use in limiter.uses()] == ["k2"]


def test_view_shows_how_near_each_limit_is(limiter):
    key = a_key(rpm=10, concurrency=3, budgets=(Budget("tokens", 100, "day"),), observe=frozenset({"rpm"}))
    spend(limiter, key, tokens=30)
    with reserved(limiter.use_of(key), Amounts(20)):
        shown = limiter.view(key)
    midnight = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert shown == {
        "running": 1,
        "limits": {
            "rpm": {"limit": 10, "used": 2, "enforce": False},
            "concurrency": {"limit": 3, "used": 1, "enforce": True},
            "budgets": [
                {"unit": "tokens", "window": "day", "limit": 100, "used": 30.0, "enforce": True}
                | {"reserved": 20.0, "resets_at": midnight}
            ],
        },
        "exceeded": {},
    }


def test_rate_limit_headers_have_openais_names_and_durations(limiter, clock):
    key = a_key(rpm=10, tpm=1000)
    spend(limiter, key, tokens=5000)
    assert openai_headers(limiter.use_of(key), clock.now) == [
        (b"x-ratelimit-limit-requests", b"10"),
        (b"x-ratelimit-remaining-requests", b"9"),
        (b"x-ratelimit-reset-requests", b"6s"),
        (b"x-ratelimit-limit-tokens", b"1000"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", b"5m0s"),
    ]
    assert openai_headers(limiter.use_of(Key("k2", "bob")), clock.now) == []


def test_rate_limit_headers_have_anthropics_names_and_times(limiter, clock):
    key = a_key(rpm=10, tpm=1000)
    spend(limiter, key, tokens=100)
    assert anthropic_headers(limiter.use_of(key), clock.now, clock.unix()) == [
        (b"anthropic-ratelimit-requests-limit", b"10"),
        (b"anthropic-ratelimit-requests-remaining", b"9"),
        (b"anthropic-ratelimit-requests-reset", b"2026-11-30T12:00:06Z"),
        (b"anthropic-ratelimit-tokens-limit", b"1000"),
        (b"anthropic-ratelimit-tokens-remaining", b"900"),
        (b"anthropic-ratelimit-tokens-reset", b"2026-11-30T12:00:06Z"),
    ]


@pytest.mark.parametrize(
    ("taken", "text"), [(0, b"0s"), (0.001, b"1ms"), (0.5, b"500ms"), (59.2, b"1m0s"), (3601, b"1h0m1s")]
)
def test_resets_are_durations_as_openai_writes_them(limiter, clock, taken, text):
    use = limiter.use_of(a_key(rpm=60))
    use.requests.take(taken, clock.now)
    assert dict(openai_headers(use, clock.now))[b"x-ratelimit-reset-requests"] == text


@pytest.mark.parametrize("limits", [{"rpm": 10, "tpm": 1000}, {"rpm": 10}, {"tpm": 1000}, {}])
@pytest.mark.parametrize("tokens", [0, 1, 100, 5000])
def test_the_lines_say_what_the_headers_say(limiter, clock, limits, tokens):
    key = a_key(**limits)
    spend(limiter, key, tokens=tokens)
    clock.now += 0.25
    use = limiter.use_of(key)
    headers = openai_headers(use, clock.now)
    assert openai_lines(use, clock.now) == b"".join(b"%b: %b\r\n" % header for header in headers)


def test_means_follow_the_answers():
    means = LearntMeans()
    assert (means["m"].tokens, means["m"].gpu_s, len(means)) == (FIRST_TOKENS, 0.0, 0)
    for tokens in (10, 20, 30):
        means.learn("m", tokens, gpu_s=1.0)
    assert (means["m"].tokens, means["m"].gpu_s) == pytest.approx((20, 1.0))
    for _ in range(500):
        means.learn("m", 900, gpu_s=3.0)
    assert (means["m"].tokens, means["m"].gpu_s) == pytest.approx((900, 3.0), rel=1e-3)


async def test_reservations_are_those_of_the_live_requests_after_ten_thousand_random_cancels(autojump_clock):
    """Whatever moment a request is cancelled at: in its nursery, inside a shield, before it begins."""
    limiter, chance = Limiter(), random.Random(7)  # noqa: S311 - repeatable
    limits = Limits(tpm=10**9, concurrency=10**6, budgets=(Budget("tokens", 10**9, "day"),))
    keys = [Key(f"k{n}", f"key {n}", limits=limits) for n in range(20)]
    live: dict[str, list[Amounts]] = {key.id: [] for key in keys}

    async def request(key, estimate, *, shielded):
        with reserved(limiter.use_of(key), estimate) as reservation:
            live[key.id].append(estimate)
            try:
                with trio.CancelScope(shield=shielded):
                    await trio.sleep(chance.random())
                reservation.used = Amounts(estimate.tokens / 2, 0.1, 0.1)
            finally:
                live[key.id].remove(estimate)

    async def one():
        with trio.CancelScope(deadline=trio.current_time() + chance.random() * 1.2):
            key = chance.choice(keys)
            estimate = Amounts(chance.randrange(1, 5000), chance.random(), chance.random())
            await request(key, estimate, shielded=chance.random() < 0.2)

    async with trio.open_nursery() as nursery:
        for number in range(10_000):
            nursery.start_soon(one)
            if number % 100 == 0:
                await trio.sleep(0.02)
                assert limiter.live == sum(map(len, live.values()))
                for key in keys:
                    use = limiter.use_of(key)
                    assert use.running == len(live[key.id])
                    assert use.reserved == pytest.approx(
                        [sum(part) for part in zip(*live[key.id], strict=True)] or [0] * 3
                    )
    assert limiter.live == 0
    for key in keys:
        assert limiter.use_of(key).reserved == [0.0, 0.0, 0.0]
