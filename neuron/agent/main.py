"""The process of `cortex neuron serve`: signals and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import trio

from neuron.agent.listeners import CannotServe
from neuron.agent.serve import NeuronServer
from neuron.agent.supervision.state_file import StateDirectoryInUse

__all__ = ["run"]

SECOND_SIGNAL_EXIT_CODE = 130  # 128 + SIGINT, as a shell reports it


def run(path: Path, data: bytes) -> int:
    """Serve until SIGTERM or SIGINT, end every engine, and return the process's exit code. SIGHUP reloads.

    Args:
        path: Of `neuron.toml`.
        data: Its content, which has no fault.
    """
    exit_code = 1
    try:
        exit_code = trio.run(_run_with_signals, NeuronServer(path, data, os.environ.copy()))
    except* (CannotServe, StateDirectoryInUse) as group:
        for error in _leaves(group):
            sys.stderr.write(f"cortex: {error}\n")
    return exit_code


async def _run_with_signals(server: NeuronServer) -> int:
    stopping, reloading = trio.Event(), _Repeated()
    exit_code = 0

    async def handle_signals(signals: AsyncIterator[int]) -> None:
        nonlocal exit_code
        async for signum in signals:
            if signum == signal.SIGHUP:
                reloading.set()
            elif stopping.is_set():
                exit_code = SECOND_SIGNAL_EXIT_CODE
                nursery.cancel_scope.cancel()
            else:
                stopping.set()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle_signals, signals)
            await server.serve(stop=stopping.wait, reload_requested=reloading.wait)
            nursery.cancel_scope.cancel()
    return exit_code


class _Repeated:
    """An event that each `wait` consumes."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
