"""Carry the answer of an upstream to the client: chunks are written as they arrive, and an end is never invented."""

from __future__ import annotations

from typing import NoReturn

import trio

from gateway.dialects import Translation
from gateway.errors import GatewayError, UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy.client_response import ClientResponse, Head
from gateway.proxy.keepalive import KeepAlive
from gateway.telemetry.meter import BodyMeter, StreamMeter

__all__ = ["read_preamble", "relay_body", "relay_stream", "relay_whole"]

WHOLE_LIMIT_BYTES = 64 * 1024 * 1024  # of an answer that has to be translated; the longest are tool calls of 1 MiB
PREAMBLE_LIMIT_BYTES = 64 * 1024  # a role chunk is 200 bytes; more than this is no preamble


async def read_preamble(response: UpstreamResponse, meter: StreamMeter) -> bytes:
    """Everything up to and including the chunk with the first generated delta; all of it if there is none.

    It is held back, so that a neuron that fails there can still be replaced unseen; the pacer keeps the client company
    meanwhile. The phase is still `first_byte`: a long prefill is no idleness.

    Raises:
        UpstreamConnectionError, UpstreamMalformedResponse: The neuron broke off.
    """
    held = b""
    while chunk := await response.receive():
        held += chunk
        meter.feed(chunk, trio.current_time())
        if not meter.preamble or len(held) > PREAMBLE_LIMIT_BYTES:
            break
    if response.complete and meter.preamble:
        _check_the_end(response, meter)
    return held


async def relay_stream(
    response: UpstreamResponse,
    preamble: bytes,
    meter: StreamMeter,
    phases: PhaseDeadlines,
    pacer: KeepAlive,
    *,
    translation: Translation | None = None,
) -> None:
    """Carry an event stream to its end, from its preamble on: every chunk leaves as it came. The phase is `idle`.

    Raises:
        ClientGone: Nobody to write to.
        UpstreamConnectionError, UpstreamMalformedResponse: The neuron broke off; see `answer.committed` for whether
            the client has seen any of it.
    """
    answer, chunk = pacer.client, preamble
    phases.enter("idle")
    if translation is not None:
        await _relay_translated(response, meter, phases, pacer, translation, chunk=chunk)
        return
    if chunk and not answer.started:
        await answer.start(*pacer.head())
    answer.committed = True
    while chunk:
        await answer.write(chunk)
        answer.terminator_sent = meter.done
        pacer.last_write_at = trio.current_time()
        phases.progressed()
        chunk = await _more(response, meter)
        meter.feed(chunk, trio.current_time())
    _check_the_end(response, meter)
    if not answer.started:
        await answer.start(*pacer.head())
    await answer.end()


async def _more(response: UpstreamResponse, meter: StreamMeter) -> bytes:
    """The next piece of a stream. One that breaks off behind its terminator has ended: nobody may hear of both."""
    try:
        return await response.receive()
    except UpstreamConnectionError:
        if meter.done:
            return b""
        raise


async def _relay_translated(
    response: UpstreamResponse,
    meter: StreamMeter,
    phases: PhaseDeadlines,
    pacer: KeepAlive,
    translation: Translation,
    *,
    chunk: bytes,
) -> None:
    """The same with a translation in between. What it finds wrong with the stream is raised, once it has been told."""
    answer = pacer.client
    while chunk:
        told = translation.feed(chunk)
        if translation.error is not None:
            await _end_in_error(told, translation.error, answer)
        if told:
            if not answer.started:
                await answer.start(*pacer.head())
            answer.committed = True
            answer.keepalive_bytes = translation.keep_alive
            await answer.write(told)
            pacer.last_write_at = trio.current_time()
        answer.terminator_sent = meter.done and answer.committed
        phases.progressed()
        chunk = await _more(response, meter)
        meter.feed(chunk, trio.current_time())
    _check_the_end(response, meter)
    told = translation.finish()
    if translation.error is not None:
        await _end_in_error(told, translation.error, answer)
    if not answer.started:
        await answer.start(*pacer.head())
    answer.committed = True
    await answer.end(told)


async def _end_in_error(told: bytes, error: GatewayError, answer: ClientResponse) -> NoReturn:
    """`told` ends in the error as an event: of use only to a client that has seen something of this answer."""
    if answer.committed:
        await answer.end(told)
    raise error


def _check_the_end(response: UpstreamResponse, meter: StreamMeter) -> None:
    """Whether the end of the body is the end of the answer.

    Not every engine sends `[DONE]` (transformers serve never does), so the end of a framed body is an end. Without
    framing the end of the connection may as well be a crash: then something must have said that it is over.
    """
    if not meter.finish(trio.current_time()):
        raise UpstreamMalformedResponse("the neuron's stream ended in the middle of an event")
    if not response.framed and not (meter.done or meter.finished):
        raise UpstreamConnectionError("the neuron's stream broke off without an end")


async def relay_whole(
    response: UpstreamResponse,
    first: bytes,
    meter: BodyMeter,
    phases: PhaseDeadlines,
    answer: ClientResponse,
    *,
    head: Head,
    translation: Translation,
) -> None:
    """Carry an answer that has to be read whole before it can be said. Raises as `relay_stream` does."""
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
        phases.progressed()
        chunk = await response.receive()
    meter.finish()
    told = translation.whole(b"".join(pieces))
    answer.committed = True
    await answer.respond(*head(), told)


async def relay_body(
    response: UpstreamResponse,
    first: bytes,
    meter: BodyMeter,
    phases: PhaseDeadlines,
    answer: ClientResponse,
    *,
    head: Head,
) -> None:
    """Carry an answer that is no event stream, from its first piece on. Raises as `relay_stream` does."""
    chunk = first
    phases.enter("idle")
    await answer.start(*head())
    answer.committed = True
    while chunk:
        meter.feed(chunk)
        if response.complete:
            break
        await answer.write(chunk)
        phases.progressed()
        chunk = await response.receive()
    await answer.end(chunk)
    meter.finish()
