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

__all__ = ["relay_body", "relay_stream", "relay_whole"]

WHOLE_LIMIT_BYTES = 64 * 1024 * 1024  # of an answer that is translated; the longest have tool calls of 1 MiB


async def relay_stream(
    stream: UpstreamStream,
    preamble: bytes,
    phases: PhaseDeadlines,
    keepalive: KeepAlive,
    *,
    translation: Translation | None = None,
) -> None:
    """Carry an event stream to its end. The phase is `idle`.

    Args:
        stream: Its preamble has just been read.
        preamble: Those bytes.
        phases: The request's.
        keepalive: Has the client's response, and the head to send first.
        translation: None to pass all bytes through.

    Raises:
        ClientGone: The client has disconnected.
        GatewayError: The upstream broke off or reported an error. `committed` of the client's response says whether the
            client has seen a part of the answer.
    """
    client, meter, chunk = keepalive.client, stream.meter, preamble
    phases.enter("idle")
    if translation is not None:
        await _relay_translated(stream, chunk, phases, keepalive, translation)
        return
    if chunk and not client.started:
        await client.start(*keepalive.head())
    client.committed = True
    while chunk:
        await client.write(chunk)
        client.terminator_sent = meter.done
        keepalive.last_write_at = phases.progressed()
        chunk = await stream.receive()
    stream.end(trio.current_time())
    if not client.started:
        await client.start(*keepalive.head())
    await client.end()


async def _relay_translated(
    stream: UpstreamStream, chunk: bytes, phases: PhaseDeadlines, keepalive: KeepAlive, translation: Translation
) -> None:
    client, meter = keepalive.client, stream.meter
    while chunk:
        if stream.events is None:
            translated = chunk
        else:
            translated = translation.feed(stream.events) + stream.release_partial(translation.held_limit_bytes)
            if translation.error is not None:
                await _end_in_error(translated, translation.error, client)
        if translated:
            if not client.started:
                await client.start(*keepalive.head())
            client.committed = True
            client.keepalive_bytes = translation.keepalive_bytes
            await client.write(translated)
            keepalive.last_write_at = trio.current_time()
        client.terminator_sent = meter.done and client.committed
        phases.progressed()
        chunk = await stream.receive()
    stream.end(trio.current_time())
    translated = translation.feed(stream.events or ())
    if translation.converts and not (meter.done or meter.finished or meter.error):
        # A completion of an engine has a finish reason, or at least a terminator, however the body ends.
        translated += translation.fail(UpstreamConnectionError("the neuron's stream broke off without an end"))
    else:
        translated += translation.finish()
    if translation.error is not None:
        await _end_in_error(translated, translation.error, client)
    if not client.started:
        await client.start(*keepalive.head())
    client.committed = True
    await client.end(translated)


async def _end_in_error(translated: bytes, error: GatewayError, client: ClientResponse) -> NoReturn:
    """Send the error event at the end of `translated`, but only to a client that has seen a part of this answer."""
    if client.committed:
        await client.end(translated)
    raise error


async def relay_whole(
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
    """Carry an answer that is not an event stream. Raises as `relay_stream` does.

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
        if upstream.complete:
            break
        await client.write(chunk)
        phases.progressed()
        chunk = await upstream.receive()
    await client.end(chunk)
    meter.finish()
