"""Pairs of neuron and model whose load failed are left alone for a while, longer each time. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from gateway.errors import ColdLoadFailed, whole_s

__all__ = ["Backoffs", "FailingView"]

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0
DOUBLINGS = 10  # more than it takes to get there: 2**1024 is no float, and a load can fail for a week


@dataclass(frozen=True, slots=True)
class FailingView:
    """A pair of neuron and model whose last load failed, for status.

    How often in a row, why, and when it is tried again at the earliest, in seconds from now.
    """

    node: str
    model: str
    failures: int
    reason: str
    retry_in_s: float


class _Backoff:
    """A pair of neuron and model that failed: how often in a row, why, and until when it is left alone."""

    __slots__ = ("failures", "reason", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.reason = ""
        self.until = 0.0


class Backoffs:
    """Of all pairs that failed and have not been loaded since."""

    def __init__(self) -> None:
        self._backoffs: dict[tuple[str, str], _Backoff] = {}

    def views(self) -> list[FailingView]:
        """What could not be loaded, the last time it was tried."""
        now = trio.current_time()
        return [
            FailingView(node, model, backoff.failures, backoff.reason, max(backoff.until - now, 0.0))
            for (node, model), backoff in sorted(self._backoffs.items())
        ]

    def note_failure(self, node: str, model: str, reason: str) -> None:
        """Once more."""
        backoff = self._backoffs.setdefault((node, model), _Backoff())
        backoff.failures += 1
        backoff.reason = reason
        wait_s = min(FIRST_BACKOFF_S * 2 ** min(backoff.failures - 1, DOUBLINGS), LONGEST_BACKOFF_S)
        backoff.until = trio.current_time() + wait_s

    def forget(self, node: str, model: str) -> None:
        """It was loaded there."""
        self._backoffs.pop((node, model), None)

    def is_backing_off(self, node: str, model: str) -> bool:
        """Whether it is too early to try this again."""
        backoff = self._backoffs.get((node, model))
        return backoff is not None and backoff.until > trio.current_time()

    def all_failed(self, model: str, nodes: Iterable[str], others: str = "") -> ColdLoadFailed:
        """What to tell who wants a model that failed on all of these; `others` is the end of the sentence."""
        backoffs = sorted((node, self._backoffs[node, model]) for node in nodes)
        now = trio.current_time()
        told = "; ".join(
            f"{node}: {backoff.reason} (failures in a row: {backoff.failures}; tried again in"
            f" {whole_s(backoff.until - now)} s)"
            for node, backoff in backoffs
        )
        soonest_s = min(backoff.until for _, backoff in backoffs) - now
        return ColdLoadFailed(f"model '{model}' could not be loaded: {told}{others}", retry_after_s=whole_s(soonest_s))
