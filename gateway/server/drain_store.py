"""Drains that survive a restart: which neurons an operator has drained, in a file in the state directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import structlog
import trio

from gateway.files import atomic_write
from gateway.files.state_directory import make_directory
from gateway.fleet.loading.drain import Drains, DrainView

__all__ = ["DrainStore"]

SAVE_INTERVAL_S = 1.0  # a move ends by itself
SAVE_DEADLINE_S = 5.0  # an operator waits for it

_SavedState: TypeAlias = Literal["moving", "drained"]
_MoveEnded: TypeAlias = Callable[[DrainView, str], object]

log = structlog.get_logger("cortex.drains")


class SavedDrain(msgspec.Struct, frozen=True):
    """One drain. `who` began it, at `since` in unix seconds."""

    state: _SavedState
    who: str
    since: float


class _DrainFile(msgspec.Struct, frozen=True):
    drains: dict[str, SavedDrain] = {}
    version: Literal[1] = 1


class DrainStore:
    """The file, and what is in it.

    Args:
        path: The file.
        drains: The drains of this gateway.
        nodes: The neurons, by name; drains of others are forgotten.
        move_ended: Called with the drain and its author when the moves of a drain have ended, either way.

    Attributes:
        error: Why the file could not be read or written, None if it could.
    """

    def __init__(
        self, path: Path, drains: Drains, *, nodes: Callable[[], Collection[str]], move_ended: _MoveEnded
    ) -> None:
        self.path = path
        self.error: str | None = None
        self._drains = drains
        self._nodes = nodes
        self._move_ended = move_ended
        self._saved: Mapping[str, SavedDrain] = {}
        self._authors: dict[str, tuple[str, float]] = {}
        self._lock = trio.Lock()

    def restore(self) -> None:
        """Drain what was drained when the last gateway process ended. Blocks on the file; call it before serving.

        A drain that was still moving models is resumed by `run`: until then its neuron serves.
        """
        self._apply(self._read())

    async def adopt(self) -> None:
        """The same once more, after another process has written the file: drains that are not in it end."""
        self._apply(await trio.to_thread.run_sync(self._read, abandon_on_cancel=True))

    def _read(self) -> Mapping[str, SavedDrain]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_DrainFile).drains
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            self._set_error(f"cannot be read: {getattr(error, 'strerror', None) or error}; no neuron is drained")
            return {}

    def _apply(self, saved: Mapping[str, SavedDrain]) -> None:
        for node in self._saved.keys() - saved.keys():
            self._drains.undrain(node)
        self._saved = {node: drain for node, drain in saved.items() if node in self._nodes()}
        for node, drain in self._saved.items():
            self._authors[node] = (drain.who, drain.since)
            if drain.state == "drained":
                self._drains.drain(node)
                log.info("drain_restored", node=node, who=drain.who)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume the moves that a restart interrupted, and save what ends by itself, until cancelled. Started at once.

        Start it once the neurons were polled: only then it is known where a model can move to.
        """
        for node, drain in self._saved.items():
            if drain.state == "moving":
                log.info("drain_resumed", node=node, who=drain.who)
                self._drains.drain(node, move=True)
        task_status.started()
        while True:
            await self.save()
            await trio.sleep(SAVE_INTERVAL_S)

    def set_author(self, node: str, who: str) -> None:
        """Note who begins a drain."""
        if node not in self._saved:
            self._authors[node] = (who, time.time())

    async def save(self) -> None:
        """Save the drains as they are now, if they have changed. Raises nothing: `error` says why it failed."""
        async with self._lock:
            now = {node: drain for node in self._nodes() if (drain := self._drain_of(node)) is not None}
            if now == self._saved:
                return
            self._report_ended_moves(now)
            try:
                with trio.fail_after(SAVE_DEADLINE_S):
                    await trio.to_thread.run_sync(self._write, now, abandon_on_cancel=True)
            except trio.TooSlowError:
                self._set_error(f"could not be written within {SAVE_DEADLINE_S:g} s")
            except OSError as error:
                self._set_error(f"cannot be written: {error.strerror or error}")
            else:
                self._saved, self.error = now, None

    def _drain_of(self, node: str) -> SavedDrain | None:
        state = self._drains.view(node).state
        if state == "open":
            return None
        who, since = self._authors.get(node, ("cortex", 0.0))
        return SavedDrain("moving" if state == "moving" else "drained", who, since)

    def _report_ended_moves(self, now: Mapping[str, SavedDrain]) -> None:
        for node, before in self._saved.items():
            if node not in self._nodes():
                continue
            view = self._drains.view(node)
            if before.state == "moving" and view.state != "moving" and (node in now or view.moves):
                self._move_ended(view, before.who)

    def _write(self, drains: dict[str, SavedDrain]) -> None:
        make_directory(self.path.parent)
        atomic_write.write(self.path, msgspec.json.format(msgspec.json.encode(_DrainFile(drains)), indent=2) + b"\n")

    def _set_error(self, reason: str) -> None:
        if reason != self.error:
            log.error("drains_not_saved", path=str(self.path), reason=reason)
        self.error = reason
