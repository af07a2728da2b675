"""What the gateway writes into the audit trail, and when: every catalogue that came into force or was refused.

The keeper tells what happened, synchronously; a task of our own writes it down, in a thread, later. So no request and
no swap ever waits for a disk, and a full one costs neither: lines wait in memory, up to a limit, until there is room.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypedDict

import msgspec
import structlog
import trio

from catalogue.diff import CatalogueDiff, diff
from catalogue.load import parse
from catalogue.models import Catalogue, Fault, FaultyFile
from gateway.aliases.files.audit_log import Line
from gateway.aliases.files.paths import Records

__all__ = ["AuditStatus", "Auditor", "acting", "by_file", "now_text"]

RETRY_S = 10.0  # after a line could not be written
PENDING_LIMIT = 1000  # lines in memory while none can be written; then the oldest go, and are counted
PENDING_LIMIT_BYTES = 32 * 1024 * 1024  # and of the files they speak of
LINE_LIMIT_BYTES = 256 * 1024  # a line that would be longer goes without diff and plan; the history has both files
SUMMARY_LIMIT = 2000
PLANNED_ALIASES = 20  # beyond these no plan is made: it is made in the loop, and a hundred aliases measured 60 ms
LAST_WORDS_S = 2.0  # for the lines that are left when the process ends

ENDED_LOOK_S = 0.01
BY_FILE = frozenset({"started", "applied"})  # the events that say which file came into force
ANNOUNCED = BY_FILE | {"recovered"}  # and those that somebody may have announced

log = structlog.get_logger("cortex.audit")

_who: ContextVar[str] = ContextVar("who", default="file")


@contextmanager
def acting(who: str) -> Iterator[None]:
    """Whoever makes the keeper look at its file in here is named as the cause of what it finds."""
    token = _who.set(who)
    try:
        yield
    finally:
        _who.reset(token)


class Keeper(Protocol):
    """Whoever holds the catalogue in force."""

    last_read: bytes

    @property
    def current(self) -> Catalogue:
        """The snapshot now."""
        ...

    def subscribe(self, subscriber: Callable[[Catalogue, Catalogue, CatalogueDiff], object]) -> None:
        """Have it told of every change."""
        ...

    def subscribe_to_refusals(self, subscriber: Callable[[tuple[Fault, ...]], object]) -> None:
        """And of every file that was not accepted."""
        ...


class AuditStatus(TypedDict):
    """How the trail is: the number of the last line written, how many wait, how many were lost, and why they wait."""

    path: str
    last: int
    pending: int
    lost: int
    error: str | None


@dataclass(slots=True)
class _Entry:
    """A line to be, and the file that it speaks of, if that is to be kept.

    Written by the one thread that takes it. Who waits for a thread may be cancelled before it has so much as begun, and
    nobody can tell: so another is sent, and the second to come finds nothing to take.
    """

    said: dict[str, Any]
    data: bytes | None = None
    ended: bool = False  # set by the thread
    _there: list[None] = field(default_factory=lambda: [None])

    def take(self) -> bool:
        """Whether it is the caller's to write; of any number of threads, one's. (`list.pop` is atomic.)"""
        try:
            self._there.pop()
        except IndexError:
            return False
        return True

    def untake(self) -> None:
        """It could not be written, and is to be tried again."""
        self.ended = False
        self._there = [None]


class Auditor:
    """Writes the trail of one gateway.

    Args:
        records: Where to.
        keeper: Who tells.
        plan: What a change will take of the fleet, as JSON would have it; None if nobody plans. Called synchronously.
    """

    def __init__(
        self,
        records: Records,
        keeper: Keeper,
        *,
        plan: Callable[[Catalogue, Catalogue], Mapping[str, Any]] | None = None,
    ) -> None:
        self._records = records
        self._keeper = keeper
        self._plan = plan
        self._pending: deque[_Entry] = deque()
        self._news = trio.Event()
        self._written = 0
        self._lost = 0
        self._error: str | None = None
        self._refused: str | None = None
        keeper.subscribe(self._changed)
        keeper.subscribe_to_refusals(self._rejected)

    def status(self) -> AuditStatus:
        """For `/health`."""
        path = str(self._records.trail.path)
        return AuditStatus(
            path=path, last=self._written, pending=len(self._pending), lost=self._lost, error=self._error
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what there is to be written, until cancelled; then what is left, if that takes no time.

        Started at once: a trail that cannot be written keeps nobody from serving.
        """
        if self._keeper.current.digest is not None:
            self._note("started", self._keeper.current, "in force", data=self._keeper.last_read)
        task_status.started()
        try:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                while not await self._write_pending():  # noqa: ASYNC110 - a disk says nothing when it has room again
                    await trio.sleep(RETRY_S)
        finally:
            with trio.move_on_after(LAST_WORDS_S, shield=True):
                await self._write_pending()

    # Hearing: synchronous, in the keeper's own step.

    def _changed(self, old: Catalogue, new: Catalogue, changes: CatalogueDiff) -> None:
        self._refused = None
        if new.digest != old.digest:
            plan = self._planned(old, new, changes)
            outcome = "in force, but for aliases that are warming" if changes.aliases_warming else "in force"
            more = {"before": old.digest, "summary": str(changes), "diff": changes.as_json(), "plan": plan}
            self._note("applied", new, outcome, more, data=self._keeper.last_read)
        elif changes:
            event, outcome = _of_a_swap(changes)
            self._note(event, new, outcome, {"summary": str(changes), "diff": changes.as_json()}, who="cortex")

    def _planned(self, old: Catalogue, new: Catalogue, changes: CatalogueDiff) -> Mapping[str, Any] | None:
        """What the change takes; a plan that goes wrong must not cost the trail its line."""
        aliases = len(changes.aliases_changed) + len(changes.aliases_warming) + len(changes.aliases_added)
        if self._plan is None or aliases > PLANNED_ALIASES:
            return None
        try:
            return self._plan(old, new)
        except Exception:
            log.exception("plan_failed", generation=new.generation)
            return None

    def _rejected(self, faults: tuple[Fault, ...]) -> None:
        if not faults:
            self._refused = None
            self._note("recovered", self._keeper.current, "in force", {"summary": "the file in force is back"})
            return
        digest = hashlib.sha256(self._keeper.last_read).hexdigest()
        told = [asdict(fault) for fault in faults]
        key = f"{digest} {told}"
        if key == self._refused:
            return  # the same file for the same reasons: somebody asked again
        self._refused = key
        in_force = self._keeper.current
        more = {"file": digest, "before": in_force.digest, "summary": str(faults[0]), "faults": told}
        self._note("rejected", in_force, f"refused; generation {in_force.generation} stays in force", more)

    def _note(
        self,
        event: str,
        catalogue: Catalogue,
        outcome: str,
        more: Mapping[str, Any] | None = None,
        *,
        who: str | None = None,
        data: bytes | None = None,
    ) -> None:
        said: dict[str, Any] = {"time": now_text(), "event": event, "generation": catalogue.generation}
        said |= {"who": who or _who.get(), "file": catalogue.digest, **(more or {}), "outcome": outcome}
        if sum(len(entry.data) for entry in self._pending if entry.data) > PENDING_LIMIT_BYTES:
            data = None  # there is a line about it, but no way back to it
        self._pending.append(_Entry(said, data))
        if len(self._pending) > PENDING_LIMIT:
            self._pending.popleft()
            self._lost += 1
        self._news.set()

    # Writing: in a thread.

    async def _write_pending(self) -> bool:
        """Write all that waits, the oldest first; False if that did not succeed."""
        while self._pending:
            entry, lost = self._pending[0], self._lost
            try:
                line = await trio.to_thread.run_sync(self._write, entry, lost, abandon_on_cancel=True)
            except OSError as error:
                entry.untake()
                self._complain(error)
                return False
            if line is None:  # whoever began it was cancelled, its thread was not
                await _until_ended(entry)
                self._pending.popleft()
            else:
                self._settle(entry, line, lost)
        return True

    def _settle(self, entry: _Entry, line: Mapping[str, Any], lost: int) -> None:
        self._written = line["seq"]
        self._lost -= lost
        if self._pending and self._pending[0] is entry:
            self._pending.popleft()
        else:
            self._lost -= 1  # it had to make way while it was written: counted as lost, and was not
        if self._error is not None:
            self._error = None
            log.info("audit_recovered", path=str(self._records.trail.path), last=self._written)

    def _complain(self, error: OSError) -> None:
        reason = f"{error.filename or self._records.trail.path}: {error.strerror or error}"
        if reason != self._error:
            self._error = reason
            log.error("audit_failed", reason=reason, pending=len(self._pending), retry_s=RETRY_S)

    def _write(self, entry: _Entry, lost: int) -> dict[str, Any] | None:
        """One line, and the file it speaks of; None if another thread has it in hand. Raises OSError."""
        if not entry.take():
            return None
        try:
            said = dict(entry.said)
            if entry.data is not None and (why_not := self._keep(entry.data)) is not None:
                said |= {"not_kept": why_not}
            if said["event"] == "started":
                said |= self._since_last_time(said["file"])
            if lost:
                said |= {"lost": lost}
            return self._append(said)
        finally:
            entry.ended = True

    def _append(self, said: dict[str, Any]) -> dict[str, Any]:
        """With the name of whoever announced the file."""
        history, digest = self._records.history, said["file"]
        announced = history.announced(digest) if said["event"] in ANNOUNCED else None
        if announced is None:
            return self._records.trail.append(_shortened(said))
        line = self._records.trail.append(_shortened(said | {"who": announced.who, "command": announced.command}))
        history.taken_up(digest)
        return line

    def _keep(self, data: bytes) -> str | None:
        """Why not, or None: a file that cannot be kept is no reason to keep silent about it."""
        try:
            self._records.history.keep(data)
        except OSError as error:
            log.exception("history_failed", path=str(self._records.history.folder))
            return str(error)
        return None

    def _since_last_time(self, digest: str) -> dict[str, Any]:
        """What became of the file while no gateway was running: somebody may have edited it."""
        before = next((line.said["file"] for line in by_file(self._records.trail.newest_first())), None)
        if before in {None, digest}:
            return {"who": "cortex", "summary": "a gateway was started"}
        told = {"before": before, "summary": "a gateway was started; the file was edited while none was running"}
        old, new = self._records.history.get(before), self._records.history.get(digest)
        if old is None or new is None:
            return told
        with suppress(FaultyFile):
            changes = diff(*(parse(data, path="models.toml", generation=0, loaded_at=0) for data in (old, new)))
            return told | {"summary": f"{told['summary']}: {changes}", "diff": changes.as_json()}
        return told


async def _until_ended(entry: _Entry) -> None:
    while not entry.ended:  # noqa: ASYNC110 - it is a thread that nobody waits for any more
        await trio.sleep(ENDED_LOOK_S)


def by_file(lines: Iterable[Line]) -> Iterator[Line]:
    """Those lines that say which file came into force."""
    return (line for line in lines if line.said.get("event") in BY_FILE)


def now_text() -> str:
    """The time, as the trail has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _of_a_swap(changes: CatalogueDiff) -> tuple[str, str]:
    """Event and outcome of a change that no file made."""
    if changes.swaps_failed:
        return "swap_failed", "not moved"
    return ("warming", "warming again") if changes.aliases_warming else ("moved", "in force")


def _shortened(said: dict[str, Any]) -> dict[str, Any]:
    """As it is, or, if it is of a size that nobody reads, without what can be had from the history."""
    if len(msgspec.json.encode(said)) <= LINE_LIMIT_BYTES:
        return said
    short = {key: value for key, value in said.items() if key not in {"diff", "plan", "faults"}}
    return short | {"summary": str(said.get("summary"))[:SUMMARY_LIMIT], "shortened": True}
