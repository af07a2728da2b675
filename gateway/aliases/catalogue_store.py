"""The catalogue in force, its generations, and who is notified of a change.

All changes go through here: the file as `gateway/files/file_reload.py` reads it, and aliases that move once they are
warm. A good file comes into force by one assignment.

An alias whose new targets must be warmed first keeps its old targets in that assignment; `warm_swap.py` has it moved in
an assignment of its own (`move`). If the file is empty, half-written, faulty, unreadable or missing, the last good
catalogue stays in force, and `last_error` says why until the file is good again. What a `models.toml` may contain is
`catalogue.load`'s business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

import structlog
import trio

from catalogue.diff import CatalogueDiff, diff
from catalogue.load import parse
from catalogue.models import Catalogue, Target
from catalogue.toml.faults import Fault, FaultyFile
from catalogue.toml.parse import is_blank
from catalogue.warming import Readiness, given_up, hold_back, moved, tried_again
from gateway.config.settings import DEFAULT_MODELS_CONFIG
from gateway.files.config_file import fault_in, is_absent, printable, read_config_file
from gateway.files.file_reload import FILE_ACTOR, POLL_S, FileReload, Found

__all__ = ["FILE_ACTOR", "CatalogueStore", "RejectionSubscriber", "ReloadResult", "Subscriber"]

ADOPT_DEADLINE_S = 10.0  # the process that is replaced waits with its requests being served

ResultName: TypeAlias = Literal["applied", "unchanged", "rejected"]
Subscriber: TypeAlias = Callable[[Catalogue, Catalogue, CatalogueDiff], object]
RejectionSubscriber: TypeAlias = Callable[[tuple[Fault, ...]], object]
_Found: TypeAlias = Found[Catalogue]
_Saved = TypeVar("_Saved")

_log = structlog.get_logger("cortex.watcher")


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The result of reading the file.

    `catalogue` is the one in force afterwards, whatever the result; its `warming` lists the aliases that are not yet
    where the file puts them. `diff` is empty unless `applied`, `faults` unless `rejected`.
    """

    result: ResultName
    catalogue: Catalogue
    diff: CatalogueDiff = field(default_factory=CatalogueDiff)
    faults: tuple[Fault, ...] = ()


class CatalogueStore:
    """Holds the catalogue in force, and replaces it.

    Args:
        configured: `settings.models_config`, or None for the default path, where the file may be absent.
        default: The default path.
        poll_s: How often the file is read without an event.
        readiness: Says which aliases of a new file must be warmed first. Without it every alias moves at once.

    Attributes:
        current: The snapshot in force. A request reads it once and keeps it; it is only ever replaced whole.
        last_read: The file's bytes as last read. While subscribers run, they are those of the file in question.
        content: The bytes of the file in force; empty if there is none.
        last_actor: Who caused the last read. While subscribers run, who caused the change in question.
        last_error: Why the file as it is now is not in force, or None if it is.
        reloads: How often each result occurred; the initial load does not count.
    """

    def __init__(
        self,
        configured: Path | None,
        *,
        default: Path = DEFAULT_MODELS_CONFIG,
        poll_s: float = POLL_S,
        readiness: Readiness | None = None,
    ) -> None:
        self.path = configured or default
        self.current = Catalogue()
        self.last_read = b""
        self.content = b""
        self.last_actor = FILE_ACTOR
        self.last_error: tuple[Fault, ...] | None = None
        self.reloads: dict[ResultName, int] = {"applied": 0, "unchanged": 0, "rejected": 0}
        self._may_be_absent = configured is None
        self._readiness = readiness
        self._subscribers: list[Subscriber] = []
        self._rejection_subscribers: list[RejectionSubscriber] = []
        self._file = FileReload(
            self.path, self._examine, self._apply, last_error=lambda: self.last_error, poll_s=poll_s
        )

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(old, new, diff)` after every change of `current`.

        Changes are: an accepted file, an alias that moves once it is warm, an alias that cannot be warmed
        (`diff.swaps_failed`) or is tried again. Only the first two are new generations. The call is synchronous and
        must not block. An exception is logged and changes nothing.
        """
        self._subscribers.append(subscriber)

    def subscribe_to_rejections(self, subscriber: RejectionSubscriber) -> None:
        """Call `subscriber(faults)` for every read of a file that is rejected, under the same rules.

        It is called with no faults once the file that is in force is back.
        """
        self._rejection_subscribers.append(subscriber)

    def load_initial(self) -> Catalogue:
        """Load the first catalogue. Blocks on the file, so call it before serving.

        Raises:
            FaultyFile: The file is configured but missing, or faulty. Starting without the pins, aliases and limits
                that an operator configured would be worse than not starting.
        """
        found = self._examine()
        if found is None:
            hint = "no models are catalogued; set models_config, or create the file"
            found = Catalogue(path=printable(self.path), warnings=(fault_in(self.path, "does not exist", hint),))
        elif not isinstance(found, Catalogue):
            raise FaultyFile(found)
        else:
            found = dataclasses.replace(found, generation=1)
            self.content = self.last_read
        self.current = found
        _log_warnings(found)
        return found

    async def adopt(
        self, generation: int, digest: str | None, targets_in_force: Mapping[str, Sequence[tuple[str, float]]]
    ) -> None:
        """Go on where another process has ended; call it before `watch`.

        Args:
            generation: The other's last; this one's if the file is still the one with this `digest`, else the next.
            digest: Of the file that the other had in force.
            targets_in_force: Targets, as model and weight, of the aliases that it was still warming. They keep these
                until their new targets are warm.
        """
        found: _Found = None
        with trio.move_on_after(ADOPT_DEADLINE_S):  # a file that cannot be read now is reported by `watch`
            found = await trio.to_thread.run_sync(self._examine, abandon_on_cancel=True)
        if isinstance(found, Catalogue):
            self.content = self.last_read
            self.current = found
        is_same = self.current.digest == digest
        self.current = dataclasses.replace(self.current, generation=generation if is_same else generation + 1)
        aliases = dict(self.current.aliases)
        for name in aliases.keys() & targets_in_force.keys():
            targets = tuple(Target(model, weight) for model, weight in targets_in_force[name])
            aliases[name] = dataclasses.replace(aliases[name], targets=targets)
        before = dataclasses.replace(self.current, aliases=MappingProxyType(aliases))
        if self._readiness is not None and (held := hold_back(self.current, before, self._readiness)).warming:
            self._assign(held)

    async def reload(self, *, actor: str = FILE_ACTOR) -> ReloadResult:
        """Read the file now, and put it in force if it is good and new.

        May be called at any time and by several tasks: each gets the result of a read that began after its call.
        Raises nothing about the file; the result has its faults.
        """
        return await self._file.reload(actor)

    async def write(self, save: Callable[[], Awaitable[_Saved]], *, actor: str) -> tuple[_Saved, ReloadResult]:
        """Let `save` write the file, then reload it, with no other read in between. Raises TimeoutError."""
        return await self._file.write(save, actor)

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reload whenever the file's content changes. Runs until cancelled, and then ends within a second.

        Started once it notices changes and has read the file once, so no change since `load_initial` is missed.
        """
        await self._file.watch(task_status=task_status)

    # Reading...

    def _examine(self) -> _Found:
        """Read and parse the file. A new snapshot has no generation yet: an alias may move before it is applied.

        Runs in a thread, while an alias may move: of `current`, read only what an accepted file alone changes.
        """
        try:
            if self._may_be_absent and self.current.digest is None and is_absent(self.path):
                return None
            data = self.last_read = read_config_file(self.path)
            if hashlib.sha256(data).hexdigest() == self.current.digest:
                return None
            if is_blank(data) and (self.current.models or self.current.aliases):
                return (fault_in(self.path, "the file is empty", "to have no models on purpose, write `models = []`"),)
            return parse(data, path=printable(self.path), generation=0, loaded_at=time.time())
        except FaultyFile as error:
            return error.faults

    # Applying: synchronous, so no other task sees an intermediate state...

    def _apply(self, found: _Found, actor: str) -> ReloadResult:
        self.last_actor = actor
        if found is None:
            outcome = ReloadResult("unchanged", self.current)
            if self.last_error is not None:
                self._clear_error()
                self._notify_of_rejection(())
        elif isinstance(found, Catalogue):
            self.content = self.last_read
            outcome = self.accept(found)
        else:
            outcome = self._reject(found)
        self.reloads[outcome.result] += 1
        return outcome

    def accept(self, read: Catalogue) -> ReloadResult:
        """Put a file's catalogue in force as the next generation; aliases that must be warmed keep their targets."""
        new = dataclasses.replace(read, generation=self.current.generation + 1)
        if self._readiness is not None:
            new = hold_back(new, self.current, self._readiness)
        self._clear_error()
        changes = self._assign(new)
        _log_warnings(new)
        return ReloadResult("applied", new, changes)

    def _reject(self, faults: tuple[Fault, ...]) -> ReloadResult:
        self.last_error = faults
        _log.error(
            "catalogue_rejected",
            path=printable(self.path),
            generation_in_force=self.current.generation,
            faults=[fault.as_json(with_path=False) for fault in faults],
        )
        self._notify_of_rejection(faults)
        return ReloadResult("rejected", self.current, faults=faults)

    def _notify_of_rejection(self, faults: tuple[Fault, ...]) -> None:
        for subscriber in self._rejection_subscribers:
            _notify(subscriber, faults)

    def _clear_error(self) -> None:
        if self.last_error is not None:
            self.last_error = None
            _log.info("catalogue_recovered", path=printable(self.path), generation=self.current.generation)

    def _assign(self, new: Catalogue) -> CatalogueDiff:
        """Replace the catalogue in force, then notify the subscribers."""
        old, self.current = self.current, new
        changes = diff(old, new)
        if new.generation != old.generation:
            _log.info("catalogue_applied", path=printable(self.path), generation=new.generation, diff=str(changes))
        for subscriber in self._subscribers:
            _notify(subscriber, old, new, changes)
        return changes

    # Aliases that are warming. Synchronous too. Each raises KeyError if the alias is not warming...

    def move(self, alias: str) -> Catalogue:
        """Move an alias to the targets in its file, which can serve now: a new generation."""
        self._assign(moved(self.current, alias))
        return self.current

    def give_up(self, alias: str, reason: str) -> None:
        """Leave an alias where it is, with the reason, until its file changes or `try_again`."""
        self._assign(given_up(self.current, alias, reason))

    def try_again(self, alias: str) -> None:
        """Make a given-up alias warming again."""
        self._assign(tried_again(self.current, alias))


def _notify(subscriber: Callable[..., object], *arguments: object) -> None:
    """Call a subscriber. Its exception is logged: the change is in force, and the other subscribers must run."""
    try:
        subscriber(*arguments)
    except Exception:  # noqa: BLE001 - as the docstring says
        _log.exception("catalogue_subscriber_failed", subscriber=repr(subscriber))


def _log_warnings(catalogue: Catalogue) -> None:
    for warning in catalogue.warnings:
        _log.warning(
            "catalogue_warning",
            path=warning.path,
            line=warning.line,
            key=warning.key,
            message=warning.message,
            hint=warning.hint,
        )
