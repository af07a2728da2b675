"""The breaker: who is let through to a neuron that keeps failing, and when."""

from gateway.fleet.circuit_breaker import FAILURES, CircuitBreaker


def opened(at=0.0):
    """A breaker after just enough failures."""
    breaker = CircuitBreaker()
    changes = [breaker.failed(at, "reset") for _ in range(FAILURES)]
    assert changes == [False] * (FAILURES - 1) + [True]
    return breaker


def test_breaker_admits_everybody_until_failures_in_a_row():
    """A success in between begins the count anew."""
    breaker = CircuitBreaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0, "reset")
        breaker.succeeded()
    assert breaker.closed
    assert breaker.admits(0.0)
    assert not breaker.begin_trial(0.0)


def test_breaker_admits_one_at_a_time_once_it_has_cooled_down():
    """Until the trial has ended, nobody else."""
    breaker = opened()
    assert [breaker.admits(now) for now in (0.0, 0.99, 1.0)] == [False, False, True]
    assert breaker.begin_trial(1.0)
    assert not breaker.admits(1.5)
    breaker.end_trial()
    assert breaker.admits(1.5)
    assert breaker.succeeded()
    assert breaker.closed


def test_breaker_cools_down_twice_as_long_after_each_failed_trial():
    """1, 2, 4, 8, 16, 30, 30 s; what fails meanwhile was sent before and counts for nothing."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        waits.append(breaker.until - now)
        assert not breaker.failed(now, "late news")
        now = breaker.until
        assert breaker.failed(now, "reset")
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_breaker_of_a_neuron_that_fails_for_days_still_counts():
    """Every 30 s, for as long as it takes: half a minute stays half a minute."""
    breaker = opened()
    for _ in range(3_000):
        assert breaker.failed(breaker.until, "reset")
    before = breaker.until

    assert breaker.failed(before, "reset")
    assert breaker.until == before + 30
