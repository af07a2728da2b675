"""Anthropic Messages at the seam: which request is passed through, which is translated, and how. No I/O.

A neuron that speaks `/v1/messages` itself gets the body as it came. Any other is asked for a chat completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import sse
from gateway.asgi import Headers
from gateway.backend import Backend
from gateway.dialects import Outgoing
from gateway.dialects.anthropic import errors, response
from gateway.dialects.anthropic.answer import Asked
from gateway.dialects.anthropic.request import Translated, translate
from gateway.dialects.anthropic.stream import PING, StreamTranslator
from gateway.errors import GatewayError, UpstreamMalformedResponse
from gateway.refusal import Refusal
from gateway.rewrite import splice

if TYPE_CHECKING:
    from gateway.request import InferenceRequest

__all__ = ["NAME", "Messages", "MessagesDialogue", "MessagesTranslation"]

NAME = "anthropic"
CHAT_PATH = b"/v1/chat/completions"


class MessagesTranslation:
    """One chat completion on its way back to a Messages client."""

    __slots__ = ("_asked", "_reader", "_translator")

    keep_alive = PING

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._reader = sse.Reader()
        self._translator = StreamTranslator(asked)

    @property
    def error(self) -> GatewayError | None:
        """Why the stream failed, or None."""
        return self._translator.error

    def feed(self, chunk: bytes) -> bytes:
        """The Messages events for a piece of the neuron's stream."""
        try:
            events = self._reader.feed(chunk)
        except sse.EventTooLong as error:
            return self._translator.fail(UpstreamMalformedResponse(f"the neuron sent {error}"))
        if len(events) == 1:
            return self._translator.feed(events[0].data)
        return b"".join([self._translator.feed(event.data) for event in events])

    def finish(self) -> bytes:
        """The last events. What the neuron sent without the blank line that ends an event counts too."""
        return self.feed(b"\n\n") + self._translator.finish()

    def fail(self, error: GatewayError) -> bytes:
        """An `error` event, unless the stream has ended."""
        return self._translator.fail(error)

    def whole(self, body: bytes) -> bytes:
        """The Message for a whole chat completion."""
        return response.translate(body, self._asked)


class MessagesDialogue:
    """One request to `/v1/messages`."""

    __slots__ = ("_request", "_translated")

    def __init__(self, request: InferenceRequest, translated: Translated | None) -> None:
        self._request = request
        self._translated = translated

    @property
    def translated(self) -> Translated:
        """The request, understood. Raises BadRequest."""
        if self._translated is None:
            self._translated = translate(self._request.body, self._request.model)
        return self._translated

    def outgoing(self, model: str, backend: Backend) -> Outgoing:
        """As it came for a neuron that speaks it, else a chat completion."""
        request = self._request
        if NAME in backend.dialects:
            return Outgoing(request.path, splice(request.body, request.model, model))
        asked = self.translated.asked(request.request_id, model)
        return Outgoing(CHAT_PATH, self.translated.encode(model, backend), MessagesTranslation(asked))


class Messages:
    """The dialect of Anthropic's SDKs and of coding agents."""

    __slots__ = ()

    def open(self, request: InferenceRequest, spoken: frozenset[str]) -> MessagesDialogue:
        """Understand it now, unless some neuron might take it as it is: such a one may know more than we do."""
        translated = None if NAME in spoken else translate(request.body, request.model)
        return MessagesDialogue(request, translated)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """Anthropic's error object."""
        return errors.body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        """The same as an `error` event."""
        return errors.event(error, request_id)

    def refusal(self, refusal: Refusal, request_id: str) -> tuple[bytes, bytes]:
        """The neuron's words in Anthropic's error object."""
        return b"application/json", errors.translate(refusal.status, refusal.body, request_id)

    def headers(self, request_id: str) -> Headers:
        """What its SDKs show as the id of the request."""
        return [(b"request-id", request_id.encode())]
