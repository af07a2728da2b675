"""Series by alias, target and generation: what they count, and that their number is bounded."""

import prometheus_client
from prometheus_client import CollectorRegistry

from gateway.telemetry.target_metrics import GENERATIONS_KEPT, TargetMetrics


def metrics_of():
    registry = CollectorRegistry()
    return TargetMetrics(registry), lambda: prometheus_client.generate_latest(registry).decode()


def record(metrics, generation, **more):
    values = {"code": None, "duration_s": 2.0, "first_token_s": 0.3} | more
    metrics.cells_of("x", "m", generation).record(**values)


def test_request_is_counted_under_its_generation():
    """A swap begins new series, so that before and after can be compared."""
    metrics, shown = metrics_of()
    record(metrics, 3)
    record(metrics, 3, code="no_room", duration_s=None, first_token_s=None)
    record(metrics, 4)

    of = 'alias="x",generation="3",target="m"'
    assert f"cortex_alias_target_requests_total{{{of}}} 2.0" in shown()
    assert 'cortex_alias_target_errors_total{alias="x",code="no_room",generation="3",target="m"} 1.0' in shown()
    assert f"cortex_alias_target_duration_seconds_sum{{{of}}} 2.0" in shown()
    assert f"cortex_alias_target_first_token_seconds_count{{{of}}} 1.0" in shown()
    assert 'cortex_alias_target_requests_total{alias="x",generation="4",target="m"} 1.0' in shown()


def test_series_appears_with_its_first_sample():
    """A request that was sent to no neuron has no duration."""
    metrics, shown = metrics_of()
    record(metrics, 1, code="no_room", duration_s=None, first_token_s=None)

    assert "cortex_alias_target_duration_seconds_count{" not in shown()
    assert "cortex_alias_target_first_token_seconds_count{" not in shown()


def test_requests_of_removed_generations_are_counted_as_older():
    """In whatever order requests end, there are `GENERATIONS_KEPT` generations and `older`."""
    metrics, shown = metrics_of()
    for generation in (2, 1, 3):
        record(metrics, generation, code="internal_error")
    for generation in range(100, 100 + GENERATIONS_KEPT):
        record(metrics, generation)
    record(metrics, 2)
    record(metrics, 101)

    kept = {line.split('generation="')[1].split('"')[0] for line in shown().splitlines() if 'generation="' in line}
    assert kept == {*map(str, range(100, 100 + GENERATIONS_KEPT)), "older"}
    assert 'cortex_alias_target_requests_total{alias="x",generation="older",target="m"} 1.0' in shown()
    assert 'cortex_alias_target_requests_total{alias="x",generation="101",target="m"} 2.0' in shown()
