"""What the gateway writes into the audit log, and when: every catalogue that came into force or was rejected.

The catalogue store notifies it synchronously; `audit_queue.py` writes the entries later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
import trio

from catalogue.diff import CatalogueDiff
from catalogue.models import Catalogue
from catalogue.toml.faults import Fault
from gateway.aliases.audit_queue import AuditQueue, AuditStatus
from gateway.aliases.catalogue_store import FILE_ACTOR, CatalogueStore
from gateway.aliases.files.audit_log import AuditHead
from gateway.aliases.files.catalogue_files import CatalogueFiles

__all__ = ["AuditStatus", "Auditor"]

PLANNED_ALIASES = 20  # no plan beyond: planning runs in the event loop, and a hundred aliases were measured at 60 ms
GATEWAY_ACTOR = "cortex"  # the actor of a change that the gateway made by itself

log = structlog.get_logger("cortex.audit")


class Auditor:
    """Writes the audit log of one gateway.

    Args:
        files: Where the audit log and the history are.
        store: Notifies of changes and rejections.
        plan: Returns the plan of a change as JSON; None for an audit log without plans. Called synchronously.
    """

    def __init__(
        self,
        files: CatalogueFiles,
        store: CatalogueStore,
        *,
        plan: Callable[[Catalogue, Catalogue], Mapping[str, Any]] | None = None,
    ) -> None:
        self._queue = AuditQueue(files)
        self._store = store
        self._plan = plan
        self._last_rejection: str | None = None
        self._has_started = False
        store.subscribe(self._catalogue_changed)
        store.subscribe_to_rejections(self._file_rejected)

    def status(self) -> AuditStatus:
        """For `/health`."""
        return self._queue.status()

    def last_line(self) -> AuditHead:
        """The last line that this gateway has written."""
        return self._queue.head

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record the catalogue in force, and write entries until cancelled. Started at once."""
        if self._store.current.digest is not None and not self._has_started:
            self._add("started", self._store.current, "in force", FILE_ACTOR, data=self._store.last_read)
        self._has_started = True  # `run` may be ended for a process that takes over, and started again if that fails
        await self._queue.run(task_status=task_status)

    def record_action(self, event: str, who: str, *, summary: str, outcome: str, **more: Any) -> None:
        """Add a line about what an operator did to a neuron or a model. Synchronous.

        Args:
            event: What it was: "drain", "undrain", "load", "unload".
            who: The operator.
            summary: What was asked for, in words.
            outcome: What came of it.
            more: Further fields of the line.
        """
        self._add(event, self._store.current, outcome, who, {**more, "summary": summary})

    def _catalogue_changed(self, old: Catalogue, new: Catalogue, changes: CatalogueDiff) -> None:
        self._last_rejection = None
        more: dict[str, Any] = {"summary": str(changes), "diff": changes.as_json()}
        if new.digest != old.digest:
            more = {"before": old.digest, **more, "plan": self._plan_of(old, new, changes)}
            outcome = "in force, except aliases that are warming" if changes.aliases_warming else "in force"
            self._add("applied", new, outcome, self._store.last_actor, more, data=self._store.last_read)
        elif changes:
            event, outcome = _swap_event(changes)
            self._add(event, new, outcome, GATEWAY_ACTOR, more)

    def _plan_of(self, old: Catalogue, new: Catalogue, changes: CatalogueDiff) -> Mapping[str, Any] | None:
        """The plan of a change; None if it has too many aliases or planning fails, so that the entry is not lost."""
        aliases = len(changes.aliases_changed) + len(changes.aliases_warming) + len(changes.aliases_added)
        if self._plan is None or aliases > PLANNED_ALIASES:
            return None
        try:
            return self._plan(old, new)
        except Exception:
            log.exception("plan_failed", generation=new.generation)
            return None

    def _file_rejected(self, faults: tuple[Fault, ...]) -> None:
        in_force, actor = self._store.current, self._store.last_actor
        if not faults:
            self._last_rejection = None
            self._add("recovered", in_force, "in force", actor, {"summary": "the file in force is back"})
            return
        digest = hashlib.sha256(self._store.last_read).hexdigest()
        faults_json = [fault.as_json() for fault in faults]
        rejection = f"{digest} {faults_json}"
        if rejection == self._last_rejection:
            return  # the same file with the same faults was read again
        self._last_rejection = rejection
        outcome = f"refused; generation {in_force.generation} stays in force"
        more = {"file": digest, "before": in_force.digest, "summary": str(faults[0]), "faults": faults_json}
        self._add("rejected", in_force, outcome, actor, more)

    def _add(
        self,
        event: str,
        catalogue: Catalogue,
        outcome: str,
        who: str,
        more: Mapping[str, Any] | None = None,
        *,
        data: bytes | None = None,
    ) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields: dict[str, Any] = {"time": now, "event": event, "generation": catalogue.generation}
        fields |= {"who": who, "file": catalogue.digest, **(more or {}), "outcome": outcome}
        self._queue.add(fields, data)


def _swap_event(changes: CatalogueDiff) -> tuple[str, str]:
    """Event and outcome of a change without a new file."""
    if changes.swaps_failed:
        return "swap_failed", "not moved"
    return ("warming", "warming again") if changes.aliases_warming else ("moved", "in force")
