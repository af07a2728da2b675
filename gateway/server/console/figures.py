"""The figures of the last hour: one point each ten seconds, in memory. And the rates of this second for open pages.

Rates come from the totals of the request log; the quantiles of the time to the first token from the requests that ended
since the last point, of which the log remembers at most `[limits] explain_requests`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import quantiles
from typing import Final

import msgspec
import trio

from gateway.fleet.routing.queue import QueueView
from gateway.fleet.state import Fleet
from gateway.telemetry.request_log import RequestLog

__all__ = ["FigureHistory", "FigurePoint"]

INTERVAL_S: Final = 10.0
POINTS: Final = 360  # an hour


class FigurePoint(msgspec.Struct, frozen=True):
    """The figures of one interval. None: nothing to compute it from.

    Args:
        at: The end of the interval, in unix seconds.
        requests_per_s: Requests that ended.
        errors_per_s: Of these, those whose client got an error.
        tokens_per_s: Completion tokens; those of running streams are counted as they come.
        first_token_p50_ms, first_token_p95_ms: Of streams that ended.
        running, queued: Requests at the end of the interval.
        cache_hit_ratio: The share of prompt tokens that came from a cache.
        watts: Of all devices that report it.
        utilization_pct: The mean of all devices that report it.
    """

    at: float
    requests_per_s: float
    errors_per_s: float
    tokens_per_s: float
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    running: int
    queued: int
    cache_hit_ratio: float | None
    watts: float | None
    utilization_pct: float | None


@dataclass(frozen=True, slots=True)
class _Totals:
    at: float
    requests: int
    errors: int
    completion_tokens: int
    prompt_tokens: int
    cached_tokens: int


class _Meter:
    """Makes one point from the totals now and those at the last call."""

    def __init__(self, requests: RequestLog, fleet: Fleet, queues: Callable[[], Sequence[QueueView]]) -> None:
        self._requests = requests
        self._fleet = fleet
        self._queues = queues
        self._last = self._read()

    def restart(self) -> None:
        self._last = self._read()

    def point(self) -> FigurePoint:
        before, now = self._last, self._read()
        self._last = now
        elapsed_s = max(now.at - before.at, 1e-6)
        prompt_tokens = now.prompt_tokens - before.prompt_tokens
        p50, p95 = self._first_token_quantiles(before.at)
        devices = [device for node in self._fleet.nodes.values() if node.healthy for device in node.devices or ()]
        return FigurePoint(
            at=round(time.time(), 1),
            requests_per_s=_rate(now.requests - before.requests, elapsed_s),
            errors_per_s=_rate(now.errors - before.errors, elapsed_s),
            tokens_per_s=_rate(now.completion_tokens - before.completion_tokens, elapsed_s),
            first_token_p50_ms=p50,
            first_token_p95_ms=p95,
            running=len(self._requests.live),
            queued=sum(queue.waiting_for_slot + queue.waiting_for_load for queue in self._queues()),
            cache_hit_ratio=(
                round((now.cached_tokens - before.cached_tokens) / prompt_tokens, 4) if prompt_tokens > 0 else None
            ),
            watts=_sum(device.power_w for device in devices),
            utilization_pct=_mean(device.utilization_pct for device in devices),
        )

    def _read(self) -> _Totals:
        totals = self._requests.totals
        streaming = sum(
            record.answer.meter.generated for record in self._requests.live.values() if record.answer.meter is not None
        )
        return _Totals(
            at=trio.current_time(),
            requests=self._requests.served,
            errors=totals.errors,
            completion_tokens=totals.completion_tokens + streaming,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
        )

    def _first_token_quantiles(self, since: float) -> tuple[float | None, float | None]:
        ended = takewhile(lambda record: (record.ended_at or 0.0) > since, self._requests.recent.newest_sent_first())
        times = [
            (first_at - record.started_at) * 1000
            for record in ended
            if (first_at := record.answer.first_token_at) is not None
        ]
        if not times:
            return None, None
        if len(times) == 1:
            return round(times[0], 1), round(times[0], 1)
        cuts = quantiles(times, n=20, method="inclusive")
        return round(cuts[9], 1), round(cuts[18], 1)


class FigureHistory:
    """Keeps the points of the last hour.

    Args:
        requests: The request log.
        fleet: The neurons.
        queues: Returns the queue of each model.
    """

    def __init__(self, requests: RequestLog, fleet: Fleet, queues: Callable[[], Sequence[QueueView]]) -> None:
        self._requests = requests
        self._fleet = fleet
        self._queues = queues
        self._points: deque[FigurePoint] = deque(maxlen=POINTS)
        self._live: _Meter | None = None
        self.count = 0

    @property
    def points(self) -> Sequence[FigurePoint]:
        """The oldest first."""
        return self._points

    @property
    def newest(self) -> FigurePoint | None:
        """The last point; None in the first ten seconds."""
        return self._points[-1] if self._points else None

    def now(self) -> FigurePoint:
        """The figures since the last call of this method: for open pages, once a second."""
        if self._live is None:
            self._live = self._meter()
        return self._live.point()

    def restart(self) -> None:
        """Forget when `now` was called last."""
        self._live = self._meter()

    def _meter(self) -> _Meter:
        return _Meter(self._requests, self._fleet, self._queues)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Add a point each ten seconds, until cancelled. Started at once."""
        meter = self._meter()
        task_status.started()
        while True:
            await trio.sleep(INTERVAL_S)
            self._points.append(meter.point())
            self.count += 1


def _rate(count: int, elapsed_s: float) -> float:
    # Tokens of a stream are deltas while it runs and what its usage states at its end, which may be fewer.
    return round(max(0, count) / elapsed_s, 2)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 1) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None
