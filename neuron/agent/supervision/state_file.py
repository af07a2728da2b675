"""What the neuron remembers across its starts: measured memory and load times, and the processes it has started."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog
import trio

from neuron.agent.process.survivors import StartedProcess

__all__ = ["LearntLoad", "StateDirectoryInUse", "StateFile", "locked_state_dir"]

WRITE_S = 5.0
KEPT_LEARNT = 500  # engine arguments; an operator tries a few dozen

log = structlog.get_logger("cortex.neuron.state")


class LearntLoad(msgspec.Struct, frozen=True):
    """What was measured at the last load, and at the last wake, with certain engine arguments."""

    memory_mb: int | None = None
    load_s: float | None = None
    wake_s: float | None = None


class _Process(msgspec.Struct, frozen=True):
    pid: int
    start_time: int
    model_id: str
    port: int


class _State(msgspec.Struct):
    version: int = 1
    learnt: dict[str, LearntLoad] = msgspec.field(default_factory=dict)
    processes: dict[str, _Process] = msgspec.field(default_factory=dict)


class StateDirectoryInUse(Exception):
    """Another neuron runs with this state directory."""


@contextmanager
def locked_state_dir(directory: Path) -> Iterator[None]:
    """Make the directory, and hold it for this process. Blocking.

    Raises:
        StateDirectoryInUse: Another process holds it.
        OSError: It cannot be made.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another neuron runs with the state directory {directory}: stop it, or set [state] dir"
            raise StateDirectoryInUse(message) from None
        yield
    finally:
        os.close(descriptor)


class StateFile:
    """`state.json` in the state directory. Changes are synchronous; `run` writes them, the latest state only.

    A file that is missing or damaged is an empty one: it costs a measurement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _State()
        self._dirty = trio.Event()

    def read(self) -> None:
        """Read the file. Blocking; before `run`."""
        try:
            self._state = msgspec.json.decode(self._path.read_bytes(), type=_State)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("state_unreadable", path=str(self._path), reason=str(error))

    def learnt(self, fingerprint: str) -> LearntLoad:
        """What is known of these engine arguments."""
        return self._state.learnt.get(fingerprint, LearntLoad())

    def learn(self, fingerprint: str, load: LearntLoad) -> None:
        """Remember a measurement."""
        learnt = self._state.learnt
        learnt.pop(fingerprint, None)
        learnt[fingerprint] = load
        while len(learnt) > KEPT_LEARNT:
            del learnt[next(iter(learnt))]
        self._dirty.set()

    def started(self) -> list[StartedProcess]:
        """The processes that the last state names."""
        return [StartedProcess(process.pid, process.start_time) for process in self._state.processes.values()]

    def forget_processes(self) -> None:
        """None is left of an earlier run."""
        self._state.processes.clear()
        self._dirty.set()

    def process_started(self, model_id: str, pid: int, start_time: int, port: int) -> None:
        """An engine's launcher runs."""
        self._state.processes[model_id] = _Process(pid, start_time, model_id, port)
        self._dirty.set()

    def process_ended(self, model_id: str) -> None:
        """Nothing of this engine is left."""
        self._state.processes.pop(model_id, None)
        self._dirty.set()

    async def run(self) -> None:
        """Write every change, forever; the last one also when this is cancelled."""
        try:
            while True:
                await self._dirty.wait()
                await self._write()
        finally:
            if self._dirty.is_set():
                with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_S):
                    await self._write()

    async def _write(self) -> None:
        self._dirty = trio.Event()
        data = msgspec.json.format(msgspec.json.encode(self._state), indent=1)
        # Shielded, because the change would be lost; with a deadline, because a network file system may hang.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_S):
            try:
                await trio.to_thread.run_sync(_replace, self._path, data, abandon_on_cancel=True)
            except OSError as error:
                log.warning("state_not_written", path=str(self._path), reason=error.strerror or str(error))


def _replace(path: Path, data: bytes) -> None:
    """Replace the file in one step, so that a crash leaves the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
