"""The seam between what clients speak and what neurons do: pure stages around the data plane, no I/O.

    Dialect    one per API; reads a request, and knows how its clients want to hear of errors
    Dialogue   one per request; says what a given neuron is asked
    Translation  one per attempt, and only where the answer is in another dialect, or more than its client asked for:
                 eats it, yields the client's bytes

No dialect has its own routing, deadlines, retries, cancellation, accounting or error path. Pass-through is a dialogue
without a translation, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects.json_splice import ModelField
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError
from gateway.http.streamed_body import StreamedBody

__all__ = ["ClientRequest", "Dialect", "Dialogue", "Outgoing", "Translation"]


class ClientRequest(NamedTuple):
    """What a dialect needs of a client's request. `path` includes the query; `body` is as the client sent it.

    A multipart form has no `body` but a `form`: called with a model name, it returns the form with that name in place
    of the client's. That is bytes if all of it has arrived and is in memory, else a body to be streamed.
    """

    path: bytes
    body: bytes
    model: ModelField
    request_id: str
    form: Callable[[str], bytes | StreamedBody] | None = None


class Translation(Protocol):
    """One answer on its way to the client: a stream by `feed` and `finish`, or all of it by `whole`.

    `error` is set once the stream turns out to have failed; what was returned then ends in the client's own form of an
    error event. `keep_alive` is what fills silence once something has been told.
    """

    @property
    def error(self) -> GatewayError | None:
        """Why the stream failed, or None."""
        ...

    @property
    def keep_alive(self) -> bytes:
        """Bytes that mean nothing to the client, but are some."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """What the client is to get for a piece of the neuron's stream: whole events, often none. Never raises."""
        ...

    def finish(self) -> bytes:
        """The same for the end of the neuron's body, which HTTP says is in order."""
        ...

    def fail(self, error: GatewayError) -> bytes:
        """End a stream of which the client has seen something; nothing if it has ended."""
        ...

    def whole(self, body: bytes) -> bytes:
        """An answer that is no stream. Raises GatewayError if it is none of the dialect's."""
        ...


class Outgoing(NamedTuple):
    """What one neuron is asked. `translation` is None where its answer is the client's, byte for byte.

    `upload` stands in place of `body` for what is sent while it comes in.
    """

    path: bytes
    body: bytes
    translation: Translation | None = None
    upload: StreamedBody | None = None


class Dialogue(Protocol):
    """One request as its dialect understands it."""

    def outgoing(self, model: str, backend: Backend) -> Outgoing:
        """The request for a neuron of this kind that knows the model by this name. May be called again for another.

        Raises:
            BadRequest: It cannot be said in any dialect the neuron speaks; the message names the field.
        """
        ...


class Dialect(Protocol):
    """An API that clients speak. Stateless."""

    def open(self, request: ClientRequest, spoken: frozenset[str]) -> Dialogue:
        """Understand a request, as far as must be before a neuron is chosen.

        Args:
            request: Read, with its model located.
            spoken: The dialects that any configured neuron speaks: a request that none could be passed is refused now.

        Raises:
            BadRequest: What is wrong with it, by field.
        """
        ...

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """An error of ours as the body of an answer with `error.status`."""
        ...

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        """The same as the only event of a stream whose head is out."""
        ...

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:
        """Content type and body for a neuron's error response, to go with the neuron's own status."""
        ...

    def headers(self, request_id: str) -> Headers:
        """What its clients expect on every answer besides our own."""
        ...
