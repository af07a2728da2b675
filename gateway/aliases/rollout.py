"""The rollout controller: it advances each running rollout step by step, or rolls it back.

`files/rollout_state.py` has what is stored, and `rollout_guards.py` compares the targets. Here is when something
happens: a task reconciles every running rollout once a second. A step's requests are counted in this process only:
after a restart, the step and its clock go on, and the count starts again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import structlog
import trio

from catalogue.diff import CatalogueDiff
from catalogue.models import Alias, Catalogue
from catalogue.toml.faults import FaultyFile
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.files import rollout_state
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, RolloutState, alias_fingerprint
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.rollout_guards import DEFAULT_ALPHA, StepComparison
from gateway.files.atomic_write import CannotSave
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.observation import Observation, Observer

__all__ = ["RolloutController", "RolloutView"]

RECONCILE_INTERVAL_S = 1.0
RETRY_S = 10.0  # after a file could not be read or written
FILE_DEADLINE_S = 30.0  # the edit lock may be held by others for 10 s
ALL_REQUESTS = 100.0  # percent; at this share the old target gets no requests to compare with

StepProgress: TypeAlias = Literal["in force", "warming", "not written"]
WatchRequests: TypeAlias = Callable[[str, Observer], object]  # alias, and what is called with each ended request
_T = TypeVar("_T")

log = structlog.get_logger("cortex.rollout")


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One running rollout, as the admin API shows it. Seconds, requests and figures are those of the current step.

    `guards` has the distance of each guard from tripping, between 1 and 0; see `StepComparison.distances`.
    """

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
    guards: dict[str, float]
    state: RolloutState = "running"


class _StepObserver:
    """Compares the requests of one step from its creation until `close`."""

    def __init__(self, rollout: Rollout, watch: WatchRequests, unwatch: WatchRequests) -> None:
        self.step = rollout.step
        self._alias = rollout.alias
        self._target = rollout.target
        self._unwatch = unwatch
        compared_steps = sum(percent < ALL_REQUESTS for percent in rollout.steps)
        self.comparison = StepComparison(
            rollout.guards,
            alpha=DEFAULT_ALPHA / max(1, compared_steps),
            minimum=rollout.minimum,
            old=" and ".join(model for model in rollout.old if model != rollout.target),
            new=rollout.target,
        )
        watch(self._alias, self._request_ended)

    def _request_ended(self, observation: Observation) -> None:
        self.comparison.add(observation, is_new=observation.target == self._target)

    def close(self) -> None:
        self._unwatch(self._alias, self._request_ended)


class RolloutController:
    """Drives every rollout that is stored as running.

    Args:
        files: Where rollouts are stored, and the `models.toml` that they change.
        store: Has the catalogue in force; it reads the file after each step.
        watch, unwatch: Start and end the observation of an alias's requests.
        metrics: Exports each rollout's percentage.
        clock: Unix seconds, since steps outlive processes.
        monotonic: Seconds. It measures the time of a step within this process, so that setting the system's clock
            neither ends a step nor prolongs it.
    """

    def __init__(
        self,
        files: CatalogueFiles,
        store: CatalogueStore,
        *,
        watch: WatchRequests,
        unwatch: WatchRequests,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = trio.current_time,
    ) -> None:
        self._files = files
        self._store = store
        self._watch = watch
        self._unwatch = unwatch
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._began: dict[str, tuple[tuple[int, float], float]] = {}  # by alias: step and `since`, and `monotonic`
        self._rollouts: dict[str, Rollout] = {}
        self._file_stamp: object = None
        self._observers: dict[str, _StepObserver] = {}
        self._error: str | None = None
        self._edited: set[str] = set()  # aliases edited since their rollback; to be stored
        store.subscribe(self._catalogue_changed)

    @property
    def error(self) -> str | None:
        """Why rollouts do not go on now; None if they do."""
        return self._error

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reconcile until cancelled. Started once the stored rollouts were read, or could not be read."""
        try:
            await self._reconcile()
            self._note_edits_while_stopped()
            task_status.started()
            while True:
                await trio.sleep(RETRY_S if self._error else RECONCILE_INTERVAL_S)
                await self._reconcile()
        finally:
            for observer in self._observers.values():
                observer.close()

    # Views...

    def views(self) -> list[RolloutView]:
        """The running rollouts, by alias."""
        return [self._view(rollout) for _, rollout in sorted(self._rollouts.items()) if rollout.state == "running"]

    def unacknowledged(self) -> list[Rollout]:
        """The rollouts that were rolled back and that no operator has taken note of, by alias."""
        return [rollout for _, rollout in sorted(self._rollouts.items()) if rollout.is_unacknowledged_rollback]

    def by_alias(self) -> dict[str, dict[str, Any]]:
        """For `/health`: the running rollouts, and the rollbacks that are not acknowledged."""
        running: dict[str, dict[str, Any]] = {view.alias: asdict(view) for view in self.views()}
        ended = {
            rollout.alias: {
                "state": rollout.state,
                "target": rollout.target,
                "reason": rollout.reason,
                "ended": rollout.ended,
            }
            for rollout in self.unacknowledged()
        }
        return running | ended

    def _view(self, rollout: Rollout) -> RolloutView:
        observer = self._observers.get(rollout.alias)
        requests_old, requests_new = (0, 0) if observer is None else observer.comparison.requests
        figures = ({}, {}) if observer is None else tuple(asdict(each) for each in observer.comparison.figures())
        return RolloutView(
            rollout.alias,
            rollout.target,
            rollout.step + 1,
            len(rollout.steps),
            rollout.percent,
            self._elapsed_s(rollout),
            rollout.every_s,
            requests_old,
            requests_new,
            rollout.minimum,
            self._waits_for(rollout),
            old=figures[0],
            new=figures[1],
            guards={} if observer is None else observer.comparison.distances(),
        )

    def _elapsed_s(self, rollout: Rollout) -> float | None:
        """How long the current step has been in force; None if it is not."""
        if rollout.since is None:
            return None
        step = (rollout.step, rollout.since)
        began = self._began.get(rollout.alias)
        if began is None or began[0] != step:
            # Only what passed before this process saw the step is measured by the system's clock.
            earlier_s = max(0.0, self._clock() - rollout.since)
            began = self._began[rollout.alias] = (step, self._monotonic() - earlier_s)
        return self._monotonic() - began[1]

    def _waits_for(self, rollout: Rollout) -> str:
        if self._error is not None:
            return f"a retry after an error: {self._error}"
        elapsed_s = self._elapsed_s(rollout)
        if elapsed_s is None:
            return "the step to be in force"
        if elapsed_s < rollout.every_s:
            return "time"
        observer = self._observers.get(rollout.alias)
        return "requests" if observer is not None and not observer.comparison.has_minimum else "nothing"

    # Reconciling...

    async def _reconcile(self) -> None:
        """Do at most one thing for each running rollout. An error is logged once, and everything is tried again."""
        try:
            await self._read_state()
            await self._store_edits()
            for rollout in [each for each in self._rollouts.values() if each.state == "running"]:
                await self._reconcile_one(rollout)
            self._error = None
        except (OSError, CannotSave, CannotEdit, FaultyFile, InvalidRolloutState) as error:
            if str(error) != self._error:
                log.error("rollout_stuck", reason=str(error), retry_s=RETRY_S)  # noqa: TRY400 - not a bug of ours
            self._error = str(error)

    async def _read_state(self) -> None:
        stamp = await _in_thread(lambda: rollout_state.file_stamp(self._files))
        if stamp != self._file_stamp:
            self._rollouts = await _in_thread(lambda: rollout_state.read(self._files))
            self._file_stamp = stamp
        for alias in list(self._observers):
            if alias not in self._rollouts or self._rollouts[alias].state != "running":
                self._observers.pop(alias).close()

    # Rollbacks that operators have taken note of...

    def _catalogue_changed(self, old: Catalogue, new: Catalogue, _: CatalogueDiff) -> None:
        """An edit of an alias after its rollback acknowledges the rollback. The rollback's own edit does not."""
        for rollout in self.unacknowledged():
            before, after = _in_file(old, rollout.alias), _in_file(new, rollout.alias)
            if before != after and alias_fingerprint(after) != rollout.restored:
                self._acknowledge(rollout)

    def _note_edits_while_stopped(self) -> None:
        for rollout in self.unacknowledged():
            alias = _in_file(self._store.current, rollout.alias)
            if rollout.restored is not None and alias_fingerprint(alias) != rollout.restored:
                self._acknowledge(rollout)

    def _acknowledge(self, rollout: Rollout) -> None:
        self._rollouts[rollout.alias] = msgspec.structs.replace(rollout, acknowledged=self._clock())
        self._edited.add(rollout.alias)

    async def _store_edits(self) -> None:
        while self._edited:
            alias = next(iter(self._edited))
            now = self._clock()
            stored = await _in_thread(partial(rollout_state.acknowledge, self._files, alias, now))
            self._edited.discard(alias)
            if stored is not None:
                self._rollouts[alias] = stored

    async def _reconcile_one(self, rollout: Rollout) -> None:
        if rollout.ending is not None:
            await self._end(rollout, rollout.ending, rollout.reason or "")
        elif rollout.step < 0:
            await self._advance(rollout)
        elif rollout.since is None:
            await self._start_step(rollout)
        else:
            await self._check_step(rollout)

    async def _start_step(self, rollout: Rollout) -> None:
        """Start the step's clock once the step is in force, which is when its target is warm."""
        warming = self._store.current.warming.get(rollout.alias)
        if warming is not None and warming.failed is not None:
            await self._end(rollout, "rolled_back", f"{rollout.target} could not be warmed: {warming.failed}")
            return
        progress = self._progress(rollout)
        if progress == "in force":
            now = self._clock()
            log.info("rollout_step", alias=rollout.alias, target=rollout.target, percent=rollout.percent)
            self._metrics.rollout_percent(rollout.alias).set(rollout.percent)
            await self._change(rollout, lambda: rollout_state.mark_in_force(self._files, rollout, now))
        elif progress == "not written":
            await self._advance(rollout)  # writes the same step: the process may have crashed before it was written

    def _progress(self, rollout: Rollout) -> StepProgress:
        catalogue = self._store.current
        if rollout.alias in catalogue.warming:
            return "warming"
        alias = catalogue.aliases.get(rollout.alias)
        return "in force" if rollout_state.has_targets(alias, rollout.targets(rollout.step)) else "not written"

    async def _check_step(self, rollout: Rollout) -> None:
        """Roll back if a guard tripped; else end the step once it has had its time and its requests."""
        comparison = self._observer_of(rollout).comparison
        trip = comparison.trip()
        elapsed_s = self._elapsed_s(rollout) or 0.0
        if self._progress(rollout) != "in force":
            now = self._clock()
            await self._change(rollout, lambda: rollout_state.supersede_if_changed(self._files, rollout, now))
        elif trip is not None:
            await self._end(rollout, "rolled_back", str(trip))
        elif rollout.is_last and rollout.percent >= ALL_REQUESTS:
            await self._end(rollout, "done", f"{rollout.target} gets all requests")
        elif elapsed_s >= rollout.every_s and (comparison.has_minimum or not rollout.minimum):
            if rollout.is_last:
                await self._end(rollout, "done", f"{rollout.target} gets {rollout.percent:g} %, as in the last step")
            else:
                await self._advance(rollout)

    def _observer_of(self, rollout: Rollout) -> _StepObserver:
        """The observer of the current step; replaces that of an earlier step."""
        observer = self._observers.get(rollout.alias)
        if observer is None or observer.step != rollout.step:
            if observer is not None:
                observer.close()
            observer = self._observers[rollout.alias] = _StepObserver(rollout, self._watch, self._unwatch)
        return observer

    # Changing the stored state...

    async def _advance(self, rollout: Rollout) -> None:
        now = self._clock()
        await self._change(rollout, lambda: rollout_state.advance(self._files, rollout, now))
        await self._store.reload()

    async def _end(self, rollout: Rollout, state: RolloutState, reason: str) -> None:
        now = self._clock()
        await self._change(rollout, lambda: rollout_state.end(self._files, rollout, state, reason, now))
        await self._store.reload()

    async def _change(self, rollout: Rollout, change: Callable[[], Rollout]) -> None:
        """Change the stored state in a thread. Another process may have ended the rollout instead."""
        stored = self._rollouts[rollout.alias] = await _in_thread(change)
        if stored.state in {"running", rollout.state}:
            return
        log_method = log.warning if stored.state == "rolled_back" else log.info
        log_method(f"rollout_{stored.state}", alias=stored.alias, target=stored.target, reason=stored.reason)
        self._metrics.rollout_percent(stored.alias).set(stored.percent if stored.state == "done" else 0)
        observer = self._observers.pop(stored.alias, None)
        if observer is not None:
            observer.close()


def _in_file(catalogue: Catalogue, alias: str) -> Alias | None:
    """The alias as the file has it, whether its new targets are warm or not."""
    warming = catalogue.warming.get(alias)
    return catalogue.aliases.get(alias) if warming is None else warming.wanted


async def _in_thread(function: Callable[[], _T]) -> _T:
    # Abandoned when cancelled or late: a hanging disk must not delay the process's end, nor stop rollouts without a
    # word. What the thread leaves unfinished is what a crash would leave, and the state file allows for that.
    try:
        with trio.fail_after(FILE_DEADLINE_S):
            return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
    except trio.TooSlowError:
        raise TimeoutError(f"a file was not read or written within {FILE_DEADLINE_S:g} s") from None
