"""Edits of `models.toml` over the network: the same functions as a shell uses, in threads, each followed by a reload.

An edit names the file that it is based on by its hash (`If-Match`). The hash must be that of the file on disk. A client
has it from the file in force, so an edit of a file that was changed, deleted or broken meanwhile is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import trio

from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.nearest import did_you_mean
from catalogue.toml.faults import FaultyFile
from gateway import errors
from gateway.aliases.catalogue_store import CatalogueStore, ReloadResult
from gateway.aliases.files import locked_edit, rollback, rollout_state, start_rollout, toml_edit, versions
from gateway.aliases.files.audit_log import AuditHead, Verification
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.locked_edit import FileEdit, NotInForce
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, RolloutAlreadyRunning
from gateway.aliases.files.start_rollout import CannotStartRollout, RolloutPlan
from gateway.aliases.files.toml_edit import CannotEdit
from gateway.aliases.files.versions import Version, VersionNotFound
from gateway.files.atomic_write import CannotSave, ChangedUnderneath
from gateway.files.config_file import read_config_file

__all__ = ["Author", "CatalogueEdits", "error_responses"]

ABORT_ATTEMPTS = 5  # each fails if a rollout step is taken at the same moment
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes an edit, and the command that would make it again; for the audit log."""

    who: str
    command: str


class CatalogueEdits:
    """The edits of one gateway. Every method raises a GatewayError if it changes nothing.

    Args:
        files: The file and its records. `audit_log` is one of them.
        store: Has the catalogue in force; it reads the file after each edit.
        known_models: The models that the catalogue or a neuron has.
        last_audit_line: The last line of the audit log that this gateway has written.
    """

    def __init__(
        self,
        files: CatalogueFiles,
        store: CatalogueStore,
        *,
        known_models: Callable[[], Iterable[str]],
        last_audit_line: Callable[[], AuditHead] = AuditHead,
    ) -> None:
        self._last_audit_line = last_audit_line
        self._files = files
        self.audit_log = files.audit_log
        self._store = store
        self._known_models = known_models
        self._threads = trio.CapacityLimiter(4)  # not Trio's own: a file system that hangs must not take all threads

    # Reading ..........................................................................................................

    async def read_disk(self) -> bytes:
        """The file on disk."""
        return await self._in_thread(lambda: read_config_file(self._files.models_path))

    async def versions(self, alias: str | None, limit: int) -> list[Version]:
        """The newest versions first; of one alias, those that changed it."""
        return await self._in_thread(lambda: list(islice(versions.list_versions(self._files, alias), limit)))

    async def audit_lines(self, limit: int) -> list[Mapping[str, Any]]:
        """The newest lines, oldest first."""
        lines = await self._in_thread(lambda: list(islice(self._files.audit_log.newest_first(), limit)))
        return [line.fields for line in reversed(lines)]

    async def verify_audit_log(self) -> Verification:
        """Whether the audit log is intact."""
        known = self._last_audit_line()
        return await self._in_thread(lambda: self._files.audit_log.verify(known=known))

    async def rollouts(self) -> dict[str, Rollout]:
        """The last rollout of each alias, running or ended."""
        return await self._in_thread(lambda: rollout_state.read(self._files))

    # Editing ..........................................................................................................

    async def put_catalogue(self, data: bytes, if_match: str, author: Author) -> tuple[FileEdit, ReloadResult]:
        """Replace the whole file."""
        return await self._edit(lambda _: data, if_match, author)

    async def put_alias(
        self, name: str, keys: Mapping[str, Any], if_match: str, author: Author, *, force: bool
    ) -> tuple[FileEdit, ReloadResult]:
        """Replace or add one alias; refuses targets that are unknown, unless `force`."""
        known = [] if force else list(self._known_models())

        def edit(data: bytes) -> bytes:
            edited = toml_edit.put_alias(data, name, keys)
            alias = self._parse(edited).aliases[name]
            if not force:
                for target in alias.targets:
                    _require_known(target.model, known)
            return edited

        return await self._edit(edit, if_match, author)

    async def edited_alias(self, name: str, keys: Mapping[str, Any]) -> Catalogue:
        """The catalogue as it would be if this alias replaced that in the file in force. Changes nothing."""
        content, in_force = self._store.content, self._store.current

        def edit() -> Catalogue:
            edited = toml_edit.put_alias(content, name, keys)
            path = str(self._files.models_path)
            return parse(edited, path=path, generation=in_force.generation + 1, loaded_at=time.time())

        return await self._in_thread(edit)

    async def rolled_back(self, alias: str | None, version: str | None) -> Catalogue:
        """The catalogue as `roll_back` would make it. Changes nothing."""
        in_force, content = self._store.current, self._store.content

        def restored() -> Catalogue:
            kept = None if in_force.digest is None else content
            data = rollback.rolled_back(self._files, alias, version, in_force=in_force.digest, in_force_content=kept)
            path = str(self._files.models_path)
            return parse(data, path=path, generation=in_force.generation + 1, loaded_at=time.time())

        return await self._in_thread(restored)

    async def remove_alias(self, name: str, if_match: str, author: Author) -> tuple[FileEdit, ReloadResult]:
        """Remove one alias."""
        if name not in self._store.current.aliases:
            raise errors.NotFound(f"alias '{name}' does not exist{did_you_mean(name, self._store.current.aliases)}")
        return await self._edit(lambda data: toml_edit.remove_alias(data, name), if_match, author)

    async def roll_back(
        self, alias: str | None, version: str | None, author: Author, *, if_match: str = "*"
    ) -> tuple[FileEdit, ReloadResult]:
        """Restore the file or one alias, whatever is on disk; refuses if another file is in force than `if_match`."""

        def restore() -> FileEdit:  # no other file comes into force meanwhile
            in_force, content = self._store.current.digest, self._store.content
            if if_match not in {"*", in_force}:
                raise errors.PreconditionFailed(
                    f"another file is in force: its hash is {in_force}; plan the rollback again"
                )
            return rollback.roll_back(
                self._files,
                alias,
                version,
                in_force=in_force,
                in_force_content=None if in_force is None else content,
                who=author.who,
                command=author.command,
            )

        return await self._write(restore, author)

    async def _edit(
        self, edit: Callable[[bytes], bytes], if_match: str, author: Author
    ) -> tuple[FileEdit, ReloadResult]:
        def check_before(data: bytes) -> None:
            digest = digest_of(data)
            if if_match not in {"*", digest}:
                raise errors.PreconditionFailed(
                    f"the file on disk differs from the one that If-Match names: its hash is {digest}; "
                    "GET /admin/catalogue?source=disk has it"
                )

        def save() -> FileEdit:
            return locked_edit.edit_models(
                self._files, edit, who=author.who, command=author.command, check_before=check_before
            )

        return await self._write(save, author)

    async def _write(self, save: Callable[[], FileEdit], author: Author) -> tuple[FileEdit, ReloadResult]:
        with error_responses():
            return await self._store.write(lambda: self._in_thread(save), actor=author.who)

    # Rollouts .........................................................................................................

    async def start_rollout(self, plan: RolloutPlan, author: Author, *, force: bool, from_disk: bool) -> Rollout:
        """Store a rollout, which the rollout controller begins."""
        catalogue, known = self._store.current, [] if force else list(self._known_models())
        if plan.alias not in catalogue.aliases:
            raise errors.NotFound(f"alias '{plan.alias}' does not exist{did_you_mean(plan.alias, catalogue.aliases)}")
        if not force and plan.target not in catalogue.aliases:  # an alias of an alias has an error of its own
            _require_known(plan.target, known)

        def start() -> Rollout:
            data = read_config_file(self._files.models_path)
            if not from_disk:
                locked_edit.require_in_force(self._files, data, catalogue.digest)
            return start_rollout.start_rollout(self._files, plan, data, who=author.who)

        return await self._in_thread(start)

    async def abort_rollout(self, alias: str, author: Author) -> Rollout:
        """End a running rollout and restore the alias."""
        for _ in range(ABORT_ATTEMPTS):
            rollout = (await self.rollouts()).get(alias)
            if rollout is None or rollout.state != "running":
                raise errors.NotFound(f"{alias} has no running rollout")
            running = rollout

            def end(running: Rollout = running) -> Rollout:
                reason = f"aborted by {author.who}"
                return rollout_state.end(self._files, running, "aborted", reason, time.time())

            ended = await self._in_thread(end)
            if ended.state != "running":
                await self._store.reload(actor=author.who)
                return ended
        raise errors.Conflict(f"the rollout of {alias} kept changing while it was to be ended; try again")

    async def acknowledge_rollback(self, alias: str) -> Rollout:
        """Note that an operator knows of the alias's rollback."""
        acknowledged = await self._in_thread(lambda: rollout_state.acknowledge(self._files, alias, time.time()))
        if acknowledged is None:
            raise errors.NotFound(f"{alias} has no rollback that is not acknowledged")
        return acknowledged

    def _parse(self, data: bytes) -> Any:
        return parse(data, path=str(self._files.models_path), generation=0, loaded_at=0.0)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        """Run a blocking function; its refusals become error responses."""
        with error_responses():
            # Abandoned when cancelled: a disk that hangs must not delay the end of the request or the process.
            return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)


def _require_known(model: str, known: list[str]) -> None:
    if model not in known:
        raise errors.ModelNotFound(
            f"{model} is unknown: models.toml has no [[models]] table for it, and no neuron has it"
            f"{did_you_mean(model, known)}",
            param="target",
        )


@contextmanager
def error_responses() -> Iterator[None]:
    """What an edit of a file refuses, as the error that a client gets."""
    try:
        yield
    except FaultyFile as error:
        raise errors.InvalidCatalogue(str(error)) from error
    except VersionNotFound as error:
        raise errors.NotFound(str(error)) from error
    except NotInForce as error:
        raise errors.NotInForceOnDisk(str(error)) from error
    except ChangedUnderneath as error:
        raise errors.PreconditionFailed(str(error)) from error
    except (
        CannotEdit,
        CannotSave,
        CannotStartRollout,
        InvalidRolloutState,
        RolloutAlreadyRunning,
        ValueError,
    ) as error:
        raise errors.Conflict(str(error)) from error
    except KeyError as error:
        raise errors.NotFound(f"alias '{error.args[0]}' does not exist") from error
    except OSError as error:
        raise errors.ServiceUnavailable(f"{error.filename or 'the disk'}: {error.strerror or error}") from error
