"""The neurons in force: those of the file that `neurons_config` names, or those of `cortex.toml`, which stay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias

import structlog
import trio

from catalogue.toml.faults import Fault, FaultyFile
from catalogue.toml.parse import is_blank
from gateway import errors
from gateway.aliases.files.catalogue_files import state_directory
from gateway.aliases.files.file_history import FileHistory, digest_of
from gateway.config.neurons_file import LoadedNeurons, parse_neurons
from gateway.config.settings import GatewaySettings, NeuronSettings, Settings
from gateway.files.config_file import fault_in, printable, read_config_file
from gateway.files.file_reload import FILE_ACTOR, POLL_S, FileReload

__all__ = ["SECRET_KEYS", "NeuronChange", "NeuronReload", "NeuronStore", "no_neurons_file"]

SECRET_KEYS = ("token", "api_key")
HISTORY_MODE = 0o600  # the file has secrets
_MB = 1024**2

Subscriber: TypeAlias = Callable[["NeuronChange"], object]
RejectionSubscriber: TypeAlias = Callable[[tuple[Fault, ...], str], object]

log = structlog.get_logger("cortex.neurons")


@dataclass(frozen=True, slots=True)
class NeuronChange:
    """The neurons before and after a change, each file's hash, and who made the change."""

    old: tuple[NeuronSettings, ...]
    new: tuple[NeuronSettings, ...]
    before: str | None
    digest: str | None
    who: str

    def as_json(self) -> dict[str, object]:
        """Names of new and removed neurons, and the changed keys of the others."""
        old, new = _by_name(self.old), _by_name(self.new)
        return {
            "added": [name for name in new if name not in old],
            "removed": [name for name in old if name not in new],
            "changed": {
                name: _changed_keys(old[name], new[name]) for name in new if name in old and old[name] != new[name]
            },
        }

    def __str__(self) -> str:
        """In words, without secrets."""
        old, new = _by_name(self.old), _by_name(self.new)
        words = [f"+{name} ({neuron.endpoint})" for name, neuron in new.items() if name not in old]
        words += [f"-{name}" for name in old if name not in new]
        words += [f"{name}: {_describe(old[name], neuron)}" for name, neuron in new.items() if name in old]
        return ", ".join(word for word in words if not word.endswith(": ")) or "no neuron changed"


def _by_name(neurons: tuple[NeuronSettings, ...]) -> dict[str, NeuronSettings]:
    return {neuron.name: neuron for neuron in neurons}


def _changed_keys(old: NeuronSettings, new: NeuronSettings) -> list[str]:
    return [key.name for key in fields(NeuronSettings) if getattr(old, key.name) != getattr(new, key.name)]


def _describe(old: NeuronSettings, new: NeuronSettings) -> str:
    return " and ".join(
        f"{key} {old.endpoint} -> {new.endpoint}" if key == "endpoint" else f"another {key}"
        for key in _changed_keys(old, new)
    )


@dataclass(frozen=True, slots=True)
class NeuronReload:
    """The result of reading the file; `change` if `applied`, `faults` if `rejected`."""

    result: Literal["applied", "unchanged", "rejected"]
    change: NeuronChange | None = None
    faults: tuple[Fault, ...] = ()

    def as_json(self) -> dict[str, object]:
        """As `POST /admin/reload` and `PUT /admin/neurons` answer it."""
        diff = None if self.change is None else self.change.as_json()
        return {"result": self.result, "diff": diff, "faults": [fault.as_json() for fault in self.faults]}


class NeuronStore:
    """Has the neurons in force, and replaces them when the file changes.

    Args:
        settings: Of the gateway: the file, or the neurons themselves.
        poll_s: How often the file is read without an event.

    Attributes:
        path: The file; None if the neurons are in `cortex.toml`.
        neurons: Those in force.
        content: The bytes of the file in force; empty if there is no file.
        warnings: About the file in force.
        last_error: Why the file as it is now is not in force, or None if it is.
        history_error: Why the last version could not be kept, or None if it was.
    """

    def __init__(self, settings: Settings, *, poll_s: float = POLL_S) -> None:
        self.path: Path | None = settings.neurons_config
        self.neurons = settings.neurons
        self.content = b""
        self.warnings: tuple[Fault, ...] = ()
        self.last_error: tuple[Fault, ...] | None = None
        self.history_error: str | None = None
        audit = settings.audit
        self.history = FileHistory(
            state_directory(settings) / "neurons.history",
            files=audit.history_files,
            total_bytes=int(audit.history_mb * _MB),
            mode=HISTORY_MODE,
        )
        self._gateway: GatewaySettings = settings.gateway
        self._subscribers: list[Subscriber] = []
        self._rejection_subscribers: list[RejectionSubscriber] = []
        self._file = None if self.path is None else _file_reload(self, self.path, poll_s)

    @property
    def digest(self) -> str | None:
        """The hash of the file in force; None if there is no file."""
        return None if self.path is None else digest_of(self.content)

    def rejected(self) -> list[tuple[str, str]]:
        """Path and text of the file on disk, if it is not in force; else empty."""
        if self.path is None or self.last_error is None:
            return []
        return [(printable(self.path), f"the neurons in force stay: {self.last_error[0]}")]

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(change)` after every change of the neurons. Synchronous; it must not raise."""
        self._subscribers.append(subscriber)

    def subscribe_to_rejections(self, subscriber: RejectionSubscriber) -> None:
        """Call `subscriber(faults, who)` for every file that is rejected, under the same rules."""
        self._rejection_subscribers.append(subscriber)

    def load_initial(self) -> None:
        """Read the file, if there is one. Blocking; call it before serving. Raises FaultyFile."""
        if self.path is not None:
            self.content = read_config_file(self.path)
            loaded = self.parse(self.content)
            self.neurons, self.warnings = loaded.neurons, loaded.warnings

    async def reload(self, *, actor: str = FILE_ACTOR) -> NeuronReload:
        """Read the file now, and put it in force if it is good and new."""
        if self._file is None:
            return NeuronReload("unchanged")
        return await self._file.reload(actor)

    async def write(self, save: Callable[[], Awaitable[str]], *, actor: str) -> tuple[str, NeuronReload]:
        """Let `save` write the file and return its hash, then put it in force. Raises TimeoutError."""
        if self._file is None:
            raise errors.Conflict(no_neurons_file())
        return await self._file.write(save, actor)

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reload whenever the file changes, until cancelled."""
        if self._file is not None:
            await trio.to_thread.run_sync(self._keep, self.content, abandon_on_cancel=True)
            await self._file.watch(task_status=task_status)
        else:
            task_status.started()

    def parse(self, data: bytes) -> LoadedNeurons:
        """What a file with this content would bring into force. Raises FaultyFile."""
        if is_blank(data) and self.neurons:
            hint = "to have no neurons on purpose, write `neurons = []`"
            raise FaultyFile((fault_in(self.path or Path("neurons.toml"), "the file is empty", hint),))
        return parse_neurons(data, path=printable(self.path or Path("neurons.toml")), gateway=self._gateway)

    def _keep(self, content: bytes) -> None:
        try:
            self.history.keep(content)
            self.history_error = None
        except OSError as error:
            self.history_error = f"{error.filename or self.history.folder}: {error.strerror or error}"

    def examine(self, path: Path) -> tuple[Fault, ...] | _NewFile | None:
        """What the file contains now; None if it is the file in force. Runs in a thread."""
        try:
            content = read_config_file(path)
            if digest_of(content) == self.digest:
                return None
            found = _NewFile(content, self.parse(content))
        except FaultyFile as error:
            return error.faults
        self._keep(content)
        return found

    def apply(self, found: tuple[Fault, ...] | _NewFile | None, actor: str) -> NeuronReload:
        """Put what was found in force."""
        if isinstance(found, tuple):
            self.last_error = found
            log.error("neurons_rejected", path=printable(self.path or Path()), faults=[str(fault) for fault in found])
            for reject in self._rejection_subscribers:
                reject(found, actor)
            return NeuronReload("rejected", faults=found)
        self.last_error = None
        if found is None:
            return NeuronReload("unchanged")
        change = NeuronChange(self.neurons, found.loaded.neurons, self.digest, digest_of(found.content), actor)
        self.content, self.neurons, self.warnings = found.content, found.loaded.neurons, found.loaded.warnings
        log.info("neurons_applied", path=printable(self.path or Path()), diff=str(change))
        for subscriber in self._subscribers:
            subscriber(change)
        return NeuronReload("applied", change)


@dataclass(frozen=True, slots=True)
class _NewFile:
    content: bytes
    loaded: LoadedNeurons


def _file_reload(store: NeuronStore, path: Path, poll_s: float) -> FileReload[_NewFile, NeuronReload]:
    return FileReload(
        path, lambda: store.examine(path), store.apply, last_error=lambda: store.last_error, poll_s=poll_s
    )


def no_neurons_file() -> str:
    """The error for operators that change neurons of `cortex.toml`."""
    return (
        "the neurons are in cortex.toml, which is read once, at the start; to change them while the gateway runs, move"
        " them into a file of their own and name it in neurons_config"
    )
