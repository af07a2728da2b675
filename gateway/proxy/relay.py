"""From the neuron to the client: chunks leave as they come, silence is filled, and an end is never made up.

`Answer` is the client's side of one request, `Pacer` speaks while the neuron is silent, `relay_stream` and
`relay_body` carry. None of them knows how the neuron was chosen or what an error means.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import trio

from gateway.asgi import Headers, Send
from gateway.config.settings import StreamingSettings
from gateway.dialects import Translation
from gateway.errors import GatewayError, UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http import sse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.telemetry.meter import BodyMeter, StreamMeter

__all__ = ["Answer", "ClientGone", "Head", "Pacer", "read_preamble", "relay_body", "relay_stream", "relay_whole"]

Head = Callable[[], tuple[int, Headers]]

WHOLE_LIMIT_BYTES = 64 * 1024 * 1024  # of an answer that has to be translated; the longest are tool calls of 1 MiB
PREAMBLE_LIMIT_BYTES = 64 * 1024  # a role chunk is 200 bytes; more than this is no preamble


class ClientGone(Exception):
    """The client left: nobody to answer, nothing to repair."""


class Answer:
    """What the client has been sent so far of one response. Two tasks may write, never both at once.

    `started` means the status is out, `committed` that bytes of a neuron's answer are: after that no other neuron can
    take over. Methods raise `ClientGone` when there is nobody to write to any more.
    """

    __slots__ = (
        "_comment",
        "_send",
        "_tail",
        "_writing",
        "bytes_sent",
        "committed",
        "ended",
        "ending",
        "first_written_at",
        "keep_alive",
        "started",
        "status",
        "told_all",
    )

    def __init__(self, send: Send) -> None:
        self._send = send
        self._tail = b""
        self._writing = False
        self._comment: trio.Event | None = None
        self.started = False
        self.committed = False
        self.ending = False
        self.ended = False
        self.told_all = False
        """Whether a stream's own terminator is out: OpenAI's SDKs hang up on `[DONE]`, before the body has ended."""
        self.status = 0
        self.bytes_sent = 0
        self.keep_alive = sse.KEEP_ALIVE
        self.first_written_at: float | None = None
        """When the first bytes of a neuron's answer had been handed over, by Trio's clock."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head. With a server that waits for the first bytes of the body, both leave together."""
        self.started = True
        self.status = status
        await self._pass({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send bytes of the body; returns when the client's side has taken them (that is the backpressure)."""
        if self._comment is not None:
            await self._comment.wait()
        self._writing = True
        self._tail = data[-4:] if len(data) >= 4 else (self._tail + data)[-4:]
        self.bytes_sent += len(data)
        try:
            await self._pass({"type": "http.response.body", "body": data, "more_body": True})
            if self.first_written_at is None:
                self.first_written_at = trio.current_time()
        finally:
            self._writing = False

    async def end(self, data: bytes = b"") -> None:
        """Send the last bytes, and that they are the last."""
        if self._comment is not None:
            await self._comment.wait()
        self.bytes_sent += len(data)
        self.ending = True
        try:
            await self._pass({"type": "http.response.body", "body": data, "more_body": False})
        except ClientGone:
            if not self.told_all:
                raise
        self.ended = True

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all of it. From the first step it counts as ending, so that no comment gets in between."""
        self.ending = True
        await self.start(status, headers)
        await self.end(body)

    async def comment(self, head: Head) -> None:
        """Send a keep-alive comment, the head before it if need be; nothing if that would get in between.

        Whoever writes meanwhile waits for it to be out: a comment is never cut in two.
        """
        if self._writing or self.ending or self.told_all or not self.between_events:
            return
        self._comment = done = trio.Event()
        try:
            if not self.started:
                await self.start(*head())
            self.bytes_sent += len(self.keep_alive)
            await self._pass({"type": "http.response.body", "body": self.keep_alive, "more_body": True})
        finally:
            self._comment = None
            done.set()

    async def fail(self, event: bytes) -> None:
        """End a stream with an error event; an event cut off in its midst is ended first, so that it is not joined."""
        cut = b"" if self.between_events else b"\n\n"
        await self.end(cut + event)

    @property
    def between_events(self) -> bool:
        """Whether the stream, as far as it was sent, is not in the middle of an event."""
        return not self._tail or sse.ends_an_event(self._tail)

    async def _pass(self, message: dict[str, object]) -> None:
        try:
            await self._send(message)
        except OSError as error:
            raise ClientGone from error


class Pacer:
    """Keeps a client company: an early 200 when the neuron's head is long in coming, comments while it is silent.

    A task of the request's nursery. `head` tells status and headers to begin with, should it come to that. `opened`
    is for the relay to set when a stream's head has come; `heard` whenever something was written.
    """

    __slots__ = ("_begun", "_early_commit_s", "_keepalive_s", "answer", "head", "head_came", "quiet_since")

    def __init__(self, answer: Answer, settings: StreamingSettings, head: Head) -> None:
        self.answer = answer
        self.head = head
        self._keepalive_s = settings.keepalive_seconds or math.inf
        self._early_commit_s = settings.early_commit_seconds or math.inf
        self._begun = self.quiet_since = trio.current_time()  # begun anew by `run`
        self.head_came = False

    def opened(self, head: Head | None) -> None:
        """A neuron's head is there: from now on silence is filled after `keepalive_seconds`, under that head.

        None leaves it at the one there was to begin with; a second one changes nothing then.
        """
        if head is None and self.head_came:
            return
        self.head = head or self.head
        self.head_came = True
        self.quiet_since = trio.current_time()

    def disable_keepalive(self) -> None:
        """What comes is no stream: not a word from now on, neither an early head nor a comment in its midst."""
        self._keepalive_s = self._early_commit_s = math.inf

    async def run(self) -> None:
        """For as long as the request lasts. Raises ClientGone."""
        self._begun = trio.current_time()
        while True:
            now = trio.current_time()
            due = self._due()
            if due <= now:
                await self.answer.comment(self.head)
                self.quiet_since = trio.current_time()
            else:
                # What is due may come nearer while we sleep (the head comes), but never nearer than one keep-alive.
                await trio.sleep_until(min(due, now + self._keepalive_s))

    def _due(self) -> float:
        if self.head_came or self.answer.started:
            return self.quiet_since + self._keepalive_s
        return self._begun + self._early_commit_s


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
    pacer: Pacer,
    *,
    translation: Translation | None = None,
) -> None:
    """Carry an event stream to its end, from its preamble on: every chunk leaves as it came. The phase is `idle`.

    Raises:
        ClientGone: Nobody to write to.
        UpstreamConnectionError, UpstreamMalformedResponse: The neuron broke off; see `answer.committed` for whether
            the client has seen any of it.
    """
    answer, chunk = pacer.answer, preamble
    phases.enter("idle")
    if translation is not None:
        await _relay_translated(response, meter, phases, pacer, translation, chunk=chunk)
        return
    if chunk and not answer.started:
        await answer.start(*pacer.head())
    answer.committed = True
    while chunk:
        await answer.write(chunk)
        answer.told_all = meter.done
        pacer.quiet_since = trio.current_time()
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
    pacer: Pacer,
    translation: Translation,
    *,
    chunk: bytes,
) -> None:
    """The same with a translation in between. What it finds wrong with the stream is raised, once it has been told."""
    answer = pacer.answer
    while chunk:
        told = translation.feed(chunk)
        if translation.error is not None:
            await _end_in_error(told, translation.error, answer)
        if told:
            if not answer.started:
                await answer.start(*pacer.head())
            answer.committed = True
            answer.keep_alive = translation.keep_alive
            await answer.write(told)
            pacer.quiet_since = trio.current_time()
        answer.told_all = meter.done and answer.committed
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


async def _end_in_error(told: bytes, error: GatewayError, answer: Answer) -> NoReturn:
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
    answer: Answer,
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
    response: UpstreamResponse, first: bytes, meter: BodyMeter, phases: PhaseDeadlines, answer: Answer, *, head: Head
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
