"""Loads of models: those under way, and what became of the last ones. No I/O: the jobs are the lifecycle's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import trio

from gateway.errors import whole_s

__all__ = ["Load", "LoadStory", "LoadView", "Loads", "Postponed"]

DEFAULT_ESTIMATE_S = 30  # Retry-After for a load that nobody has timed yet
STORIES = 256  # of the last loads, for `cortex explain`; a fleet of ten neurons seldom has that many in a day

LoadOutcome = Literal["loaded", "failed", "postponed"]


@dataclass(frozen=True, slots=True)
class LoadView:
    """A load under way, for status: seconds so far, and how long earlier ones took (None if there were none).

    `overdue`: it takes so long that those who want the model look for it elsewhere, too.
    """

    node: str
    model: str
    elapsed_s: float
    estimate_s: float | None
    waiters: int
    overdue: bool


@dataclass(slots=True)
class LoadStory:
    """What became of a load, for whoever asks later. Times are Trio's clock.

    `outcome` is None while it is under way, then `loaded`, `failed` or `postponed` (what was free when it was decided
    upon was so no more); `reason` says why, where it did not load. `evicted` are the models that made room for it.
    """

    node: str
    model: str
    began_at: float
    ended_at: float | None = None
    outcome: LoadOutcome | None = None
    reason: str | None = None
    evicted: tuple[str, ...] = ()


class Load:
    """One load of one model on one neuron, from the decision to its end.

    `done` wakes the waiters, `over` says that the job has ended: the first without the second when the node is down, or
    the load `overdue`.
    `scope` is around the job's calls; cancelling it makes the load fail with `cancelled_for`. `story` outlives it.
    """

    __slots__ = ("began", "cancelled_for", "done", "model", "node", "over", "overdue", "scope", "story", "waiters")

    def __init__(self, node: str, model: str) -> None:
        self.node = node
        self.model = model
        self.began = trio.current_time()
        self.story = LoadStory(node, model, self.began)
        self.done = trio.Event()
        self.over = False
        self.overdue = False
        self.scope = trio.CancelScope()
        self.cancelled_for: str | None = None
        self.waiters = 0


class Postponed(Exception):
    """The room that a load was decided upon is not there: no failure, but a reason to decide again."""


class Loads:
    """All loads of one gateway, by neuron and model. Written by the lifecycle."""

    def __init__(self) -> None:
        self.under_way: dict[tuple[str, str], Load] = {}
        self._took_s: dict[tuple[str, str], deque[float]] = {}
        self._stories: deque[LoadStory] = deque(maxlen=STORIES)

    def begin(self, node: str, model: str) -> Load:
        """Somebody is about to load this model there."""
        load = self.under_way[node, model] = Load(node, model)
        self._stories.append(load.story)
        return load

    def end(self, load: Load) -> None:
        """However it went."""
        del self.under_way[load.node, load.model]
        load.story.ended_at = trio.current_time()
        load.over = True

    def note_time(self, load: Load, took_s: float) -> None:
        """It went well, and took so long."""
        self._took_s.setdefault((load.node, load.model), deque(maxlen=5)).append(took_s)

    # Asking ...........................................................................................................

    def to_wait_for(self, model: str, nodes: Iterable[str]) -> Load | None:
        """The first load of the model on any of these that is worth waiting for, or None."""
        found = (self.under_way.get((node, model)) for node in nodes)
        return next((load for load in found if load is not None and not load.done.is_set()), None)

    def views(self) -> list[LoadView]:
        """What is being loaded now."""
        now = trio.current_time()
        return [
            LoadView(
                load.node,
                load.model,
                now - load.began,
                self.estimate_s(load.node, load.model),
                load.waiters,
                load.overdue,
            )
            for load in self.under_way.values()
        ]

    def estimate_s(self, node: str, model: str) -> float | None:
        """How long loading this model on this node takes, from the last times; None if it never was."""
        took = self._took_s.get((node, model))
        return sum(took) / len(took) if took else None

    def longest_s(self, node: str, model: str) -> float | None:
        """The longest of the last times; None if it never was loaded there."""
        took = self._took_s.get((node, model))
        return max(took) if took else None

    def retry_after_s(self, model: str) -> int:
        """When to ask again for a model that is being loaded, in whole seconds."""
        now = trio.current_time()
        left = [
            (self.estimate_s(load.node, model) or DEFAULT_ESTIMATE_S) - (now - load.began)
            for load in self.under_way.values()
            if load.model == model
        ]
        return whole_s(min(left, default=DEFAULT_ESTIMATE_S))

    def earlier(self, model: str) -> str:
        """How long loads of the model took before, as the rest of a sentence; empty if nobody knows."""
        known = {node: self.estimate_s(node, model) for node, name in self._took_s if name == model}
        told = ", ".join(f"{took_s:.0f} s on {node}" for node, took_s in sorted(known.items()) if took_s is not None)
        return f"; earlier loads took {told}" if told else ""

    def between(self, model: str, since: float, until: float) -> list[LoadStory]:
        """The loads of the model that were under way in between, by Trio's clock; the oldest first."""
        stories = (story for story in self._stories if story.model == model and story.began_at <= until)
        return [story for story in stories if story.ended_at is None or story.ended_at >= since]
