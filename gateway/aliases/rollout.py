"""The gateway's part in rollouts: it watches the requests of each step, and takes the next step or the way back.

`rollout_state.py` has what is written down, `guards.py` the judgement. Here is when: a task that looks once a second.
The comparison of a step is this process's own; after a restart the step and its clock go on, and the requests are
counted anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import structlog
import trio

from catalogue.models import Catalogue
from catalogue.toml.faults import FaultyFile
from gateway.aliases.files import rollout_state
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.rollout_guards import DEFAULT_ALPHA, Comparison
from gateway.files.atomic_write import CannotSave
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.observation import Observation, Observer

__all__ = ["RolloutController"]

LOOK_S = 1.0
TROUBLE_LOOK_S = 10.0  # after something that could not be read or written
LAST_SHARE = 100.0  # at which nobody is left to compare with

Standing: TypeAlias = Literal["there", "on its way", "elsewhere"]
_T = TypeVar("_T")

log = structlog.get_logger("cortex.rollout")


class Keeper(Protocol):
    """Whoever holds the catalogue in force."""

    @property
    def current(self) -> Catalogue:
        """The snapshot now."""
        ...

    async def reload(self) -> object:
        """Look at the file now."""
        ...


class Watchable(Protocol):
    """Whoever knows how requests end."""

    def watch(self, alias: str, observer: Observer) -> None:
        """Have every request for the alias observed."""
        ...

    def unwatch(self, alias: str, observer: Observer) -> None:
        """No more of that."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One rollout under way, for windows. Seconds and requests are of the step."""

    alias: str
    target: str
    step: int
    steps: int
    percent: float
    elapsed_s: float | None
    every_s: float
    requests_old: int
    requests_new: int
    minimum: int
    waits_for: str
    old: dict[str, Any]
    new: dict[str, Any]


class _Watch:
    """The requests of one step, as they end."""

    def __init__(self, rollout: Rollout, watchable: Watchable) -> None:
        self.step = rollout.step
        self._target = rollout.target
        self._alias = rollout.alias
        self._watchable = watchable
        compared = [step for step in rollout.steps if step < LAST_SHARE]
        self.comparison = Comparison(
            rollout.guards,
            alpha=DEFAULT_ALPHA / max(1, len(compared)),
            minimum=rollout.minimum,
            old=" and ".join(model for model in rollout.old if model != rollout.target),
            new=rollout.target,
        )
        watchable.watch(rollout.alias, self._see)

    def _see(self, seen: Observation) -> None:
        self.comparison.add(seen, is_new=seen.target == self._target)

    def close(self) -> None:
        self._watchable.unwatch(self._alias, self._see)


class RolloutController:
    """Drives every rollout that is written down as running.

    Args:
        records: Where they are written down, and what they change.
        keeper: Says what is in force, and is made to look after each step.
        watchable: Tells how requests end.
        metrics: Shows how far each rollout is.
        clock: Unix seconds: steps outlive processes.
    """

    def __init__(
        self,
        records: CatalogueFiles,
        *,
        keeper: Keeper,
        watchable: Watchable,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._keeper = keeper
        self._watchable = watchable
        self._metrics = metrics
        self._clock = clock
        self._known: dict[str, Rollout] = {}
        self._stamp: object = None
        self._watches: dict[str, _Watch] = {}
        self._trouble: str | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, decide, act, until cancelled. Started once what was written down before is known, or cannot be."""
        try:
            await self._look()
            task_status.started()
            while True:
                await trio.sleep(TROUBLE_LOOK_S if self._trouble else LOOK_S)
                await self._look()
        finally:
            for watch in self._watches.values():
                watch.close()

    def views(self) -> list[RolloutView]:
        """Those under way, by alias."""
        return [self._view(rollout) for _, rollout in sorted(self._known.items()) if rollout.state == "running"]

    def _view(self, rollout: Rollout) -> RolloutView:
        watch = self._watches.get(rollout.alias)
        old, new = (0, 0) if watch is None else watch.comparison.requests
        figures = ({}, {}) if watch is None else tuple(asdict(each) for each in watch.comparison.figures())
        return RolloutView(
            rollout.alias,
            rollout.target,
            rollout.step + 1,
            len(rollout.steps),
            rollout.percent,
            None if rollout.since is None else self._clock() - rollout.since,
            rollout.every_s,
            old,
            new,
            rollout.minimum,
            self._waits_for(rollout),
            *figures,
        )

    def _waits_for(self, rollout: Rollout) -> str:
        if self._trouble is not None:
            return f"trouble: {self._trouble}"
        if rollout.since is None:
            return "the step to be in force"
        watch = self._watches.get(rollout.alias)
        if self._clock() - rollout.since < rollout.every_s:
            return "time"
        return "requests" if watch is not None and not watch.comparison.enough else "nothing"

    # Looking and acting...

    async def _look(self) -> None:
        """One round. What cannot be read or written now is told once, and tried again."""
        try:
            await self._refresh()
            for rollout in [each for each in self._known.values() if each.state == "running"]:
                await self._drive(rollout)
            self._trouble = None
        except (OSError, CannotSave, CannotEdit, FaultyFile, InvalidRolloutState) as error:
            if str(error) != self._trouble:
                log.error("rollout_stuck", reason=str(error), retry_s=TROUBLE_LOOK_S)  # noqa: TRY400 - no fault of ours
            self._trouble = str(error)

    async def _refresh(self) -> None:
        stamp = await _in_thread(lambda: rollout_state.file_stamp(self._records))
        if stamp != self._stamp:
            self._known = await _in_thread(lambda: rollout_state.read(self._records))
            self._stamp = stamp
        for alias in list(self._watches):
            if alias not in self._known or self._known[alias].state != "running":
                self._watches.pop(alias).close()

    async def _drive(self, rollout: Rollout) -> None:
        """At most one thing is done in a round; whether it was, the next round sees."""
        if rollout.ending is not None:
            await self._end(rollout, rollout.ending, rollout.reason or "")
        elif rollout.step < 0:
            await self._advance(rollout)
        elif rollout.since is None:
            await self._wait_until_there(rollout)
        else:
            await self._judge(rollout)

    async def _wait_until_there(self, rollout: Rollout) -> None:
        """The file says the step; it is in force once what it needs is warm."""
        warming = self._keeper.current.warming.get(rollout.alias)
        if warming is not None and warming.failed is not None:
            await self._end(rollout, "rolled_back", f"{rollout.target} could not be warmed: {warming.failed}")
        elif self._standing(rollout) == "there":
            now = self._clock()
            log.info("rollout_step", alias=rollout.alias, target=rollout.target, percent=rollout.percent)
            self._metrics.rollout_percent(rollout.alias).set(rollout.percent)
            await self._change(rollout, lambda: rollout_state.mark_in_force(self._records, rollout, now))
        elif self._standing(rollout) == "elsewhere":
            await self._advance(rollout)  # the same step: a crash may have come before the file was written

    def _standing(self, rollout: Rollout) -> Standing:
        catalogue = self._keeper.current
        if rollout.alias in catalogue.warming:
            return "on its way"
        is_there = rollout_state.has_targets(catalogue.aliases.get(rollout.alias), rollout.targets(rollout.step))
        return "there" if is_there else "elsewhere"

    async def _judge(self, rollout: Rollout) -> None:
        watch = self._watch(rollout)
        trip = watch.comparison.trip()
        since = self._clock() if rollout.since is None else rollout.since
        if self._standing(rollout) != "there":
            now = self._clock()
            await self._change(rollout, lambda: rollout_state.supersede_if_changed(self._records, rollout, now))
        elif trip is not None:
            await self._end(rollout, "rolled_back", str(trip))
        elif rollout.is_last and rollout.percent >= LAST_SHARE:
            await self._end(rollout, "done", f"{rollout.target} has every request")
        elif self._clock() - since >= rollout.every_s and (watch.comparison.enough or not rollout.minimum):
            if rollout.is_last:
                await self._end(rollout, "done", f"{rollout.target} has {rollout.percent:g} %, as the last step says")
            else:
                await self._advance(rollout)

    def _watch(self, rollout: Rollout) -> _Watch:
        watch = self._watches.get(rollout.alias)
        if watch is None or watch.step != rollout.step:
            if watch is not None:
                watch.close()
            watch = self._watches[rollout.alias] = _Watch(rollout, self._watchable)
        return watch

    async def _advance(self, rollout: Rollout) -> None:
        now = self._clock()
        await self._change(rollout, lambda: rollout_state.advance(self._records, rollout, now))
        await self._keeper.reload()

    async def _end(self, rollout: Rollout, how: rollout_state.RolloutState, reason: str) -> None:
        now = self._clock()
        await self._change(rollout, lambda: rollout_state.end(self._records, rollout, how, reason, now))
        await self._keeper.reload()

    async def _change(self, rollout: Rollout, do: Callable[[], Rollout]) -> None:
        """Have it done, in a thread; what is known afterwards may be somebody else's doing."""
        known = self._known[rollout.alias] = await _in_thread(do)
        if known.state not in {"running", rollout.state}:
            told = log.warning if known.state == "rolled_back" else log.info
            told(f"rollout_{known.state}", alias=known.alias, target=known.target, reason=known.reason)
            self._metrics.rollout_percent(known.alias).set(known.percent if known.state == "done" else 0)
            watch = self._watches.pop(known.alias, None)
            if watch is not None:
                watch.close()


async def _in_thread(do: Callable[[], _T]) -> _T:
    # Abandoned when cancelled: a disk that hangs must not hold up the process's end. What the thread leaves undone is
    # what a crash would leave, and the state file is written for that.
    return await trio.to_thread.run_sync(do, abandon_on_cancel=True)
