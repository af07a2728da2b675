"""Carry an upstream's answer to the client. Chunks leave as they arrive, and an end is never invented."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import trio

from gateway.dialects import Translation
from gateway.errors import GatewayError, UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy.body.off_loop import off_loop
from gateway.proxy.response.client_response import ClientResponse, Head
from gateway.proxy.response.keepalive import KeepAlive
from gateway.proxy.shadow.transcript import Transcript
from gateway.proxy.upstream_stream import UpstreamStream
from gateway.telemetry.meter import BodyMeter

__all__ = ["relay_body", "relay_stream", "relay_translated"]

WHOLE_LIMIT_BYTES = 64 * 1024 * 1024  # of an answer that is translated; the longest have tool calls of 1 MiB


async def relay_stream(
    stream: UpstreamStream,
    preamble: bytes,
    phases: PhaseDeadlines,
    keepalive: KeepAlive,
    *,
    translation: Translation | None = None,
    carried: UpstreamResponse | None = None,
) -> None:
    """Carry an event stream to its end. The phase is `idle`.

    Args:
        stream: Its preamble has just been read.
        preamble: Those bytes.
        phases: The request's.
        keepalive: Has the client's response, and the head to send first.
        translation: None to pass all bytes through.
        carried: The response whose body the stream is, if the server's pump may carry it.

    Raises:
        ClientGone: The client has disconnected.
        GatewayError: The upstream broke off or reported an error. `committed` of the client's response says whether the
            client has seen a part of the answer.
    """
    await _StreamRelay(stream, phases, keepalive, translation, carried).run(preamble)


class _StreamRelay:
    """One stream on its way, through its own task or, as a `Flow`, through the pump. Both take the same steps."""

    __slots__ = ("_carried", "_client", "_keepalive", "_meter", "_phases", "_stream", "_translation", "_untaken")

    def __init__(
        self,
        stream: UpstreamStream,
        phases: PhaseDeadlines,
        keepalive: KeepAlive,
        translation: Translation | None,
        carried: UpstreamResponse | None,
    ) -> None:
        self._stream = stream
        self._meter = stream.meter
        self._phases = phases
        self._keepalive = keepalive
        self._client = keepalive.client
        self._translation = translation
        self._carried = carried if self._client.exchange is not None else None
        self._untaken: bytes | None = None  # what the pump was to send next when the stream left it

    async def run(self, chunk: bytes) -> None:
        """Relay everything. `chunk` was read already."""
        self._phases.enter("idle")
        if self._translation is None:
            if chunk and not self._client.started:
                await self._client.start(*self._keepalive.head())
            self._client.committed = True
        piece = self._convert(chunk) if chunk else None
        while piece is not None:
            await self._send(piece)
            piece = await self._next_piece()
        self._stream.end(trio.current_time())
        await self._end()

    async def _next_piece(self) -> bytes | None:
        """What the client gets next, which may be nothing; None at the end of the body."""
        if self._carried is not None and self._client.committed:
            await self._go_through_pump(self._carried)
            piece, self._untaken = self._untaken, None
            if piece is not None:
                return piece
        chunk = await self._stream.receive()
        return self._convert(chunk) if chunk else None

    async def _go_through_pump(self, carried: UpstreamResponse) -> None:
        if not _can_carry(self._client):
            self._carried = None
        elif carried.can_be_fed and carried.descriptor is not None:
            await self._client.carry(carried.descriptor, self)

    def _convert(self, chunk: bytes) -> bytes:
        """The client's bytes for a chunk that `stream` has taken."""
        translation, events = self._translation, self._stream.events
        if translation is None or events is None:
            return chunk
        return translation.feed(events) + self._stream.release_partial(translation.held_limit_bytes)

    async def _send(self, piece: bytes) -> None:
        client, translation = self._client, self._translation
        if translation is not None and translation.error is not None:
            await _end_in_error(piece, translation.error, client)
        if piece:
            if not client.started:
                await client.start(*self._keepalive.head())
            client.committed = True
            if translation is not None:
                client.keepalive_bytes = translation.keepalive_bytes
            client.is_writing_terminator = self._meter.done
            await client.write(piece)
        now = self._phases.progressed()
        if piece:
            self._keepalive.last_write_at = now
        client.terminator_sent = self._meter.done and client.committed

    def feed(self, data: bytes, now: float) -> bytes | None:
        """See `gateway.asgi.Flow`: what `receive`, `_convert` and `_send` do, for bytes that the pump has read."""
        if self._carried is None or (chunk := self._carried.feed(data)) is None:
            return None
        if not chunk:
            return b""
        self._stream.take(chunk, now)
        client, meter, translation = self._client, self._meter, self._translation
        piece = chunk if translation is None else self._convert(chunk)
        failed = meter.error or (translation is not None and translation.error)
        if failed or meter.done or client.is_sending_keepalive:
            self._untaken = piece
            return None
        if piece:
            client.count(piece)
            if translation is not None:
                client.keepalive_bytes = translation.keepalive_bytes
            self._keepalive.last_write_at = now
        self._phases.progressed_at(now)
        return piece

    async def _end(self) -> None:
        client, translation, meter = self._client, self._translation, self._meter
        if translation is None:
            if not client.started:
                await client.start(*self._keepalive.head())
            await client.end()
            return
        last = translation.feed(self._stream.events or ())
        if translation.converts and not (meter.done or meter.finished or meter.error):
            # A completion of an engine has a finish reason, or at least a terminator, however the body ends.
            last += translation.fail(UpstreamConnectionError("the neuron's stream broke off without an end"))
        else:
            last += translation.finish()
        if translation.error is not None:
            await _end_in_error(last, translation.error, client)
        if not client.started:
            await client.start(*self._keepalive.head())
        client.committed = True
        await client.end(last)


def _can_carry(client: ClientResponse) -> bool:
    return client.exchange is not None and client.exchange.can_carry


async def _end_in_error(translated: bytes, error: GatewayError, client: ClientResponse) -> NoReturn:
    """Send the error event at the end of `translated`, but only to a client that has seen a part of this answer."""
    if client.committed:
        await client.end(translated)
    raise error


async def relay_translated(
    upstream: UpstreamResponse,
    first: bytes,
    meter: BodyMeter,
    phases: PhaseDeadlines,
    client: ClientResponse,
    *,
    head: Head,
    translation: Translation,
    transcript: Transcript | None = None,
) -> None:
    """Read an answer whole, translate and send it. Raises as `relay_stream` does."""
    pieces: list[bytes] = []
    size = 0
    chunk = first
    phases.enter("idle")
    while chunk:
        pieces.append(chunk)
        size += len(chunk)
        if size > WHOLE_LIMIT_BYTES:
            raise UpstreamMalformedResponse(f"the neuron's answer is longer than {WHOLE_LIMIT_BYTES} bytes")
        meter.feed(chunk)
        if transcript is not None:
            transcript.add_body(chunk)
        phases.progressed()
        chunk = await upstream.receive()
    meter.finish()
    body = b"".join(pieces)
    translated = await off_loop(body, partial(translation.whole, body))
    client.committed = True
    await client.respond(*head(), translated)


async def relay_body(
    upstream: UpstreamResponse,
    first: bytes,
    meter: BodyMeter,
    phases: PhaseDeadlines,
    client: ClientResponse,
    *,
    head: Head,
    transcript: Transcript | None = None,
) -> None:
    """Carry an answer that is not an event stream, piece by piece. Raises as `relay_stream` does.

    `first` is the piece of the body that was read already.
    """
    chunk = first
    phases.enter("idle")
    await client.start(*head())
    client.committed = True
    while chunk:
        meter.feed(chunk)
        if transcript is not None:
            transcript.add_body(chunk)
        await client.write(chunk)
        phases.progressed()
        chunk = await upstream.receive()
    await client.end()
    meter.finish()
