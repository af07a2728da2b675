"""Starts the process that takes over from this one: a restart in place, for SIGUSR2."""

from __future__ import annotations

import os
import sys

import structlog
import trio

from gateway.server.restart.service_manager import ServiceManager

__all__ = ["Successor"]

TAKEOVER = "--takeover"
OF_THIS_PROCESS = ("WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

log = structlog.get_logger("cortex.takeover")


class Successor:
    """At most one process at a time, with this one's command line and `--takeover`.

    It reads the files, and the program, as they are now. If it cannot start, this process goes on.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._is_starting = False

    async def run(self) -> None:
        """Start it, and wait for its end; a successor that has taken over outlives this process."""
        if self._is_starting:
            log.warning("successor_starts_already")
            return
        self._is_starting = True
        self._manager.reloading()
        try:
            command = [sys.executable, *(word for word in sys.orig_argv[1:] if word != TAKEOVER), TAKEOVER]
            environment = {name: value for name, value in os.environ.items() if name not in OF_THIS_PROCESS}
            process = await trio.lowlevel.open_process(command, env=environment)
            log.info("successor_started", pid=process.pid)
            code = await process.wait()
        except OSError as error:
            log.error("successor_failed", reason=error.strerror, consequence="this process goes on")  # noqa: TRY400
        else:
            log.error("successor_failed", pid=process.pid, exit_code=code, consequence="this process goes on")
        finally:
            self._is_starting = False
        self._manager.ready()
