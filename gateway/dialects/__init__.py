"""Dialects: the APIs that clients speak (OpenAI chat, Anthropic Messages, Responses), translated for neurons.

    Dialect          one per API: parses a request, and writes errors in its API's format
    ParsedRequest    one per request: writes the outgoing request for a given neuron
    Translation      one per attempt, if the neuron's answer must change: takes its events, returns the client's bytes

Here: bytes in, bytes out, and what those bytes mean, also for requests that pass through: the model's name and place in
a body, usage, tool calls, sticky keys, error texts. No clock, and no I/O but `UpstreamErrorResponse.read`.

Not here: routing, deadlines, retries, cancellation and accounting, which are the same for every dialect; how bytes
become events (`gateway.http.sse`); which paths belong to which dialect (`gateway.proxy.endpoints`).

A request whose neuron speaks the client's dialect passes through without a translation, and costs nothing extra.

Read the protocols in this file first, then `openai` for requests that pass through, then `anthropic.dialect`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects.json_splice import ModelField
from gateway.dialects.large_bodies.outline import Outline
from gateway.dialects.large_bodies.spliced_body import SplicedBody
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError
from gateway.http.sse import Event
from gateway.http.streamed_body import StreamedBody

__all__ = ["AnswerAssembler", "ClientRequest", "Dialect", "OutgoingRequest", "ParsedRequest", "Translation"]


class ClientRequest(msgspec.Struct, frozen=True):
    """What a dialect needs of a client's request. `path` includes the query; `body` is as the client sent it.

    `secret_key` authenticates what the gateway gives clients to send back.

    A multipart form has no `body` but a `form`: called with a model name, it returns the form with that name in place
    of the client's. That is bytes if all of it has arrived and is in memory, else a body to be streamed.
    """

    path: bytes
    body: bytes
    model: ModelField
    request_id: str
    form: Callable[[str], bytes | StreamedBody] | None = None
    secret_key: bytes = b""

    @property
    def outline(self) -> Outline:
        """The body for parsers that look for single members."""
        return self.model.outline or Outline(self.body)


class AnswerAssembler(Protocol):
    """Puts the answer of a stream together, in the upstream's dialect."""

    def feed(self, events: Sequence[Event]) -> None:
        """Take in events of the stream. Raises GatewayError if one is malformed or reports an error."""
        ...

    def body(self) -> bytes:
        """The whole answer. Raises GatewayError if the stream ended before it did, or had none."""
        ...


class Translation(Protocol):
    """Turns one answer into what the client gets: a stream by `feed` and `finish`, a whole answer by `whole`.

    The bytes that make `error` set end with the client's own form of an error event.
    """

    @property
    def error(self) -> GatewayError | None:
        """Why the stream failed, or None."""
        ...

    @property
    def keepalive_bytes(self) -> bytes:
        """What to send to the client while the upstream is silent."""
        ...

    @property
    def passes_text(self) -> bool:
        """Whether events with nothing but text leave as they came (`Event.raw`), so that they need not be framed."""
        ...

    @property
    def held_limit_bytes(self) -> int:
        """An unfinished event longer than this is sent to the client as it arrives."""
        ...

    @property
    def converts(self) -> bool:
        """Whether `stream_of` is there, and `whole` takes what the `assembler` makes of a stream."""
        ...

    @property
    def assembler(self) -> Callable[[], AnswerAssembler]:
        """Makes what puts a stream of the upstream's together, if `converts`."""
        ...

    def feed(self, events: Sequence[Event]) -> bytes:
        """What the client gets for these events: whole events, often none. Never raises."""
        ...

    def finish(self) -> bytes:
        """What the client gets at the end of a complete upstream body, after its last event was fed."""
        ...

    def fail(self, error: GatewayError) -> bytes:
        """The error event that ends a stream of which the client has seen something; nothing if it has ended."""
        ...

    def whole(self, body: bytes) -> bytes:
        """The client's body for a whole answer.

        Raises:
            GatewayError: `body` is not an answer of the upstream's dialect.
        """
        ...

    def stream_of(self, body: bytes) -> bytes:
        """The client's whole stream for a whole answer: the upstream did not stream. Raises GatewayError as `whole`."""
        ...


class OutgoingRequest(msgspec.Struct, frozen=True):
    """A request to a neuron. `translation` is None if the neuron's answer goes to the client byte for byte.

    `upload` replaces `body` if the body is sent while it still arrives from the client. `ignored` is the value of the
    response header `x-cortex-ignored`: what a translation left out, or nothing.
    """

    path: bytes
    body: bytes | SplicedBody
    translation: Translation | None = None
    upload: StreamedBody | None = None
    ignored: bytes = b""


class ParsedRequest(Protocol):
    """One request as its dialect understands it."""

    @property
    def ignored(self) -> bytes:
        """The value of the response header `x-cortex-ignored`, once a translation was made; until then nothing."""
        ...

    def outgoing(self, model: str, backend: Backend) -> OutgoingRequest:
        """The request to a neuron of this kind that knows the model as `model`. A retry calls it again.

        Raises:
            BadRequest: No dialect of this neuron can express the request; the message names the field.
        """
        ...


class Dialect(Protocol):
    """An API that clients speak. Stateless."""

    def parse(self, request: ClientRequest, neuron_dialects: frozenset[str]) -> ParsedRequest:
        """Parse a request, as far as must be done before a neuron is chosen.

        Args:
            request: The client's request, with its model located.
            neuron_dialects: The dialects that at least one configured neuron speaks. A request that cannot be
                translated is rejected now if no neuron could take it as it is.

        Raises:
            BadRequest: The message and `param` name the field.
        """
        ...

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The response body for an error of the gateway, to go with `error.status`."""
        ...

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        """The same error as the only event of a stream whose response head has been sent."""
        ...

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:
        """Content type and body for a neuron's error response, to go with the neuron's own status."""
        ...

    def headers(self, request_id: str) -> Headers:
        """Headers that this API's clients expect on every response, besides the gateway's own."""
        ...
