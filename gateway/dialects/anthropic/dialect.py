"""The Messages dialect. A neuron that speaks `/v1/messages` gets the client's body, any other a chat completion."""

from __future__ import annotations

from functools import partial

from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest, OutgoingRequest
from gateway.dialects.anthropic import errors, response
from gateway.dialects.anthropic.request import MessagesAsChat, translate
from gateway.dialects.anthropic.stream import PING, MessagesStream
from gateway.dialects.chat.pass_through import asking_for_stream
from gateway.dialects.chat_translator import ChatTranslation
from gateway.dialects.json_splice import splice
from gateway.dialects.large_bodies.spliced_body import SplicedBody
from gateway.dialects.native.message_form import MessageAssembler, message_stream
from gateway.dialects.native.native_answer import NativeAnswer
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError

__all__ = ["NAME", "MessagesDialect", "ParsedMessagesRequest"]

NAME = "anthropic"
PATH, CHAT_PATH = b"/v1/messages", b"/v1/chat/completions"


class ParsedMessagesRequest:
    """One request to `/v1/messages`."""

    __slots__ = ("_as_chat", "_request")

    def __init__(self, request: ClientRequest, as_chat: MessagesAsChat | None) -> None:
        self._request = request
        self._as_chat = as_chat

    @property
    def as_chat(self) -> MessagesAsChat:
        """The request as a chat completion. Raises BadRequest if it cannot be translated."""
        if self._as_chat is None:
            self._as_chat = translate(self._request.body, self._request.model)
        return self._as_chat

    @property
    def ignored(self) -> bytes:
        """What the translation left out, once it was made."""
        return b"" if self._as_chat is None else self._as_chat.ignored

    def outgoing(self, model: str, backend: Backend) -> OutgoingRequest:
        """The client's body for a neuron that speaks `/v1/messages`, else a chat completion. Raises BadRequest."""
        request = self._request
        if NAME in backend.dialects:
            return self._native(splice(request.body, request.model, model), backend)
        context = self.as_chat.context(request.request_id, model, backend)
        whole = partial(response.translate, context=context)
        translation = ChatTranslation(MessagesStream(context), whole, keepalive_bytes=PING)
        body = self.as_chat.encode(model, backend)
        if backend.stops_only_streams and not request.model.stream:
            body = asking_for_stream(body, ask_usage=backend.ask_usage) or body
        return OutgoingRequest(CHAT_PATH, body, translation, ignored=self.as_chat.ignored_by(backend))

    def _native(self, body: bytes | SplicedBody, backend: Backend) -> OutgoingRequest:
        """The client's request for a neuron of its dialect. The answer of an engine is converted if need be."""
        request = self._request
        if not backend.is_engine or request.path.partition(b"?")[0] != PATH:
            return OutgoingRequest(request.path, body)
        error_event = partial(errors.event, request_id=request.request_id)
        if backend.stops_only_streams and not request.model.stream:
            body = asking_for_stream(body, ask_usage=False) or body
        return OutgoingRequest(request.path, body, NativeAnswer(MessageAssembler, message_stream, error_event))


class MessagesDialect:
    """The API of Anthropic's SDKs and of coding agents."""

    __slots__ = ()

    def parse(self, request: ClientRequest, neuron_dialects: frozenset[str]) -> ParsedMessagesRequest:
        """Translate the request now, unless a neuron speaks Messages: it may understand more than the translation."""
        as_chat = None if NAME in neuron_dialects else translate(request.body, request.model)
        return ParsedMessagesRequest(request, as_chat)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """Anthropic's error object."""
        return errors.body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        """Anthropic's error object as an `error` event."""
        return errors.event(error, request_id)

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:
        """The neuron's error message in Anthropic's error object."""
        return b"application/json", errors.upstream_error_body(response, request_id)

    def headers(self, request_id: str) -> Headers:
        """The request id under the name that Anthropic's SDKs read."""
        return [(b"request-id", request_id.encode())]
