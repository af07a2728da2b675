"""Hypercorn's Trio worker for the public port, for HTTP/2 (`gateway.http_server = "hypercorn"`).

The only file that imports Hypercorn. Why it is not the default: docs/decisions/0003-own-http-front.md.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any, cast

import hypercorn.trio
import trio
from hypercorn import Config

from gateway.asgi import App
from gateway.config.settings import Settings
from gateway.http.server_tls.certificate_store import CertificateStore

__all__ = ["HypercornServer"]

BACKLOG = 2048
HTTP_2 = ("h2", "http/1.1")


class _TlsConfig(Config):
    """Hypercorn's configuration with our certificate, which is reloaded; by itself Hypercorn reads the files once."""

    def __init__(self, certificates: CertificateStore) -> None:
        super().__init__()
        self.certfile, self.keyfile = str(certificates.files.cert), str(certificates.files.key)  # these switch TLS on
        self._context = certificates.shared_context(HTTP_2)

    def create_ssl_context(self) -> ssl.SSLContext:
        """Return the context for every connection."""
        return self._context


class HypercornServer:
    """Serves one application on one listening socket, with the methods of `HttpServer`.

    Hypercorn shields its sends from cancellation. A client that stops reading holds its task until the socket's
    TCP_USER_TIMEOUT, which the creator of `sock` must set. It has one idle time, `gateway.keep_alive_seconds`, also for
    a connection whose request is not complete: `deadlines.header_seconds` has no effect here. With `certificates` it
    speaks TLS.
    """

    def __init__(
        self, app: App, sock: socket.socket, settings: Settings, certificates: CertificateStore | None = None
    ) -> None:
        self._app = app
        self._config = Config() if certificates is None else _TlsConfig(certificates)
        # A duplicate: Hypercorn closes its socket, and the caller closes `sock`.
        self._config.bind = [f"fd://{os.dup(sock.fileno())}"]
        self._config.backlog = BACKLOG
        self._config.loglevel = "WARNING"
        self._config.include_server_header = False
        self._config.graceful_timeout = settings.gateway.drain_seconds  # the default of 3 s would cut streams
        self._config.h11_max_incomplete_size = settings.limits.header_bytes
        self._config.keep_alive_timeout = settings.gateway.keep_alive_seconds
        self._stop = trio.Event()
        self._ended = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until drained. Ready (`started`) when accepting."""
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

    def drain(self, *, keep_idle: bool = False) -> None:
        """Stop accepting; let running requests finish. Hypercorn closes idle connections in any case."""
        del keep_idle
        self._stop.set()

    async def close_when_quiet(self, quiet_s: float) -> None:
        """As `HttpServer.close_when_quiet`: there is nothing left to close."""
        del quiet_s

    async def drained(self) -> None:
        """Wait until the last connection has ended."""
        await self._ended.wait()
