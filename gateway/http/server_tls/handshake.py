"""The handshake of a connection, and what the log says of those that fail."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import structlog
import trio

from gateway.http.server_tls.tls_stream import HandshakeFailed, TlsStream

__all__ = ["FailedHandshakes", "HandshakeResult", "shake_hands"]

LOG_INTERVAL_S = 10.0  # everybody who reaches the port can cause failures

HandshakeResult: TypeAlias = Literal["done", "failed", "plain HTTP"]

log = structlog.get_logger("cortex.tls")


class FailedHandshakes:
    """Counts the failures of one server, and logs one of them from time to time, with how many there were."""

    def __init__(self) -> None:
        self._times = 0
        self._logged_at = -math.inf

    def add(self, error: HandshakeFailed, client: tuple[str, int] | None) -> None:
        """Count one."""
        self._times += 1
        if trio.current_time() - self._logged_at >= LOG_INTERVAL_S:
            log.warning("tls_handshake_failed", reason=str(error), client=client and client[0], times=self._times)
            self._logged_at, self._times = trio.current_time(), 0


async def shake_hands(stream: TlsStream, failures: FailedHandshakes, client: tuple[str, int] | None) -> HandshakeResult:
    """Do the handshake. A client that speaks HTTP without TLS can be sent an error in plain text; others cannot."""
    try:
        await stream.do_handshake()
    except HandshakeFailed as error:
        stream.abortive = True
        if error.is_plain_http:
            return "plain HTTP"
        failures.add(error, client)
        return "failed"
    return "done"
