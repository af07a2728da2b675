"""How far a run of the bench is, on stderr: a bar with the time left on a terminal, a line per step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gateway.cli.bench.run import Step
from gateway.cli.terminal import print_error

__all__ = ["BenchProgress", "bench_progress"]

_COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=24),
    TimeElapsedColumn(),
    TextColumn("elapsed,", markup=False),
    TimeRemainingColumn(elapsed_when_finished=False),
    TextColumn("left", markup=False),
)


class BenchProgress:
    """Use `bench_progress`. Steps count by their weights, and the requests of a step equally."""

    def __init__(self, bar: Progress, task: TaskID, *, on_terminal: bool) -> None:
        self._bar = bar
        self._task = task
        self._on_terminal = on_terminal
        self._steps: Sequence[Step] = ()
        self._begun = 0
        self._done = 0.0
        self._weight = 0.0

    def planned(self, steps: Sequence[Step]) -> None:
        """Call it once, with all steps."""
        self._steps = steps
        self._bar.update(self._task, total=sum(step.weight for step in steps))

    def begins(self, step: Step) -> None:
        """Call it before each step."""
        self._done = sum(earlier.weight for earlier in self._steps[: self._begun])
        self._weight = step.weight / step.requests
        self._begun += 1
        self._bar.update(self._task, description=str(step), completed=self._done)
        if not self._on_terminal:
            print_error(f"step {self._begun} of {len(self._steps)}: {step}")

    def answered(self) -> None:
        """Call it after each request."""
        self._done += self._weight
        self._bar.update(self._task, completed=self._done)


@contextmanager
def bench_progress() -> Iterator[BenchProgress]:
    """Shown until the end of the block; the bar vanishes then."""
    shown = Console(stderr=True)
    with Progress(*_COLUMNS, console=shown, disable=not shown.is_terminal, transient=True) as bar:
        yield BenchProgress(bar, bar.add_task("starting", total=None), on_terminal=shown.is_terminal)
