"""The process of `cortex serve`: signals, exit codes, and the garbage collector."""

from __future__ import annotations

import gc
import signal
import sys
from typing import Any

import structlog
import trio

from gateway.server.gateway import Gateway
from gateway.server.listen import CannotStart
from gateway.server.restart.successor import Successor
from gateway.server.restart.takeover_messages import TakeoverFailed
from gateway.server.serve import Start, serve

__all__ = ["SECOND_SIGNAL_EXIT_CODE", "run"]

SECOND_SIGNAL_EXIT_CODE = 130  # 128 + SIGINT, as a shell reports it
YOUNG_OBJECTS = 50_000
"""Between two collections of young objects, which take 15 ms then. Requests leave no cycles, so there are few.

With Python's 700 there are 38 of them while 200 streams start, and now and then a full one: 10 to 25 % of the CPU time
that those starts take (measured). With 10,000 there are two or three, 13 %. Those streams have 25,000 objects.
"""

log = structlog.get_logger("cortex.serve")


def run(gateway: Gateway, start: Start | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until another process has taken over; drain, and return the exit code.

    An address that cannot be listened on, a store of keys that cannot be used, and a takeover that fails are one line
    on stderr and exit code 1. Every other crash is a traceback.
    """
    exit_code = 1
    # Modules and the parts built so far live as long as the process. Unless they are frozen, each full collection
    # examines them again (72,000 objects), and every stream stalls for 25 ms (measured).
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    try:
        exit_code = trio.run(_run_with_signals, gateway, start or Start())
    except* CannotStart as group:
        for error in _leaves(group):
            sys.stderr.write(f"cortex: {error}\n")
    except* TakeoverFailed as group:
        for error in _leaves(group):
            sys.stderr.write(f"cortex: cannot take over: {error}\n")
    return exit_code


async def _run_with_signals(gateway: Gateway, start: Start) -> int:
    stopping = trio.Event()
    successor = Successor(start.manager)
    exit_code = 0

    async def handle_signals(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal exit_code
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            task_status.started()
            async for signum in signals:
                if signum == signal.SIGHUP:
                    # In its own task: a file system that hangs must not block exit.
                    nursery.start_soon(_reload, gateway, start)
                elif signum == signal.SIGUSR2:
                    nursery.start_soon(successor.run)
                elif stopping.is_set():
                    exit_code = SECOND_SIGNAL_EXIT_CODE
                    nursery.cancel_scope.cancel()
                else:
                    stopping.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(handle_signals)
        await serve(gateway, stop=stopping.wait, start=start)
        nursery.cancel_scope.cancel()
    return exit_code


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


async def _reload(gateway: Gateway, start: Start) -> None:
    """Reload the neurons and the catalogue, and log the outcome; of unchanged files nothing else tells the operator."""
    start.manager.reloading()
    neurons = await gateway.neuron_store.reload()
    outcome = await gateway.catalogue_store.reload()
    start.manager.ready()
    log.info("looked_at_sighup", result=outcome.result, generation=outcome.catalogue.generation, neurons=neurons.result)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
