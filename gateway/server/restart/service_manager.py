"""What the gateway tells systemd about itself, as `sd_notify(3)` describes; nothing where no manager asks for it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Self

import structlog
import trio

__all__ = ["ServiceManager"]

SEND_DEADLINE_S = 1.0  # the manager reads at once; a full socket must not stop the event loop for longer
STATUS_INTERVAL_S = 5.0

log = structlog.get_logger("cortex.serve")


class ServiceManager:
    """Sends notifications to the service manager.

    Args:
        address: The manager's datagram socket; None sends nothing.
        watchdog_s: The manager kills and restarts a process that is silent for this long; None: it does not.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        self._status = ""
        self._failed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """The manager that has started this process, from `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`."""
        usec = environ.get("WATCHDOG_USEC", "")
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = int(usec) / 1e6 if usec.isdecimal() and int(usec) and is_ours else None
        return cls(environ.get("NOTIFY_SOCKET") or None, watchdog_s)

    def ready(self) -> None:
        """The gateway serves, or has finished a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. `CLOCK_MONOTONIC` tells the manager which reload is meant."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The gateway drains."""
        self._send("STOPPING=1")

    def main_process(self, pid: int) -> None:
        """Another process is the service's main process from now on. The manager listens to this one no more."""
        self._send(f"MAINPID={pid}")
        self._address = None

    async def run(
        self, status: Callable[[], str], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Report `status` and that the event loop runs, until cancelled. Started at once.

        The heartbeat comes from the event loop itself, twice per `watchdog_s`: if a task blocks the loop, it stops, and
        the manager restarts the gateway.
        """
        task_status.started()
        interval_s = min(STATUS_INTERVAL_S, (self.watchdog_s or STATUS_INTERVAL_S) / 2)
        while self._address is not None:
            lines = [] if self.watchdog_s is None else ["WATCHDOG=1"]
            text = status()
            if text != self._status:
                self._status = text
                lines.append(f"STATUS={text}")
            if lines:
                self._send("\n".join(lines))
            await trio.sleep(interval_s)

    def _send(self, text: str) -> None:
        """Send one datagram. A manager that cannot be reached is logged once: the gateway serves without it."""
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_DEADLINE_S)
                sock.sendto(text.encode(), address)
        except OSError as error:
            if not self._failed:
                log.warning("service_manager_unreachable", reason=error.strerror or str(error))
            self._failed = True
        else:
            self._failed = False
