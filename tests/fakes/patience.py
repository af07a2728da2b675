"""How tests wait for other processes and sockets: by polling a condition, not for a time; and how they measure times.

A busy machine may stop a test for seconds at any moment. So outside `best_of` no test may fail because something took
long, and inside it no test may fail because it took long once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from gateway.config.settings import DeadlineSettings, PollSettings, StreamingSettings

SAFETY_NET_S = 60.0  # a hang is a failure, slowness is not
ATTEMPTS = 25  # other processes may spoil most of them; the first good one ends the test

PATIENT_DEADLINES = DeadlineSettings(connect_seconds=SAFETY_NET_S)
PATIENT_POLL = PollSettings(interval_seconds=0.3, timeout_seconds=SAFETY_NET_S)
PATIENT_STREAMING = StreamingSettings(
    early_commit_seconds=SAFETY_NET_S
)  # an early 200 has no neuron and no error status
"""For gateways on real sockets: the defaults assume a machine that does not stop for seconds."""

measured = pytest.mark.measured
"""For a test of a promised duration: scripts/pytest runs it after all others, alone."""


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that another task, thread or process will fulfil."""
    with trio.fail_after(SAFETY_NET_S):
        while not condition():
            await trio.sleep(0.002)


async def best_of(measure: Callable[[], Awaitable[float]], within_s: float) -> None:
    """Assert that something takes less than `within_s`, at least once in a few attempts.

    A busy machine may delay one attempt; code that is too slow is too slow in every attempt.
    """
    taken_s: list[float] = []
    for _ in range(ATTEMPTS):
        taken_s.append(await measure())
        if taken_s[-1] < within_s:
            return
    raise AssertionError(f"not once within {within_s} s: {taken_s}")
