"""Changing the file of the neurons over the network. What leaves the gateway has `***` in place of each secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import tomlkit
import trio
from tomlkit.exceptions import TOMLKitError

from gateway import errors
from gateway.aliases.catalogue_edits import error_responses
from gateway.aliases.files.audit_log import AuditLog
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.versions import VersionNotFound
from gateway.config.settings import NeuronSettings
from gateway.files import atomic_write
from gateway.files.config_file import is_absent, read_config_file
from gateway.files.file_lock import locked
from gateway.server.neurons.neuron_store import SECRET_KEYS, NeuronReload, NeuronStore, no_neurons_file

__all__ = ["MASK", "NeuronEdits", "masked", "unmasked"]

MASK = "***"
FILE_MODE = 0o600  # of a file that was deleted and is written anew: it may have secrets


class NeuronEdits:
    """The edits of one gateway. Every method raises a GatewayError if it changes nothing.

    Args:
        store: The file, and its earlier versions.
        audit_log: Says which version came after which.
    """

    def __init__(self, store: NeuronStore, audit_log: AuditLog) -> None:
        self._store = store
        self._audit_log = audit_log
        self._threads = trio.CapacityLimiter(2)  # not Trio's own: a file system that hangs must not take all threads

    def read(self) -> tuple[bytes, str]:
        """The file in force, with masked secrets, and its hash."""
        digest = self._store.digest
        if digest is None:
            raise errors.Conflict(no_neurons_file())
        return masked(self._store.content), digest

    async def put(self, data: bytes, if_match: str, who: str) -> tuple[str, NeuronReload]:
        """Replace the file, and put it in force. Returns its hash."""
        return await self._change(lambda: self._save(data, if_match), who)

    async def roll_back(self, to: str | None, who: str) -> tuple[str, NeuronReload]:
        """Restore the version with this hash, or its beginning, and put it in force. Returns its hash.

        None for the file in force if that on disk is another one, else for the version before it.
        """
        return await self._change(lambda: self._save(self._version(to), "*"), who)

    async def _change(self, save: Callable[[], str], who: str) -> tuple[str, NeuronReload]:
        async def save_in_thread() -> str:
            # Abandoned when cancelled: a disk that hangs must not delay the end of the request or the process.
            return await trio.to_thread.run_sync(save, abandon_on_cancel=True, limiter=self._threads)

        with error_responses():
            return await self._store.write(save_in_thread, actor=who)

    def _version(self, to: str | None) -> bytes:
        """The content of an earlier version. Blocking. Raises VersionNotFound."""
        in_force = self._store.digest
        if in_force is None:
            raise errors.Conflict(no_neurons_file())
        fields = (line.fields for line in self._audit_log.newest_first())
        changes = [(each["neurons_file"], each["before"]) for each in fields if "neurons_file" in each]
        if to is not None:
            found = {digest for change in changes for digest in change if digest.startswith(to)}
        elif self._store.last_error is not None:
            found = {in_force}
        else:
            found = set([before for after, before in changes if after == in_force][:1])
        if len(found) != 1:
            which = "before the present one" if to is None else f"whose hash begins with {to[:64]!r}"
            several = "there are several versions" if found else "the audit log knows no version"
            raise VersionNotFound(f"{several} {which}")
        (digest,) = found
        content = self._store.history.get(digest)
        if content is None:
            raise VersionNotFound(f"the version {digest} is no longer kept")
        return content

    def _save(self, data: bytes, if_match: str) -> str:
        path = self._store.path
        if path is None:
            raise errors.Conflict(no_neurons_file())
        with locked(path):
            before = None if is_absent(path) else read_config_file(path)
            digest = digest_of(before or b"")
            if if_match not in {"*", digest} and (before is not None or if_match != self._store.digest):
                raise errors.PreconditionFailed(
                    f"the file on disk differs from the one that If-Match names: its hash is {digest}; read it again"
                )
            after = unmasked(data, self._store.neurons)
            self._store.parse(after)
            if before is None:
                atomic_write.create(path, after, mode=FILE_MODE)
            elif after != before:
                atomic_write.replace(path, after, expected=before)
            return digest_of(after)


def masked(data: bytes) -> bytes:
    """The file with `***` in place of each secret; every other byte stays. `data` is valid. Raises errors.Conflict."""
    document = _parse(data)
    if document is None:  # tomlkit refuses a little more than the TOML reader does
        raise errors.Conflict("the file is written in a way in which its secrets cannot be hidden; read it on the host")
    for table, key in _secrets(document):
        table[key] = MASK
    return document.as_string().encode()


def unmasked(data: bytes, neurons: tuple[NeuronSettings, ...]) -> bytes:
    """The file with the secrets in force in place of each `***`.

    Args:
        data: The file. One that is not TOML is returned as it is; so is one without `***`.
        neurons: Those in force.

    Raises:
        errors.InvalidCatalogue: A neuron with `***` has no such secret.
    """
    known = {(neuron.name, key): getattr(neuron, key) for neuron in neurons for key in SECRET_KEYS}
    document = _parse(data)
    if document is None:  # the parser of the whole file says why
        return data
    found = [(table, key) for table, key in _secrets(document) if table[key] == MASK]
    for table, key in found:
        secret = known.get((str(table.get("name")), key))
        if secret is None:
            raise errors.InvalidCatalogue(
                f"{table.get('name')}: {key} is {MASK}, which stands for the present one, and there is none"
            )
        table[key] = secret
    return document.as_string().encode() if found else data


def _parse(data: bytes) -> tomlkit.TOMLDocument | None:
    try:
        return tomlkit.parse(data.decode().removeprefix("\ufeff"))
    except (RecursionError, TOMLKitError, ValueError):
        return None


def _secrets(document: tomlkit.TOMLDocument) -> Iterator[tuple[MutableMapping[str, Any], str]]:
    neurons: Any = document.get("neurons", [])
    for table in neurons if isinstance(neurons, list) else ():
        for key in SECRET_KEYS:
            if isinstance(table, MutableMapping) and isinstance(table.get(key), str):
                yield table, key
