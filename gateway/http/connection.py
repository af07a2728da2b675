"""One connection to a neuron: a request is written, its response read. Where it comes from and rests: `upstream.py`."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.http.sockets import close_now, descriptor, is_quiet, read, write_what_fits
from gateway.http.streamed_body import StreamedBody, send_while_listening

__all__ = ["UpstreamConnection"]

TLS_UNHEARD_BYTES = 64 * 1024  # sent at a time without an ear for an early answer; any socket takes as much


class UpstreamConnection:
    """One connection to a neuron: at most one exchange at a time, and closed for good when one ends in disorder.

    A plain socket is read and written with `os.read` and `os.write` around Trio's readiness calls: measured 4 us a
    chunk less than `receive_some`, which makes a checkpoint before and after a system call that we know will succeed.
    """

    __slots__ = ("_fd", "_response", "_sent_whole", "_stream", "rested_since")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._fd = descriptor(stream)
        self._response: UpstreamResponse | None = None
        self._sent_whole = False
        self.rested_since = 0.0

    async def ask(
        self, message: Sequence[bytes], body: StreamedBody | None, phases: PhaseDeadlines
    ) -> UpstreamResponse:
        """Send a request and return its response once the head is there.

        Raises:
            ClosedBeforeResponse: Not a byte came back.
            UpstreamConnectionError, UpstreamMalformedResponse: As the names say.
            Exception: What `body` raises.
        """
        response = self._response = UpstreamResponse(self.receive)
        if body is None and isinstance(self._stream, trio.SSLStream) and sum(map(len, message)) > TLS_UNHEARD_BYTES:
            message, body = (), _Whole(message)
        sent = True
        for piece in message:
            sent = sent and await self._send(piece)
        if sent and body is not None:
            sent = await send_while_listening(body, self._send_unheard, response.read_head, phases)
        else:
            await response.read_head()
        self._sent_whole = sent  # not after an early answer: the neuron has not read to the end
        return response

    def is_reusable(self) -> bool:
        """Whether the last exchange ended in good order and the neuron means to go on."""
        return self._response is not None and self._response.reusable and self._sent_whole

    def is_quiet(self) -> bool:
        """Whether it can be used again: open, and nothing unasked to read."""
        return is_quiet(self._stream)

    def close(self) -> None:
        """Close at once, without a goodbye: sync, so no cancellation can come in between."""
        self._response = None
        close_now(self._stream)

    async def receive(self) -> bytes:
        """Bytes as they come, `b""` at the end; a reset is an end too."""
        return await read(self._stream, self._fd)

    async def _send(self, piece: bytes) -> bool:
        """Send it all, or False if the neuron stopped listening: its answer, if any, says why."""
        try:
            if self._fd is None:
                await self._stream.send_all(piece)
                return True
            sent = write_what_fits(self._fd, piece)
            return sent == len(piece) or await self._send_slowly(self._fd, memoryview(piece)[sent:])
        except (OSError, trio.BrokenResourceError):
            return False

    async def _send_unheard(self, piece: bytes) -> bool:
        """As `_send`, while another task listens for an answer."""
        try:
            if self._fd is None:
                await self._stream.send_all(piece)
                return True
            rest = memoryview(piece)[write_what_fits(self._fd, piece) :]
            while rest:
                await trio.lowlevel.wait_writable(self._fd)
                rest = rest[write_what_fits(self._fd, rest) :]
        except (OSError, trio.BrokenResourceError):
            return False
        await trio.lowlevel.checkpoint()  # a client as fast as this socket would keep everybody else waiting
        return True

    async def _send_slowly(self, fd: int, rest: memoryview) -> bool:
        """The rest of a large body, unless an answer comes first: a neuron may say 413 without reading to the end."""
        answered = False

        async def watch_for_an_answer(scope: trio.CancelScope) -> None:
            nonlocal answered
            await trio.lowlevel.wait_readable(fd)
            answered = True
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_for_an_answer, nursery.cancel_scope)
            while rest:
                await trio.lowlevel.wait_writable(fd)
                rest = rest[write_what_fits(fd, rest) :]
            nursery.cancel_scope.cancel()
        return not answered


class _Whole:
    """A large message that goes out over TLS, which cannot be asked how much it takes: as one that is produced."""

    def __init__(self, message: Sequence[bytes]) -> None:
        self._message = b"".join(message)
        self._sent = 0
        self.length = len(self._message)

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        piece = self._message[self._sent : self._sent + TLS_UNHEARD_BYTES]
        self._sent += len(piece)
        return piece
