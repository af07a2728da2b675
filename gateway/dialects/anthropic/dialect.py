"""Anthropic Messages at the seam: which request is passed through, which is translated, and how. No I/O.

A neuron that speaks `/v1/messages` itself gets the body as it came. Any other is asked for a chat completion.
"""

from __future__ import annotations

from functools import partial

from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest, Outgoing
from gateway.dialects.anthropic import errors, response
from gateway.dialects.anthropic.request import Translated, translate
from gateway.dialects.anthropic.stream import PING, MessagesStream
from gateway.dialects.chat_translator import FromChat
from gateway.dialects.json_splice import splice
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError

__all__ = ["NAME", "Messages", "MessagesDialogue"]

NAME = "anthropic"
CHAT_PATH = b"/v1/chat/completions"


class MessagesDialogue:
    """One request to `/v1/messages`."""

    __slots__ = ("_request", "_translated")

    def __init__(self, request: ClientRequest, translated: Translated | None) -> None:
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
        whole = partial(response.translate, asked=asked)
        translation = FromChat(MessagesStream(asked), whole, keep_alive=PING)
        return Outgoing(CHAT_PATH, self.translated.encode(model, backend), translation)


class Messages:
    """The dialect of Anthropic's SDKs and of coding agents."""

    __slots__ = ()

    def open(self, request: ClientRequest, spoken: frozenset[str]) -> MessagesDialogue:
        """Understand it now, unless some neuron might take it as it is: such a one may know more than we do."""
        translated = None if NAME in spoken else translate(request.body, request.model)
        return MessagesDialogue(request, translated)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """Anthropic's error object."""
        return errors.body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        """The same as an `error` event."""
        return errors.event(error, request_id)

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:
        """The neuron's error message in Anthropic's error object."""
        return b"application/json", errors.upstream_error_body(response, request_id)

    def headers(self, request_id: str) -> Headers:
        """What its SDKs show as the id of the request."""
        return [(b"request-id", request_id.encode())]
