"""After a failed load of a model on a node, the pair is not tried again for a time that doubles. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from gateway.errors import ColdLoadFailed, whole_s

__all__ = ["FailedLoadView", "LoadBackoffs"]

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0
DOUBLINGS = 10  # more than reach the longest; the exponent must be bounded, as 2**1024 is not a float


@dataclass(frozen=True, slots=True)
class FailedLoadView:
    """A node and model whose last load failed, for the admin API.

    `failures` are in a row; `retry_in_s` is when the pair is tried again at the earliest, in seconds from now.
    """

    node: str
    model: str
    failures: int
    reason: str
    retry_in_s: float


class _Backoff:
    __slots__ = ("failures", "reason", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.reason = ""
        self.until = 0.0


class LoadBackoffs:
    """Of all pairs whose last load failed."""

    def __init__(self) -> None:
        self._backoffs: dict[tuple[str, str], _Backoff] = {}

    def views(self) -> list[FailedLoadView]:
        """Every pair whose last load failed, by node and model."""
        now = trio.current_time()
        return [
            FailedLoadView(node, model, backoff.failures, backoff.reason, max(backoff.until - now, 0.0))
            for (node, model), backoff in sorted(self._backoffs.items())
        ]

    def note_failure(self, node: str, model: str, reason: str) -> None:
        """A load failed: back off, twice as long as the last time."""
        backoff = self._backoffs.setdefault((node, model), _Backoff())
        backoff.failures += 1
        backoff.reason = reason
        wait_s = min(FIRST_BACKOFF_S * 2 ** min(backoff.failures - 1, DOUBLINGS), LONGEST_BACKOFF_S)
        backoff.until = trio.current_time() + wait_s

    def forget(self, node: str, model: str) -> None:
        """A load succeeded."""
        self._backoffs.pop((node, model), None)

    def is_backing_off(self, node: str, model: str) -> bool:
        """Whether it is too early to try this pair again."""
        backoff = self._backoffs.get((node, model))
        return backoff is not None and backoff.until > trio.current_time()

    def all_failed(self, model: str, nodes: Iterable[str], others: str = "") -> ColdLoadFailed:
        """The error for a request whose model failed to load on all of these nodes.

        `others` ends its message: why the remaining nodes cannot load the model.
        """
        backoffs = sorted((node, self._backoffs[node, model]) for node in nodes)
        now = trio.current_time()
        reasons = "; ".join(
            f"{node}: {backoff.reason} (failures in a row: {backoff.failures}; next try in"
            f" {whole_s(backoff.until - now)} s)"
            for node, backoff in backoffs
        )
        soonest_s = min(backoff.until for _, backoff in backoffs) - now
        return ColdLoadFailed(
            f"model '{model}' could not be loaded: {reasons}{others}", retry_after_s=whole_s(soonest_s)
        )
