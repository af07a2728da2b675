"""The circuit breaker: which requests pass to a node that keeps failing, and when."""

from gateway.fleet.circuit_breaker import FAILURES, CircuitBreaker


def opened(at=0.0):
    """A breaker after just enough failures."""
    breaker = CircuitBreaker()
    changes = [breaker.failed(at, "reset") for _ in range(FAILURES)]
    assert changes == [False] * (FAILURES - 1) + [True]
    return breaker


def test_breaker_admits_every_request_until_failures_in_a_row():
    """A success in between resets the count."""
    breaker = CircuitBreaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0, "reset")
        breaker.succeeded()
    assert breaker.closed
    assert breaker.admits(0.0)
    assert not breaker.begin_trial(0.0)


def test_breaker_admits_one_trial_at_a_time_after_the_cool_down():
    """No other request passes until the trial has ended."""
    breaker = opened()
    assert [breaker.admits(now) for now in (0.0, 0.99, 1.0)] == [False, False, True]
    assert breaker.begin_trial(1.0)
    assert not breaker.admits(1.5)
    breaker.end_trial()
    assert breaker.admits(1.5)
    assert breaker.succeeded()
    assert breaker.closed


def test_breaker_cools_down_twice_as_long_after_each_failed_trial():
    """1, 2, 4, 8, 16, 30, 30 s. Failures during the cool-down were sent before it and do not count."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        waits.append(breaker.until - now)
        assert not breaker.failed(now, "late failure")
        now = breaker.until
        assert breaker.failed(now, "reset")
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_cool_down_is_bounded_after_thousands_of_failed_trials():
    """A neuron that fails for days is tried every 30 s."""
    breaker = opened()
    for _ in range(3_000):
        assert breaker.failed(breaker.until, "reset")
    before = breaker.until

    assert breaker.failed(before, "reset")
    assert breaker.until == before + 30
