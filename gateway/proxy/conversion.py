"""A neuron's answer in another form than the client asked for: a stream for a whole answer, or the reverse.

Which form an answer has, its first bytes tell better than its content type: some servers label every answer as JSON.
What the form is made of, the translation knows (`dialects/chat/assemble.py`, `dialects/native/`); here it is read and
sent.
"""

from __future__ import annotations

from functools import partial

import trio

from gateway.dialects import Translation
from gateway.errors import UpstreamMalformedResponse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy.body.off_loop import LARGE_BYTES, in_thread, off_loop
from gateway.proxy.relay import WHOLE_LIMIT_BYTES
from gateway.proxy.response.client_response import ClientResponse, Head
from gateway.proxy.upstream_stream import UpstreamStream

__all__ = ["first_bytes", "is_event_stream", "read_whole", "relay_assembled", "relay_converted"]

_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


async def first_bytes(response: UpstreamResponse, phases: PhaseDeadlines) -> bytes:
    """The body up to the first bytes that are not white space; `b""` if there are none."""
    first = b""
    while piece := await response.receive():
        phases.received_at = trio.current_time()
        first += piece
        if first.strip():
            break
    return first


def is_event_stream(first: bytes, *, labelled: bool) -> bool:
    """Whether a body that begins so is an event stream. `labelled`: its content type says so."""
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if labelled:
        return not text.startswith((b"{", b"["))
    return text.startswith(_FIELDS)


async def relay_assembled(
    stream: UpstreamStream, phases: PhaseDeadlines, client: ClientResponse, *, head: Head, translation: Translation
) -> None:
    """Read an event stream to its end and send the client one whole answer.

    Args:
        stream: Nothing of it was read yet, but for its first bytes. It frames everything.
        phases: The request's.
        client: The client's response.
        head: Status and headers of the whole answer.
        translation: Turns a whole answer into the client's.

    Raises:
        ClientGone: The client has disconnected.
        GatewayError: The upstream broke off or reported an error; the client has seen nothing.
    """
    assembler = translation.assembler()
    size = 0
    while chunk := await stream.receive():
        phases.received_at = trio.current_time()
        if size == 0:
            phases.enter("idle")
        size += len(chunk)
        if size > WHOLE_LIMIT_BYTES:
            raise UpstreamMalformedResponse(f"the neuron's answer is longer than {WHOLE_LIMIT_BYTES} bytes")
        assembler.feed(stream.events or ())
        phases.progressed()
    stream.end(trio.current_time())
    assembler.feed(stream.events or ())
    body = await in_thread(assembler.body) if size > LARGE_BYTES else assembler.body()
    body = await off_loop(body, partial(translation.whole, body))
    client.committed = True
    await client.respond(*head(), body)


async def relay_converted(body: bytes, client: ClientResponse, *, head: Head, translation: Translation) -> None:
    """Send the client the stream of a whole answer. Raises as `relay_assembled` does."""
    converted = await off_loop(body, partial(translation.stream_of, body))
    if not client.started:
        await client.start(*head())
    client.committed = True
    await client.end(converted)


async def read_whole(response: UpstreamResponse, first: bytes, phases: PhaseDeadlines) -> bytes:
    """The rest of a body, after its first bytes."""
    pieces, size, chunk = [], 0, first
    phases.enter("idle")
    while chunk:
        pieces.append(chunk)
        size += len(chunk)
        if size > WHOLE_LIMIT_BYTES:
            raise UpstreamMalformedResponse(f"the neuron's answer is longer than {WHOLE_LIMIT_BYTES} bytes")
        phases.progressed()
        chunk = await response.receive()
    return b"".join(pieces)
