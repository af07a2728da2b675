"""The loads of models: those under way, and what became of the last ones. No I/O; `scheduler.py` runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import trio

from gateway.errors import whole_s

__all__ = ["Load", "LoadHistory", "LoadPostponed", "LoadRecord", "LoadView"]

DEFAULT_ESTIMATE_S = 30  # Retry-After for a load that was never timed
RECORDS = 256  # of the last loads, for `cortex explain`; a fleet of ten neurons seldom has that many in a day
TIMES = 5  # per node and model, for estimates

LoadOutcome = Literal["loaded", "failed", "postponed"]


@dataclass(frozen=True, slots=True)
class LoadView:
    """A load under way, for the admin API.

    `estimate_s` is how long earlier loads took, None if there were none. `overdue`: the load takes so long that
    requests for the model look for another node too.
    """

    node: str
    model: str
    elapsed_s: float
    estimate_s: float | None
    waiters: int
    overdue: bool


@dataclass(slots=True)
class LoadRecord:
    """What became of a load. Times are Trio's clock.

    `outcome` is None while the load is under way. `postponed`: the free memory that the load was decided by was gone
    when it began. `reason` says why the model was not loaded; `evicted` are the models that were unloaded for it.
    """

    node: str
    model: str
    began_at: float
    ended_at: float | None = None
    outcome: LoadOutcome | None = None
    reason: str | None = None
    evicted: tuple[str, ...] = ()


class Load:
    """One load of one model on one node, from the decision to its end.

    `done` wakes the requests that wait; `is_over` means that the job has ended. `done` comes first when the node is
    down or the load is overdue. `scope` is around the job's calls; cancelling it makes the load fail with
    `cancelled_for`. `record` outlives the load.
    """

    __slots__ = (
        "began_at",
        "cancelled_for",
        "done",
        "is_over",
        "is_overdue",
        "model",
        "node",
        "record",
        "scope",
        "waiters",
    )

    def __init__(self, node: str, model: str) -> None:
        self.node = node
        self.model = model
        self.began_at = trio.current_time()
        self.record = LoadRecord(node, model, self.began_at)
        self.done = trio.Event()
        self.is_over = False
        self.is_overdue = False
        self.scope = trio.CancelScope()
        self.cancelled_for: str | None = None
        self.waiters = 0


class LoadPostponed(Exception):
    """The room that a load was decided by is not there. Not a failure: decide again."""


class LoadHistory:
    """All loads of one gateway, by node and model."""

    def __init__(self) -> None:
        self.under_way: dict[tuple[str, str], Load] = {}
        self._took_s: dict[tuple[str, str], deque[float]] = {}
        self._records: deque[LoadRecord] = deque(maxlen=RECORDS)

    def begin(self, node: str, model: str) -> Load:
        """Register a load that is about to begin."""
        load = self.under_way[node, model] = Load(node, model)
        self._records.append(load.record)
        return load

    def end(self, load: Load) -> None:
        """The load's job has ended, with any outcome."""
        del self.under_way[load.node, load.model]
        load.record.ended_at = trio.current_time()
        load.is_over = True

    def note_time(self, load: Load, took_s: float) -> None:
        """Remember how long a successful load took."""
        self._took_s.setdefault((load.node, load.model), deque(maxlen=TIMES)).append(took_s)

    # Reading ..........................................................................................................

    def to_wait_for(self, model: str, nodes: Iterable[str]) -> Load | None:
        """The first load of the model on these nodes whose `done` is not set; None if there is none."""
        found = (self.under_way.get((node, model)) for node in nodes)
        return next((load for load in found if load is not None and not load.done.is_set()), None)

    def views(self) -> list[LoadView]:
        """The loads under way."""
        now = trio.current_time()
        return [
            LoadView(
                load.node,
                load.model,
                now - load.began_at,
                self.estimate_s(load.node, load.model),
                load.waiters,
                load.is_overdue,
            )
            for load in self.under_way.values()
        ]

    def estimate_s(self, node: str, model: str) -> float | None:
        """How long loading this model on this node takes: the mean of the last times, None if there are none."""
        took_s = self._took_s.get((node, model))
        return sum(took_s) / len(took_s) if took_s else None

    def longest_s(self, node: str, model: str) -> float | None:
        """The longest of the last times, None if there are none."""
        took_s = self._took_s.get((node, model))
        return max(took_s) if took_s else None

    def retry_after_s(self, model: str) -> int:
        """When to ask again for a model that is being loaded, in whole seconds."""
        now = trio.current_time()
        remaining_s = [
            (self.estimate_s(load.node, model) or DEFAULT_ESTIMATE_S) - (now - load.began_at)
            for load in self.under_way.values()
            if load.model == model
        ]
        return whole_s(min(remaining_s, default=DEFAULT_ESTIMATE_S))

    def earlier(self, model: str) -> str:
        """How long earlier loads of the model took, as the end of a sentence; empty if there were none."""
        estimates = {node: self.estimate_s(node, model) for node, name in self._took_s if name == model}
        known = ", ".join(
            f"{took_s:.0f} s on {node}" for node, took_s in sorted(estimates.items()) if took_s is not None
        )
        return f"; earlier loads took {known}" if known else ""

    def between(self, model: str, since: float, until: float) -> list[LoadRecord]:
        """The loads of the model that were under way in this time (Trio's clock), oldest first."""
        records = (record for record in self._records if record.model == model and record.began_at <= until)
        return [record for record in records if record.ended_at is None or record.ended_at >= since]
