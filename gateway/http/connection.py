"""One connection to a neuron: writes a request and reads its response. `pool` opens, keeps and closes connections."""

from __future__ import annotations

import os
import select
from collections.abc import Awaitable, Iterator, Sequence

import trio

from gateway.errors import UpstreamConnectionError
from gateway.http.phase_deadlines import PhaseDeadlines, WaitTimer
from gateway.http.response_parser import ClosedBeforeResponse, ResponseParser, UpstreamResponse
from gateway.http.sockets import RECEIVE_BYTES, close_now, descriptor, poll_for_input, write_what_fits
from gateway.http.streamed_body import StreamedBody, send_until_response

__all__ = ["UpstreamConnection"]

TLS_PIECE_BYTES = 64 * 1024  # sent at a time, between checks for an early response; any socket buffer takes as much
WRITE_BYTES = 256 * 1024  # at a time: a socket's buffer may take 4 MB in one call, and other tasks wait for 2 ms


class UpstreamConnection:
    """One connection to a neuron, for one exchange at a time. `pool` closes it if an exchange is not completed.

    Plain sockets are read and written by their descriptor (`sockets`), which saves 4 us per chunk.
    """

    __slots__ = ("_fd", "_is_tls", "_parser", "_poll", "_request_sent", "_response", "_stream", "idle_since")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._fd = descriptor(stream)
        self._is_tls = isinstance(stream, trio.SSLStream)
        self._poll: select.poll | None = None
        self._parser = ResponseParser()
        self._response: UpstreamResponse | None = None
        self._request_sent = False
        self.idle_since = 0.0

    def send_request(
        self,
        message: Sequence[bytes | memoryview],
        body: StreamedBody | None,
        phases: PhaseDeadlines,
        timer: WaitTimer,
    ) -> Awaitable[UpstreamResponse]:
        """Send a request and return its response once the head has arrived. Await the result at once.

        Raises:
            ClosedBeforeResponse: The neuron closed the connection before the first byte of a response.
            UpstreamConnectionError: It closed the connection within the response's head.
            UpstreamMalformedResponse: The response's head is not valid HTTP/1.1.
            Exception: Whatever `body` raises.
        """
        # Not a coroutine itself, to spare nearly every request a frame.
        self._request_sent, fd = False, self._fd
        response = self._response = self._parser.response = UpstreamResponse(self._stream, fd, self._parser)
        if fd is not None and body is None and phases.scope is None and timer.running:
            rest = _send_at_once(fd, message)
            if not rest:
                self._request_sent = rest is not None
                return self._read_head(response, fd, phases, timer)
            message = rest
        return self._send_and_read_head(response, message, body, phases)

    async def _send_and_read_head(
        self,
        response: UpstreamResponse,
        message: Sequence[bytes | memoryview],
        body: StreamedBody | None,
        phases: PhaseDeadlines,
    ) -> UpstreamResponse:
        phases.go_on()
        if body is None and self._is_tls and sum(map(len, message)) > TLS_PIECE_BYTES:
            message, body = (), _TlsBody(message)
        sent = await self._send(message)
        if sent and body is not None:
            sent = await send_until_response(body, self._send_piece, response.read_head, phases)
        else:
            await response.read_head()
        self._request_sent = sent  # False after an early response: the neuron has not read the whole request
        return response

    def is_reusable(self) -> bool:
        """Whether the last exchange is complete and the neuron keeps the connection open."""
        return self._response is not None and self._response.reusable and self._request_sent

    def is_quiet(self) -> bool:
        """Whether the idle connection is open and has no unread bytes."""
        poll = self._poll
        if poll is None:
            poll = self._poll = poll_for_input(self._stream)
        return poll is None or not poll.poll(0)

    def close(self) -> None:
        """Close at once. Sync, so that it cannot be cancelled."""
        if self._response is not None:
            self._response = None
            self._parser.close()
        close_now(self._stream)

    async def _read_head(
        self, response: UpstreamResponse, fd: int, phases: PhaseDeadlines, timer: WaitTimer
    ) -> UpstreamResponse:
        """Wait for the head, and for no more if the body has come with it: most answers need no cancel scope."""
        phases.wait_for_input(fd, timer)
        try:
            while not response.status:
                try:  # as `sockets.read`, without its frame
                    await trio.lowlevel.wait_readable(fd)
                    data = os.read(fd, RECEIVE_BYTES)
                except BlockingIOError:
                    pass
                except (OSError, trio.ClosedResourceError):
                    response.take_head(b"")
                else:
                    response.take_head(data)
                if not response.status:
                    phases.check()  # it was to end in the instant in which input came
        except (ClosedBeforeResponse, UpstreamConnectionError):
            phases.check()
            raise
        finally:
            phases.end_wait(timer)
        if not response.complete:
            phases.go_on()
        return response

    async def _send(self, message: Sequence[bytes | memoryview]) -> bool:
        """Send all of it. False if the neuron stopped reading; it may have sent a response that says why."""
        fd = self._fd
        try:
            for piece in message:
                if fd is None:
                    await self._stream.send_all(piece)
                    continue
                size = len(piece)
                sent = write_what_fits(fd, piece if size <= WRITE_BYTES else memoryview(piece)[:WRITE_BYTES])
                if sent < size and not await self._send_rest(fd, memoryview(piece)[sent:]):
                    return False
        except (OSError, trio.BrokenResourceError):
            return False
        return True

    async def _send_piece(self, piece: bytes) -> bool:
        """Send all of `piece` while another task reads the response. False if the neuron stopped reading."""
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
        await trio.lowlevel.checkpoint()  # a client that sends as fast as this socket takes would block all other tasks
        return True

    async def _send_rest(self, fd: int, rest: memoryview) -> bool:
        """Send the rest of a large body. False if a response (a 413, say) arrives before the neuron has read all."""
        response_began = False

        async def watch_for_response(scope: trio.CancelScope) -> None:
            nonlocal response_began
            await trio.lowlevel.wait_readable(fd)
            response_began = True
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_for_response, nursery.cancel_scope)
            while rest:
                await trio.lowlevel.wait_writable(fd)
                rest = rest[write_what_fits(fd, rest[:WRITE_BYTES]) :]
            nursery.cancel_scope.cancel()
        return not response_began


def _send_at_once(fd: int, message: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview] | None:
    """Send what the neuron's socket takes without a wait. Returns the rest; None if the neuron stopped reading."""
    for number, piece in enumerate(message):
        size = len(piece)
        if size > WRITE_BYTES:
            return message[number:]
        try:
            sent = os.write(fd, piece)
        except BlockingIOError:
            return message[number:]
        except OSError:
            return None
        if sent < size:
            return [memoryview(piece)[sent:], *message[number + 1 :]]
    return ()


class _TlsBody:
    """A large message as a `StreamedBody`: a TLS stream does not report how much of a write it has taken."""

    def __init__(self, message: Sequence[bytes | memoryview]) -> None:
        self._message = message
        self._unsent = self._pieces()
        self.length = sum(map(len, message))

    def rewind(self) -> bool:
        self._unsent = self._pieces()
        return True

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return next(self._unsent, b"")

    def _pieces(self) -> Iterator[bytes]:
        for part in self._message:
            for start in range(0, len(part), TLS_PIECE_BYTES):
                yield bytes(part[start : start + TLS_PIECE_BYTES])
