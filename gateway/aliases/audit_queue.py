"""The queue between the gateway and its audit log: entries are added synchronously and written by a thread.

So no request and no swap waits for a disk. While the disk is full, entries wait in memory up to a limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import structlog
import trio

from gateway.aliases.files.audit_entry import write_entry
from gateway.aliases.files.catalogue_files import CatalogueFiles

__all__ = ["AuditQueue", "AuditStatus"]

RETRY_S = 10.0  # after a line could not be written
PENDING_LIMIT = 1000  # entries in memory; beyond it the oldest are dropped and counted
PENDING_LIMIT_BYTES = 32 * 1024 * 1024  # of the files that waiting entries carry
FINAL_WRITE_S = 2.0  # for the entries that are left when the process ends
ABANDONED_POLL_S = 0.01

log = structlog.get_logger("cortex.audit")


class AuditStatus(TypedDict):
    """The audit log's state, for `/health`.

    `last` is the number of the last line written, `pending` how many entries wait, `lost` how many were dropped, and
    `error` why the entries wait, or None.
    """

    path: str
    last: int
    pending: int
    lost: int
    error: str | None


@dataclass(slots=True)
class AuditEntry:
    """A line to write, and the content of `models.toml` to store in the history, if any.

    A cancelled task abandons its thread, which may or may not have begun. The next task therefore starts another
    thread for the same entry, and `claim` lets only one of them write it.
    """

    fields: dict[str, Any]
    data: bytes | None = None
    finished: bool = False  # set by the thread that claimed the entry
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
        self._last_seq = 0
        self._lost = 0
        self._error: str | None = None

    def status(self) -> AuditStatus:
        """For `/health`."""
        path = str(self._files.audit_log.path)
        return AuditStatus(
            path=path, last=self._last_seq, pending=len(self._pending), lost=self._lost, error=self._error
        )

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
                await self._added.wait()
                self._added = trio.Event()
                while not await self._write_pending():  # noqa: ASYNC110 - a disk does not signal that it has space again
                    await trio.sleep(RETRY_S)
        finally:
            with trio.move_on_after(FINAL_WRITE_S, shield=True):
                await self._write_pending()

    async def _write_pending(self) -> bool:
        """Write all entries, oldest first. False if one could not be written."""
        while self._pending:
            entry, lost = self._pending[0], self._lost
            try:
                line = await trio.to_thread.run_sync(self._write, entry, lost, abandon_on_cancel=True)
            except OSError as error:
                entry.release()
                self._set_error(error)
                return False
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
            return write_entry(self._files, entry.fields, entry.data, lost)
        finally:
            entry.finished = True

    def _remove_written(self, entry: AuditEntry, line: Mapping[str, Any], lost: int) -> None:
        self._last_seq = line["seq"]
        self._lost -= lost
        if self._pending and self._pending[0] is entry:
            self._pending.popleft()
        else:
            self._lost -= 1  # it was dropped, and counted as lost, while it was written
        if self._error is not None:
            self._error = None
            log.info("audit_recovered", path=str(self._files.audit_log.path), last=self._last_seq)

    def _set_error(self, error: OSError) -> None:
        reason = f"{error.filename or self._files.audit_log.path}: {error.strerror or error}"
        if reason != self._error:
            self._error = reason
            log.error("audit_failed", reason=reason, pending=len(self._pending), retry_s=RETRY_S)


async def _wait_until_finished(entry: AuditEntry) -> None:
    while not entry.finished:  # noqa: ASYNC110 - an abandoned thread cannot wake a task
        await trio.sleep(ABANDONED_POLL_S)
