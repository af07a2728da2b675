"""The loads of models: those under way, and what became of the last ones. No I/O; `scheduler.py` runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

import trio

from gateway.errors import whole_s

__all__ = ["Load", "LoadHistory", "LoadPostponed", "LoadProgress", "LoadRecord", "LoadView"]

DEFAULT_ESTIMATE_S = 30  # Retry-After for a load that was never timed
RECORDS = 256  # of the last loads, for `cortex explain`; a fleet of ten neurons seldom has that many in a day
TIMES = 5  # per node and model, for estimates
# Until it is learnt. https://docs.vllm.ai/en/latest/features/sleep_mode/: the engine's start and its compilation are
# spared; at level 1 only the copy from host memory is left, at level 2 the weights are read from the disk.
WAKE_SHARE = 0.1
LARGEST_ESTIMATED_FRACTION = 0.99  # a load that takes longer than usual is not at its end
SMALLEST_TELLING_FRACTION = 0.05  # below it, the rest of a load cannot be extrapolated

LoadOutcome = Literal["loaded", "failed", "postponed"]


@dataclass(frozen=True, slots=True)
class LoadView:
    """A load under way, for the admin API.

    `estimate_s` is how long earlier loads took, None if there were none. `overdue`: the load takes so long that
    requests for the model look for another node too. `wakes`: the model slept, and is woken. `progress` is the fraction
    that is done, None if neither the neuron nor earlier loads tell. `devices` are the indexes of the GPUs that the load
    names; empty if the neuron chooses.
    """

    node: str
    model: str
    elapsed_s: float
    estimate_s: float | None
    waiters: int
    overdue: bool
    wakes: bool = False
    progress: float | None = None
    devices: tuple[int, ...] = ()


class LoadProgress(NamedTuple):
    """How far the load of a model is. `left_s` is the time until its end in seconds. None for what is unknown."""

    wakes: bool
    fraction: float | None
    elapsed_s: float | None
    left_s: float | None


@dataclass(slots=True)
class LoadRecord:
    """What became of a load. Times are Trio's clock.

    `outcome` is None while the load is under way. `postponed`: the free memory that the load was decided by was gone
    when it began. `reason` says why the model was not loaded; `evicted` are the models that were unloaded for it.
    `woke`: the model slept on the node.
    """

    node: str
    model: str
    began_at: float
    ended_at: float | None = None
    outcome: LoadOutcome | None = None
    reason: str | None = None
    evicted: tuple[str, ...] = ()
    woke: bool = False


class Load:
    """One load of one model on one node, from the decision to its end.

    `done` wakes the requests that wait; `is_over` means that the job has ended. `done` comes first when the node is
    down or the load is overdue. `scope` is around the job's calls; cancelling it makes the load fail with
    `cancelled_for`. `record` outlives the load.
    """

    __slots__ = (
        "began_at",
        "cancelled_for",
        "devices",
        "done",
        "is_over",
        "is_overdue",
        "model",
        "node",
        "record",
        "scope",
        "waiters",
        "wakes",
    )

    def __init__(self, node: str, model: str, *, wakes: bool = False, devices: tuple[int, ...] = ()) -> None:
        self.node = node
        self.model = model
        self.wakes = wakes
        self.devices = devices
        self.began_at = trio.current_time()
        self.record = LoadRecord(node, model, self.began_at, woke=wakes)
        self.done = trio.Event()
        self.is_over = False
        self.is_overdue = False
        self.scope = trio.CancelScope()
        self.cancelled_for: str | None = None
        self.waiters = 0


class LoadPostponed(Exception):
    """The room that a load was decided by is not there. Not a failure: decide again."""


class LoadHistory:
    """All loads of one gateway, by node and model. Waking is a load with times of its own."""

    def __init__(self) -> None:
        self.under_way: dict[tuple[str, str], Load] = {}
        self._took_s: dict[tuple[str, str, bool], deque[float]] = {}  # by node, model, and whether the model was woken
        self._records: deque[LoadRecord] = deque(maxlen=RECORDS)

    def begin(self, node: str, model: str, *, wakes: bool = False, devices: tuple[int, ...] = ()) -> Load:
        """Register a load on these devices that is about to begin."""
        load = self.under_way[node, model] = Load(node, model, wakes=wakes, devices=devices)
        self._records.append(load.record)
        return load

    def end(self, load: Load) -> None:
        """The load's job has ended, with any outcome."""
        del self.under_way[load.node, load.model]
        load.record.ended_at = trio.current_time()
        load.is_over = True

    def note_time(self, load: Load, took_s: float) -> None:
        """Remember how long a successful load took."""
        self._took_s.setdefault((load.node, load.model, load.wakes), deque(maxlen=TIMES)).append(took_s)

    # Reading ..........................................................................................................

    def to_wait_for(self, model: str, nodes: Iterable[str]) -> Load | None:
        """The first load of the model on these nodes whose `done` is not set; None if there is none."""
        found = (self.under_way.get((node, model)) for node in nodes)
        return next((load for load in found if load is not None and not load.done.is_set()), None)

    def views(self, reported: Callable[[str, str], float | None]) -> list[LoadView]:
        """The loads under way. `reported` gives the fraction that a node reports of the load of a model, or None."""
        now = trio.current_time()
        return [
            LoadView(
                load.node,
                load.model,
                now - load.began_at,
                self.estimate_s(load.node, load.model, wakes=load.wakes),
                load.waiters,
                load.is_overdue,
                load.wakes,
                self._progress(load, reported).fraction,
                load.devices,
            )
            for load in self.under_way.values()
        ]

    def estimate_s(self, node: str, model: str, *, wakes: bool = False) -> float | None:
        """How long loading this model on this node takes: the mean of the last times, None if there are none."""
        took_s = self._took_s.get((node, model, wakes))
        return sum(took_s) / len(took_s) if took_s else None

    def longest_s(self, node: str, model: str, *, wakes: bool = False) -> float | None:
        """The longest of the last times, None if there are none."""
        took_s = self._took_s.get((node, model, wakes))
        return max(took_s) if took_s else None

    def expected_s(self, node: str, model: str, *, wakes: bool) -> float:
        """How long loading or waking this model on this node takes: learnt, or else assumed."""
        learnt_s = self.estimate_s(node, model, wakes=wakes)
        if learnt_s is not None:
            return learnt_s
        load_s = self.estimate_s(node, model) or self._elsewhere_s(model) or DEFAULT_ESTIMATE_S
        return load_s * WAKE_SHARE if wakes else load_s

    def return_s(self, node: str, model: str) -> float:
        """How long it takes to have a model back that is evicted: woken, if it has been woken there before."""
        return self.estimate_s(node, model, wakes=True) or self.expected_s(node, model, wakes=False)

    def _elsewhere_s(self, model: str) -> float | None:
        """The mean of the last load times on all nodes, or None."""
        known = [s for (_, name, woken), took_s in self._took_s.items() if name == model and not woken for s in took_s]
        return sum(known) / len(known) if known else None

    def progress(self, model: str, reported: Callable[[str, str], float | None]) -> LoadProgress | None:
        """How far the load of the model is that ends first; None if there is none. `reported`: see `views`."""
        found = [self._progress(load, reported) for load in self.under_way.values() if load.model == model]
        return min(found, key=lambda progress: inf if progress.left_s is None else progress.left_s, default=None)

    def _progress(self, load: Load, reported: Callable[[str, str], float | None]) -> LoadProgress:
        """By what the node reports, else by how long earlier loads took."""
        elapsed_s = trio.current_time() - load.began_at
        fraction, usual_s = reported(load.node, load.model), self.estimate_s(load.node, load.model, wakes=load.wakes)
        left_s = None if usual_s is None else max(usual_s - elapsed_s, 0.0)
        if fraction is None and usual_s:
            fraction = min(elapsed_s / usual_s, LARGEST_ESTIMATED_FRACTION)
        elif fraction is not None and fraction >= SMALLEST_TELLING_FRACTION:
            left_s = elapsed_s * (1 - fraction) / fraction
        return LoadProgress(load.wakes, fraction, elapsed_s, left_s)

    def retry_after_s(self, model: str, reported: Callable[[str, str], float | None]) -> int:
        """When to ask again for a model that is being loaded, in whole seconds. `reported`: see `views`."""
        progress = self.progress(model, reported)
        if progress is None:
            return DEFAULT_ESTIMATE_S
        if progress.left_s is None:
            return whole_s(DEFAULT_ESTIMATE_S - (progress.elapsed_s or 0.0))
        return whole_s(progress.left_s)

    def earlier(self, model: str) -> str:
        """How long earlier loads of the model took, as the end of a sentence; empty if there were none."""
        nodes = [node for node, name, woken in self._took_s if name == model and not woken]
        estimates = {node: self.estimate_s(node, model) for node in nodes}
        known = ", ".join(
            f"{took_s:.0f} s on {node}" for node, took_s in sorted(estimates.items()) if took_s is not None
        )
        return f"; earlier loads took {known}" if known else ""

    def between(self, model: str, since: float, until: float) -> list[LoadRecord]:
        """The loads of the model that were under way in this time (Trio's clock), oldest first."""
        records = (record for record in self._records if record.model == model and record.began_at <= until)
        return [record for record in records if record.ended_at is None or record.ended_at >= since]
