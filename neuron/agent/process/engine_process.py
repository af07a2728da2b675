"""One engine process under its launcher: start it, follow its output, end all of it. No decision when to do so.

The engine's processes are gone when `EngineProcess.run` returns, whatever the reason, cancellation included.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from neuron.agent.process import launcher
from neuron.agent.process.engine_output import EngineOutput
from neuron.agent.process.survivors import RUN_MARK, kill_marked

__all__ = ["EngineProcess"]

_READ_BYTES = 65536
_END_S = 30.0
"""For all of an engine to be killed; a process that waits for a broken driver cannot be."""
_run_numbers = itertools.count()
_LAST_OUTPUT_S = 1.0
"""How long output is read after the launcher's end: a worker that escaped may keep the pipe open."""


class EngineProcess:
    """One run of one engine.

    Args:
        command: What to execute; the first word is looked up in PATH.
        env: The whole environment.
        output: Gets everything the engine prints, standard output and error together.
        stop_s: How long the engine may take to end after SIGTERM, in seconds; then SIGKILL.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], output: EngineOutput, *, stop_s: float) -> None:
        self._command = command
        self._run_mark = f"{os.getpid()}-{next(_run_numbers)}"
        self._env = {**env, RUN_MARK: self._run_mark}
        self._output = output
        self._stop_s = stop_s
        self._stop_requested = trio.Event()
        self._kill_requested = trio.Event()
        self.pid: int | None = None
        """The launcher's process id, which is also the id of the engine's process group and session."""
        self.exit_code: int | None = None
        """The engine's exit status, 128 + N after signal N; None while it runs."""

    def stop(self) -> None:
        """Ask the engine to end: SIGTERM, and SIGKILL after `stop_s`. Returns at once; `run` returns at the end."""
        self._stop_requested.set()

    def kill(self) -> None:
        """End the engine at once: SIGKILL. Returns at once; `run` returns at the end."""
        self._kill_requested.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> int:
        """Run the engine to its end and return its exit status. `started` is called once the launcher runs.

        Cancellation kills the engine at once.

        Raises:
            OSError: The launcher cannot be started.
        """
        command = [sys.executable, "-I", "-S", str(Path(launcher.__file__)), *self._command]
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env,
            start_new_session=True,
        )
        self.pid = process.pid
        try:
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_output, process)
                async with trio.open_nursery() as stopper:
                    stopper.start_soon(self._stop_when_requested, process)
                    stopper.start_soon(self._kill_when_requested, process)
                    self.exit_code = await process.wait()
                    stopper.cancel_scope.cancel()
                nursery.cancel_scope.deadline = trio.current_time() + _LAST_OUTPUT_S
        finally:
            self._output.close_run()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _END_S):
                await _kill(process)
                # The launcher itself was killed: workers in a session of their own have survived it.
                if process.returncode is not None and process.returncode < 0:
                    await trio.to_thread.run_sync(kill_marked, self._run_mark, abandon_on_cancel=True)
        return self.exit_code

    async def _read_output(self, process: trio.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - asked for above
        while data := await process.stdout.receive_some(_READ_BYTES):
            self._output.feed(bytes(data))

    async def _stop_when_requested(self, process: trio.Process) -> None:
        await self._stop_requested.wait()
        await _ask(process, b"T")
        await trio.sleep(self._stop_s)
        await _ask(process, b"K")

    async def _kill_when_requested(self, process: trio.Process) -> None:
        await self._kill_requested.wait()
        await _ask(process, b"K")


async def _ask(process: trio.Process, what: bytes) -> None:
    """Send the launcher a command. It reads its pipe at once, so this does not block. Ignores a launcher that ended."""
    assert process.stdin is not None  # noqa: S101 - asked for in `run`
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await process.stdin.send_all(what)


async def _kill(process: trio.Process) -> None:
    """End what is left of the process group, and collect the launcher. The launcher ends its descendants first."""
    if process.returncode is None:
        with trio.move_on_after(launcher.GRACE_S + 2.0, shield=True):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                assert process.stdin is not None  # noqa: S101 - asked for in `run`
                await process.stdin.send_all(b"K")
                await process.stdin.aclose()
            await process.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        with trio.move_on_after(2.0, shield=True):
            await process.wait()
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                await stream.aclose()
