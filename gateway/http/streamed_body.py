"""Sends a request body while it arrives: its framing, its phase, and a stop when the neuron responds early. No sockets.

For uploads, which are too large for memory and arrive as slowly as the client sends them. `connection` sends all other
bodies in one piece.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from gateway.http.phase_deadlines import PhaseDeadlines

__all__ = ["StreamedBody", "send_until_response"]


class StreamedBody(Protocol):
    """A source of body bytes."""

    @property
    def length(self) -> int | None:
        """The size of the whole body in bytes; None if unknown, and then it is sent chunked."""
        ...

    def rewind(self) -> bool:
        """Begin again at the first byte, for a redirect. False if the body cannot be sent a second time."""
        ...

    async def receive(self) -> bytes:
        """Wait for the next piece; `b""` at the end. An exception ends the exchange and reaches its caller."""
        ...


async def send_until_response(
    body: StreamedBody,
    send: Callable[[bytes], Awaitable[bool]],
    read_head: Callable[[], Awaitable[None]],
    phases: PhaseDeadlines,
) -> bool:
    """Send a body and wait for the response's head. Returns whether all of the body was sent before that.

    If the response begins early (a 413, for example), the rest of the body is not sent, and the connection cannot be
    reused. The phase is `upload`, whose deadline starts anew with every piece, and `first_byte` after the last piece.

    Args:
        body: The body to send.
        send: Sends bytes to the neuron; returns False if the neuron has stopped reading.
        read_head: Returns when the response's head has arrived.
        phases: The deadlines of the attempt.

    Raises:
        Exception: The first exception that `body.receive` or `read_head` raises, outside of any group.
    """
    sent_all = False
    failures: list[Exception] = []

    async def send_body() -> None:
        nonlocal sent_all
        try:
            sent_all = await _send_pieces(body, send, phases)
        except Exception as failure:  # noqa: BLE001 - raised below, out of the nursery's group
            failures.append(failure)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_body)
        try:
            await read_head()
        except Exception as failure:  # noqa: BLE001 - as above
            failures.append(failure)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return sent_all


async def _send_pieces(body: StreamedBody, send: Callable[[bytes], Awaitable[bool]], phases: PhaseDeadlines) -> bool:
    chunked = body.length is None
    while piece := await body.receive():
        if not await send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece):
            return False
        phases.progressed()
    if chunked and not await send(b"0\r\n\r\n"):
        return False
    phases.enter("first_byte")
    return True
