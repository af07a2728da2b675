"""Metrics by key, where `[metrics] per_key` switches them on. Their number is bounded, however many keys exist."""

from __future__ import annotations

from hashlib import sha256

from prometheus_client import CollectorRegistry

from gateway.dialects.usage_fields import Usage
from gateway.telemetry.series import CounterSeries

__all__ = ["NAMED_KEYS", "KeyMetrics"]

NAMED_KEYS = 200  # that have a label of their own, in the order of their first requests
HASHED_LABELS = 64  # which all further keys share


class KeyMetrics:
    """Requests and tokens by key."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = CounterSeries("cortex_key_requests", "Requests by key", ("key",), registry)
        self._prompt = CounterSeries("cortex_key_prompt_tokens", "Prompt tokens, from usage", ("key",), registry)
        self._completion = CounterSeries(
            "cortex_key_completion_tokens", "Completion tokens, from usage or estimated", ("key",), registry
        )
        self._labels: dict[str, str] = {}

    def count(self, key_id: str, name: str, usage: Usage | None) -> None:
        """Count a request that has ended."""
        label = self._label(key_id, name)
        self._requests(label).inc()
        if usage is not None:
            self._prompt(label).inc(usage.prompt_tokens or 0)
            self._completion(label).inc(usage.completion_tokens or 0)

    def _label(self, key_id: str, name: str) -> str:
        """The key's name; beyond the bound, a number that the key shares with others."""
        label = self._labels.get(key_id)
        if label is None:
            if len(self._labels) >= NAMED_KEYS:
                return f"hash-{int.from_bytes(sha256(key_id.encode()).digest()[:4]) % HASHED_LABELS:02}"
            label = self._labels[key_id] = name
        return label
