"""Hypercorn's Trio worker on a socket of ours: for the public port, where HTTP/2 is wanted.

The one file that imports Hypercorn. Why the public port has a front of its own by default:
docs/decisions/0003-own-http-front.md.
"""

from __future__ import annotations

import os
import socket
from typing import Any, cast

import hypercorn.trio
import trio
from hypercorn import Config

from gateway.asgi import App
from gateway.config.settings import Settings

__all__ = ["HypercornServer"]

BACKLOG = 2048


class HypercornServer:
    """As `http1.Server` is to `serve.py`: serve, drain, and wait until drained.

    Hypercorn shields its sends, so a client that stops reading is freed by the socket's TCP_USER_TIMEOUT only, which
    whoever made `sock` has set (lessons.md, "Our own stack").
    """

    def __init__(self, app: App, sock: socket.socket, settings: Settings) -> None:
        self._app = app
        self._config = Config()
        # A duplicate, because Hypercorn closes what it is given and the caller closes what it made.
        self._config.bind = [f"fd://{os.dup(sock.fileno())}"]
        self._config.backlog = BACKLOG
        self._config.loglevel = "WARNING"
        self._config.include_server_header = False
        self._config.graceful_timeout = settings.gateway.drain_seconds  # its default of 3 s cuts streams
        self._config.h11_max_incomplete_size = settings.limits.header_bytes
        self._config.keep_alive_timeout = settings.deadlines.header_seconds
        self._stop = trio.Event()
        self._ended = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until drained. Started when accepting."""
        try:
            await hypercorn.trio.serve(
                cast("Any", self._app),
                self._config,
                shutdown_trigger=self._stop.wait,
                task_status=task_status,
                mode="asgi",
            )
        finally:
            self._ended.set()

    def drain(self) -> None:
        """Stop accepting and let what runs finish."""
        self._stop.set()

    async def drained(self) -> None:
        """Return when the last connection is gone."""
        await self._ended.wait()
