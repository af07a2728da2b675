"""The queue between the gateway and its audit log: entries are added synchronously and written by a thread.

So no request and no swap waits for a disk. While the disk is full, entries wait in memory up to a limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypedDict

import structlog
import trio

from gateway.aliases.files.audit_entry import write_entry
from gateway.aliases.files.audit_log import AuditHead
from gateway.aliases.files.catalogue_files import CatalogueFiles

__all__ = ["AuditQueue", "AuditStatus"]

RETRY_S = 10.0  # after a line could not be written
PENDING_LIMIT = 1000  # entries in memory; beyond it the oldest are dropped and counted
PENDING_LIMIT_BYTES = 32 * 1024 * 1024  # of the files that waiting entries carry
SLOW_WRITE_S = 10.0  # a write takes milliseconds; after this long, `/health` reports it
FINAL_WRITE_S = 2.0  # for the entries that are left when the process ends
ABANDONED_POLL_S = 0.01

log = structlog.get_logger("cortex.audit")


class AuditStatus(TypedDict):
    """The audit log's state, for `/health`.

    `last` and `hash` are the number and the hash of the last line written, `pending` is how many entries wait, `lost`
    how many were dropped, and `error` why the entries wait, or None. `history` is where earlier files are kept, and
    `history_error` why the file in force is not kept there, or None.
    """

    path: str
    last: int
    hash: str
    pending: int
    lost: int
    error: str | None
    history: str
    history_error: str | None


@dataclass(slots=True)
class AuditEntry:
    """A line to write, and the content of `models.toml` to store in the history, if any.

    A cancelled task abandons its thread, which may or may not have begun. The next task therefore starts another
    thread for the same entry, and `claim` lets only one of them write it.
    """

    fields: dict[str, Any]
    data: bytes | None = None
    finished: bool = False  # set by the thread that claimed the entry
    not_kept: str | None = None  # why the history does not have `data`; set by that thread, too
    _claims: list[None] = field(default_factory=lambda: [None])

    def claim(self) -> bool:
        """True for exactly one caller, from any thread: `list.pop` is atomic."""
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True

    def release(self) -> None:
        """Allow another attempt after a failed one."""
        self.finished = False
        self._claims = [None]


class AuditQueue:
    """Writes the entries of one gateway in the order they were added."""

    def __init__(self, files: CatalogueFiles) -> None:
        self._files = files
        self._pending: deque[AuditEntry] = deque()
        self._added = trio.Event()
        self._head = AuditHead()
        self._lost = 0
        self._error: str | None = None
        self._unkept: bytes | None = None  # the newest file that the history could not take
        self._history_error: str | None = None
        self._writing_since: float | None = None

    def status(self) -> AuditStatus:
        """For `/health`."""
        error = self._error
        if self._writing_since is not None and trio.current_time() - self._writing_since > SLOW_WRITE_S:
            error = error or f"a line has not been written within {SLOW_WRITE_S:g} s: the file system does not answer"
        return AuditStatus(
            path=str(self._files.audit_log.path),
            last=self._head.seq,
            hash=self._head.hash,
            pending=len(self._pending),
            lost=self._lost,
            error=error,
            history=str(self._files.history.folder),
            history_error=self._history_error,
        )

    @property
    def head(self) -> AuditHead:
        """The last line that was written."""
        return self._head

    def add(self, fields: dict[str, Any], data: bytes | None = None) -> None:
        """Add an entry. Synchronous; drops the oldest entry beyond `PENDING_LIMIT`."""
        if sum(len(entry.data) for entry in self._pending if entry.data) > PENDING_LIMIT_BYTES:
            data = None  # the line is written, but a rollback to this file is not possible
        self._pending.append(AuditEntry(fields, data))
        if len(self._pending) > PENDING_LIMIT:
            self._pending.popleft()
            self._lost += 1
        self._added.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write entries until cancelled, and then those that are left, for at most `FINAL_WRITE_S`.

        Started at once: an audit log that cannot be written must not keep the gateway from serving.
        """
        task_status.started()
        try:
            while True:
                with trio.move_on_after(RETRY_S if self._unkept is not None else inf):
                    await self._added.wait()
                self._added = trio.Event()
                while not await self._write_pending():  # noqa: ASYNC110 - a disk does not signal that it has space again
                    await trio.sleep(RETRY_S)
                await self._keep_again()
        finally:
            with trio.move_on_after(FINAL_WRITE_S, shield=True):
                await self._write_pending()

    async def _write_pending(self) -> bool:
        """Write all entries, oldest first. False if one could not be written."""
        while self._pending:
            entry, lost = self._pending[0], self._lost
            self._writing_since = self._writing_since or trio.current_time()
            try:
                line = await trio.to_thread.run_sync(self._write, entry, lost, abandon_on_cancel=True)
            except OSError as error:
                self._set_history_state(entry)
                entry.release()
                self._set_error(error)
                return False
            finally:
                self._writing_since = None
            if line is None:  # a thread that was abandoned is writing this entry
                await _wait_until_finished(entry)
                self._pending.popleft()
            else:
                self._remove_written(entry, line, lost)
        return True

    def _write(self, entry: AuditEntry, lost: int) -> dict[str, Any] | None:
        """Write the entry, in a thread; None if another thread has claimed it. Raises OSError."""
        if not entry.claim():
            return None
        try:
            if entry.data is not None:
                entry.not_kept = self._keep(entry.data)
            return write_entry(self._files, entry.fields, lost=lost, not_kept=entry.not_kept, known=self._head)
        finally:
            entry.finished = True

    def _keep(self, data: bytes) -> str | None:
        """Store a file in the history, in a thread; returns why that failed. The line is written in any case."""
        try:
            self._files.history.keep(data)
        except OSError as error:
            return f"{error.filename or self._files.history.folder}: {error.strerror or error}"
        return None

    async def _keep_again(self) -> None:
        """Try to store the newest file that the history lacks. Its line is written already."""
        data = self._unkept
        if data is not None:
            reason = await trio.to_thread.run_sync(self._keep, data, abandon_on_cancel=True)
            self._set_history_error(reason, data)

    def _set_history_state(self, entry: AuditEntry) -> None:
        if entry.data is not None:
            self._set_history_error(entry.not_kept, entry.data)

    def _set_history_error(self, reason: str | None, data: bytes) -> None:
        if reason is not None and reason != self._history_error:
            log.error("history_failed", reason=reason, retry_s=RETRY_S)
        elif reason is None and self._history_error is not None:
            log.info("history_recovered", path=str(self._files.history.folder))
        self._history_error = reason
        self._unkept = None if reason is None else data

    def _remove_written(self, entry: AuditEntry, line: Mapping[str, Any], lost: int) -> None:
        self._head = AuditHead(line["seq"], line["hash"])
        self._set_history_state(entry)
        self._lost -= lost
        if self._pending and self._pending[0] is entry:
            self._pending.popleft()
        else:
            self._lost -= 1  # it was dropped, and counted as lost, while it was written
        if self._error is not None:
            self._error = None
            log.info("audit_recovered", path=str(self._files.audit_log.path), last=self._head.seq)

    def _set_error(self, error: OSError) -> None:
        reason = f"{error.filename or self._files.audit_log.path}: {error.strerror or error}"
        if reason != self._error:
            self._error = reason
            log.error("audit_failed", reason=reason, pending=len(self._pending), retry_s=RETRY_S)


async def _wait_until_finished(entry: AuditEntry) -> None:
    while not entry.finished:  # noqa: ASYNC110 - an abandoned thread cannot wake a task
        await trio.sleep(ABANDONED_POLL_S)
