"""A request body that is produced while it is sent: its framing, its pace, and an ear for an early answer. No sockets.

For uploads, which are too large to be held and come as slowly as their client sends them. All other bodies are sent in
one piece (`upstream.Connection.ask`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from gateway.http.phase_deadlines import PhaseDeadlines

__all__ = ["StreamedBody", "send_while_listening"]


class StreamedBody(Protocol):
    """Where the bytes come from."""

    @property
    def length(self) -> int | None:
        """Of all of it in bytes; None if nobody knows, and then it is sent in chunks."""
        ...

    async def receive(self) -> bytes:
        """The next piece, when there is one; `b""` at the end. May raise what must be told the client instead."""
        ...


async def send_while_listening(
    body: StreamedBody,
    send: Callable[[bytes], Awaitable[bool]],
    listen: Callable[[], Awaitable[None]],
    phases: PhaseDeadlines,
) -> bool:
    """Send a body, and return once the head of the answer is there; True if all of the body was sent before that.

    A neuron that answers early (413, say) has read enough: the rest is not sent, and the connection cannot be used
    again. The phase is `upload` at first, whose time starts anew with every piece, and `first_byte` after the last.

    Args:
        body: What to send.
        send: Hands bytes to the neuron; False once it has stopped listening.
        listen: Returns when there is the head of an answer.
        phases: Of the attempt.

    Raises:
        Exception: Whatever `body.receive` or `listen` raise; the first of them, as it is.
    """
    whole = False
    faults: list[Exception] = []

    async def send_all() -> None:
        nonlocal whole
        try:
            whole = await _send_pieces(body, send, phases)
        except Exception as fault:  # noqa: BLE001 - raised below, out of the nursery's group
            faults.append(fault)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        try:
            await listen()
        except Exception as fault:  # noqa: BLE001 - as above
            faults.append(fault)
        nursery.cancel_scope.cancel()
    if faults:
        raise faults[0]
    return whole


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
