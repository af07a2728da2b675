"""Metrics by key: however many keys there are, and whatever they are called, the number of series is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from gateway.dialects.usage_fields import Usage
from gateway.telemetry.key_metrics import HASHED_LABELS, NAMED_KEYS, KeyMetrics


def test_keys_beyond_the_bound_share_hashed_labels() -> None:
    """The first keys have their names. The sums over all labels stay true."""
    registry = CollectorRegistry()
    metrics = KeyMetrics(registry)
    for number in range(3000):
        metrics.count(f"id{number}", f"name-{number}", Usage(prompt_tokens=2, completion_tokens=3))
    metrics.count("id1", "renamed", None)

    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    requests = [line for line in lines if line.startswith("cortex_key_requests_total")]
    assert len(requests) == NAMED_KEYS + HASHED_LABELS
    assert 'cortex_key_requests_total{key="name-1"} 2.0' in requests
    assert sum('key="hash-' in line for line in requests) == HASHED_LABELS
    assert not any("name-2999" in line or "id2999" in line for line in lines)
    for name, each in (("requests", 1), ("prompt_tokens", 2), ("completion_tokens", 3)):
        values = [float(line.split()[1]) for line in lines if line.startswith(f"cortex_key_{name}_total")]
        assert sum(values) == 3000 * each + (name == "requests")
