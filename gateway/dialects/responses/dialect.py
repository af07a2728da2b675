"""OpenAI Responses at the seam: which request is passed through, which is translated, and how. No I/O.

A neuron that speaks `/v1/responses` itself gets the body as it came. Any other is asked for a chat completion.
"""

from __future__ import annotations

from functools import partial

from gateway import errors as gateway_errors
from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest, Outgoing
from gateway.dialects.chat_translator import FromChat
from gateway.dialects.json_splice import splice
from gateway.dialects.responses import errors, response
from gateway.dialects.responses.request import Translated, translate
from gateway.dialects.responses.stream import ResponsesStream
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError

__all__ = ["NAME", "Responses", "ResponsesDialogue"]

NAME = "responses"
CHAT_PATH = b"/v1/chat/completions"


class ResponsesDialogue:
    """One request to `/v1/responses`."""

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
        translation = FromChat(ResponsesStream(asked), partial(response.translate, asked=asked))
        return Outgoing(CHAT_PATH, self.translated.encode(model, backend), translation)


class Responses:
    """The newer API of OpenAI's SDKs, and the only one of some coding agents."""

    __slots__ = ()

    def open(self, request: ClientRequest, spoken: frozenset[str]) -> ResponsesDialogue:
        """Understand it now, unless some neuron might take it as it is: such a one may know more than we do."""
        translated = None if NAME in spoken else translate(request.body, request.model)
        return ResponsesDialogue(request, translated)

    def error(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - it goes out as a header
        """The envelope of contract section 10: this API's own."""
        return gateway_errors.envelope(error)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - as above
        """An `error` event. Its number is 0: nobody knows how many a neuron that was passed through has sent."""
        return errors.event(error, 0)

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:  # noqa: ARG002 - as above
        """The neuron's own body, as OpenAI's error object if it is in another form."""
        return response.openai_form()

    def headers(self, request_id: str) -> Headers:  # noqa: ARG002 - as above
        """None: ours have them all."""
        return []
