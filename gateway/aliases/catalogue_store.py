"""The one door through which a new catalogue enters: file watch, SIGHUP and the admin API alike.

What a `models.toml` may say is `catalogue.load`'s business; who wants to hear of a new one subscribes.

    SIGHUP, admin ----------------------> reload --+
                                                   +--> read and parse (in a thread) --> settle: one assignment
    directory event, slow poll --> look (if news) --+

An alias whose new targets have to be warmed first stays where it is in that assignment, and `swaps.py` has it moved in
one of its own (`move`). A file that is empty, half-written, faulty, unreadable or gone leaves the last good catalogue
in force and is told in `last_error` until the file is good again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import structlog
import trio

# awatch would do, were it not for two things: it cannot say when it has begun to watch, and cancelling it waits for
# its thread. The class below it is documented for use: https://watchfiles.helpmanual.io/api/rust_backend/
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from catalogue.diff import CatalogueDiff, diff
from catalogue.load import parse, says_nothing
from catalogue.models import Catalogue, Fault, FaultyFile
from catalogue.warming import Readiness, given_up, hold_back, moved, tried_again
from gateway.config.settings import DEFAULT_MODELS_CONFIG

FILE_LIMIT_BYTES = 4 * 1024 * 1024  # a thousand profiles are 100 KB; beyond this it is some other file
POLL_S = 2.0
# Measured: with a 20 ms step a swap is in force 42 ms after the rename (worst of 100: 44), stopping takes 20 ms, and
# waiting costs 3 ms of CPU a second.
EVENT_STEP_MS = 20
EVENT_DEBOUNCE_MS = 50
# Some editors empty a file before they write it, or delete it before they put it back. A fault noticed by an event is
# believed only once it has lasted this long, so that a save does not ring an alarm.
HALF_WRITTEN_S = 0.25

Result: TypeAlias = Literal["applied", "unchanged", "rejected"]
Subscriber: TypeAlias = Callable[[Catalogue, Catalogue, CatalogueDiff], object]
RefusalSubscriber: TypeAlias = Callable[[tuple[Fault, ...]], object]
# What the file amounts to right now: a snapshot, or why not, or None if it is what has been accepted already.
_Found: TypeAlias = Catalogue | tuple[Fault, ...] | None

_log = structlog.get_logger("cortex.watcher")


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of looking at the file.

    `catalogue` is the one in force afterwards, whatever the result; its `warming` has the aliases that are not where
    the file wants them. `diff` is empty unless `applied`, `faults` unless `rejected`.
    """

    result: Result
    catalogue: Catalogue
    diff: CatalogueDiff = field(default_factory=CatalogueDiff)
    faults: tuple[Fault, ...] = ()


class CatalogueKeeper:
    """Holds the catalogue in force and lets in the next one.

    Args:
        configured: `settings.models_config`, or None to look in the default place and be content with nothing there.
        default: Where to look then.
        poll_s: How often to look at the file when no event says so.
        readiness: Tells which aliases of a new file have to be warmed first. Without it all move at once: then there
            must be nobody who would warm them.

    Attributes:
        current: The snapshot in force. A request reads it once and keeps what it got; it is only ever replaced whole.
        last_read: The file's bytes as last read. To a subscriber they are those of the file that it is told of.
        last_error: Why the file as it is now is not in force, or None if it is.
        reloads: How often what came of a look at the file; the initial load is not among them.
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
        self.last_error: tuple[Fault, ...] | None = None
        self.reloads: dict[Result, int] = {"applied": 0, "unchanged": 0, "rejected": 0}
        self._may_be_absent = configured is None
        self._poll_s = poll_s
        self._readiness = readiness
        self._subscribers: list[Subscriber] = []
        self._told_of_refusals: list[RefusalSubscriber] = []
        # Reading waits, so two reloads could overtake each other and the older bytes win. One at a time cannot.
        self._turn = trio.Lock()
        # Of its own: a file system that hangs must not use up the threads others need.
        self._threads = trio.CapacityLimiter(4)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Have `subscriber(old, new, diff)` called after every change of `current`, once that is done.

        That is: for an accepted file, for an alias that moves once it is warm, or that will not (`diff.swaps_failed`),
        or is tried again. Only the first two are new generations. It is called synchronously and may not block. If it
        raises, that is logged and changes nothing.
        """
        self._subscribers.append(subscriber)

    def subscribe_to_refusals(self, subscriber: RefusalSubscriber) -> None:
        """Have `subscriber(faults)` called, in the same way, for every look at a file that cannot be accepted.

        And without faults, once, when the file that is in force is back in its place.
        """
        self._told_of_refusals.append(subscriber)

    def load_initial(self) -> Catalogue:
        """The catalogue to start with; blocks on the file, so call it before serving.

        Raises:
            FaultyFile: It is configured but missing, or faulty. Starting without the pins, aliases and limits that
                an operator wrote down would be worse than not starting.
        """
        found = self._examine()
        if found is None:
            hint = "nothing is catalogued; set models_config, or create the file"
            found = Catalogue(
                path=_shown(self.path), warnings=(Fault(_shown(self.path), None, None, "not there", hint),)
            )
        elif not isinstance(found, Catalogue):
            raise FaultyFile(found)
        else:
            found = dataclasses.replace(found, generation=1)
        self.current = found
        _log_warnings(found)
        return found

    async def reload(self) -> ReloadResult:
        """Look at the file now, and put it in force if it is good and new.

        Safe to call at any time and from several tasks: each gets the result of a look that began after its call.
        Raises nothing about the file; that is in the result.
        """
        async with self._turn:
            return self._settle(await self._examine_in_thread())

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reload whenever the file's content changes. Runs until cancelled; ends within a second then.

        Started once changes are being noticed, and those since `load_initial` have been.
        """
        directory = _WatchedDirectories(self.path, self._threads)
        try:
            await directory.follow()
            doubtful_since = await self._look(math.inf)
            task_status.started()
            while True:
                happened = await directory.wait_for_event(
                    self._poll_s if doubtful_since == math.inf else HALF_WRITTEN_S
                )
                await directory.follow()
                doubtful_since = await self._look(doubtful_since, believe_faults=not happened)
        finally:
            directory.close()

    # Looking.

    async def _look(self, doubtful_since: float, *, believe_faults: bool = True) -> float:
        """Settle what the file amounts to, if that is news; but a fault, seen first by an event, only after a while.

        Returns:
            Since when (trio time) there has been a fault that was not yet believed; infinity if there is none.
        """
        async with self._turn:
            found = await self._examine_in_thread()
            if not self._is_news(found):
                return math.inf
            if isinstance(found, tuple) and not believe_faults:
                doubtful_since = min(doubtful_since, trio.current_time())
                if trio.current_time() - doubtful_since < HALF_WRITTEN_S:
                    return doubtful_since
            self._settle(found)
            return math.inf

    def _is_news(self, found: _Found) -> bool:
        if found is None:
            return self.last_error is not None
        return isinstance(found, Catalogue) or found != self.last_error

    async def _examine_in_thread(self) -> _Found:
        # Abandoned when cancelled: the thread only reads, and a hung mount must not hold up the process's end.
        return await trio.to_thread.run_sync(self._examine, abandon_on_cancel=True, limiter=self._threads)

    def _examine(self) -> _Found:
        """What the file amounts to; a new snapshot has no generation yet, for who knows what comes before it.

        In a thread, while an alias may move: only what a file's acceptance changes may be read of `current` here.
        """
        try:
            if self._may_be_absent and self.current.digest is None and _is_absent(self.path):
                return None
            data = self.last_read = _read(self.path)
            if hashlib.sha256(data).hexdigest() == self.current.digest:
                return None
            if says_nothing(data) and (self.current.models or self.current.aliases):
                hint = "to have no models on purpose, write `models = []`"
                return (Fault(_shown(self.path), None, None, "the file is empty", hint),)
            return parse(data, path=_shown(self.path), generation=0, loaded_at=time.time())
        except FaultyFile as error:
            return error.faults

    # Settling: synchronous, so that nobody sees half of it.

    def _settle(self, found: _Found) -> ReloadResult:
        if found is None:
            outcome = ReloadResult("unchanged", self.current)
            if self.last_error is not None:
                self._recover()
                self._tell_of_refusal(())
        elif isinstance(found, Catalogue):
            outcome = self.accept(found)
        else:
            outcome = self._reject(found)
        self.reloads[outcome.result] += 1
        return outcome

    def accept(self, read: Catalogue) -> ReloadResult:
        """Put in force what a file says, less the aliases that have to be warmed first. Gives it its generation."""
        new = dataclasses.replace(read, generation=self.current.generation + 1)
        if self._readiness is not None:
            new = hold_back(new, self.current, self._readiness)
        self._recover()
        changes = self._assign(new)
        _log_warnings(new)
        return ReloadResult("applied", new, changes)

    def _reject(self, faults: tuple[Fault, ...]) -> ReloadResult:
        self.last_error = faults
        told = [
            {"line": fault.line, "key": fault.key, "message": fault.message, "hint": fault.hint} for fault in faults
        ]
        _log.error(
            "catalogue_rejected", path=_shown(self.path), generation_in_force=self.current.generation, faults=told
        )
        self._tell_of_refusal(faults)
        return ReloadResult("rejected", self.current, faults=faults)

    def _tell_of_refusal(self, faults: tuple[Fault, ...]) -> None:
        for subscriber in self._told_of_refusals:
            _tell(subscriber, faults)

    def _recover(self) -> None:
        if self.last_error is not None:
            self.last_error = None
            _log.info("catalogue_recovered", path=_shown(self.path), generation=self.current.generation)

    def _assign(self, new: Catalogue) -> CatalogueDiff:
        """The one assignment; then everybody is told."""
        old, self.current = self.current, new
        changes = diff(old, new)
        if new.generation != old.generation:
            _log.info("catalogue_applied", path=_shown(self.path), generation=new.generation, diff=str(changes))
        for subscriber in self._subscribers:
            _tell(subscriber, old, new, changes)
        return changes

    # Aliases that were held back: synchronous as well. Each raises KeyError if the alias is not among them.

    def move(self, alias: str) -> Catalogue:
        """Put an alias where its file wants it: what it is to stand for can serve."""
        self._assign(moved(self.current, alias))
        return self.current

    def give_up(self, alias: str, reason: str) -> None:
        """Leave an alias where it is, and say why, until its file changes or it is tried again."""
        self._assign(given_up(self.current, alias, reason))

    def try_again(self, alias: str) -> None:
        """Have an alias warmed that was given up."""
        self._assign(tried_again(self.current, alias))


def _tell(subscriber: Callable[..., object], *news: object) -> None:
    """Whatever a subscriber makes of it, it has happened."""
    try:
        subscriber(*news)
    except Exception:  # noqa: BLE001 - it is in force, or is not, regardless
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


def _shown(path: Path) -> str:
    """A path for people, logs and JSON: its bytes need not be UTF-8, but what we say is."""
    return os.fsencode(path).decode("utf-8", "replace")


def _is_absent(path: Path) -> bool:
    """Whether nothing has that name; what cannot be looked at is not absent."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _read(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        FaultyFile: With the one reason why not.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for somebody to write into it
            raise FaultyFile((Fault(_shown(path), None, None, "is not a regular file"),))
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        hint = "the user that cortex runs as has to be able to read it" if isinstance(error, PermissionError) else None
        raise FaultyFile((Fault(_shown(path), None, None, f"cannot be read: {reason}", hint),)) from error
    if len(data) > FILE_LIMIT_BYTES:
        message = f"is larger than {FILE_LIMIT_BYTES // 1024**2} MiB"
        raise FaultyFile(
            (Fault(_shown(path), None, None, message, "a thousand models take 100 KB: is it the right file?"),)
        )
    return data


# Events.


class _WatchedDirectories:
    """Tells when something happens beside a file, however it is replaced.

    Directories, because editors replace files and ConfigMaps swap a symlink beside them: a watch on the file itself
    would go with the old one. Two of them if the file is a symlink out of its own. Any event counts, whatever its
    name: comparing content is cheap and knows best.
    """

    def __init__(self, path: Path, threads: trio.CapacityLimiter) -> None:
        self._path = path
        self._threads = threads
        self._watched: dict[str, tuple[int, int]] = {}
        self._events: RustNotify | None = None
        self._complained = False

    async def follow(self) -> None:
        """Watch the directories the path leads to now, if they are not those watched already."""
        directories = await trio.to_thread.run_sync(
            _directories_of, self._path, abandon_on_cancel=True, limiter=self._threads
        )
        if directories == self._watched and (self._events is not None or not directories):
            return
        self.close()
        self._watched = directories
        if not directories:
            return
        try:
            self._events = RustNotify(list(directories), False, False, 0, False, True)
        except (OSError, UnicodeError, WatchfilesRustInternalError) as error:  # a directory's name may be no UTF-8
            self._complain(error)

    async def wait_for_event(self, at_most_s: float) -> bool:
        """True once something happened; False if nothing did for `at_most_s`, or events are not to be had."""
        if self._events is None:
            await trio.sleep(at_most_s)
            return False
        try:
            return await self._wait(self._events, round(at_most_s * 1000))
        except (OSError, WatchfilesRustInternalError) as error:
            self._complain(error)
            self.close()
            return False

    async def _wait(self, events: RustNotify, at_most_ms: int) -> bool:
        stop = threading.Event()  # looked at by the thread every step; without it a cancellation waits for `at_most_ms`
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_when_cancelled, stop)
            happened = await trio.to_thread.run_sync(
                events.watch, EVENT_DEBOUNCE_MS, EVENT_STEP_MS, at_most_ms, stop, limiter=self._threads
            )
            nursery.cancel_scope.cancel()
        return happened != "timeout"

    def close(self) -> None:
        """Stop watching; `follow` starts again."""
        if self._events is not None:
            self._events.close()
        self._events = None

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("catalogue_events_unavailable", path=_shown(self._path), reason=str(error), fallback="polling")


def _directories_of(path: Path) -> dict[str, tuple[int, int]]:
    """Where the path stands and where the file behind it stands, with what tells a directory from its replacement."""
    directories = {}
    for directory in (path.parent, Path(os.path.realpath(path)).parent):
        try:
            status = directory.stat()
        except OSError:
            continue
        directories[str(directory)] = (status.st_dev, status.st_ino)
    return directories


async def _set_when_cancelled(event: threading.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()
