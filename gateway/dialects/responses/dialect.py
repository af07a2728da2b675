"""The Responses dialect. A neuron that speaks `/v1/responses` gets the client's body, any other a chat completion."""

from __future__ import annotations

from functools import partial

from gateway import errors as gateway_errors
from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest, OutgoingRequest
from gateway.dialects.chat.answer_id import new_answer_id
from gateway.dialects.chat.pass_through import asking_for_stream
from gateway.dialects.chat_translator import ChatTranslation
from gateway.dialects.json_splice import splice
from gateway.dialects.large_bodies.spliced_body import SplicedBody
from gateway.dialects.native.native_answer import NativeAnswer
from gateway.dialects.native.response_form import ResponseAssembler, response_stream
from gateway.dialects.responses import errors, response
from gateway.dialects.responses.request import ResponsesAsChat, translate
from gateway.dialects.responses.stream import ResponsesStream
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError

__all__ = ["NAME", "ParsedResponsesRequest", "ResponsesDialect"]

NAME = "responses"
CHAT_PATH = b"/v1/chat/completions"


class ParsedResponsesRequest:
    """One request to `/v1/responses`."""

    __slots__ = ("_as_chat", "_request")

    def __init__(self, request: ClientRequest, as_chat: ResponsesAsChat | None) -> None:
        self._request = request
        self._as_chat = as_chat

    @property
    def ignored(self) -> bytes:
        """What the translation left out, once it was made."""
        return b"" if self._as_chat is None else self._as_chat.ignored

    def outgoing(self, model: str, backend: Backend) -> OutgoingRequest:
        """The client's body for a neuron that speaks `/v1/responses`, else a chat completion. Raises BadRequest."""
        request = self._request
        if NAME in backend.dialects:
            return self._native(splice(request.body, request.model, model), backend)
        if self._as_chat is None:
            self._as_chat = translate(request.body, request.model, request.secret_key)
        context = self._as_chat.context(new_answer_id(), model)
        translation = ChatTranslation(ResponsesStream(context), partial(response.translate, context=context))
        body = self._as_chat.encode(model, backend)
        if backend.stops_only_streams and not request.model.stream:
            body = asking_for_stream(body, ask_usage=backend.ask_usage) or body
        return OutgoingRequest(CHAT_PATH, body, translation, ignored=self._as_chat.ignored_by(backend))

    def _native(self, body: bytes | SplicedBody, backend: Backend) -> OutgoingRequest:
        """The client's request for a neuron of its dialect. The answer of an engine is converted if need be."""
        request = self._request
        if not backend.is_engine:
            return OutgoingRequest(request.path, body)
        error_event = partial(errors.event, sequence_number=0)
        if backend.stops_only_streams and not request.model.stream:
            body = asking_for_stream(body, ask_usage=False) or body
        return OutgoingRequest(request.path, body, NativeAnswer(ResponseAssembler, response_stream, error_event))


class ResponsesDialect:
    """The newer API of OpenAI's SDKs, and the only one of some coding agents."""

    __slots__ = ()

    def parse(self, request: ClientRequest, neuron_dialects: frozenset[str]) -> ParsedResponsesRequest:
        """Translate the request now, unless a neuron speaks Responses: it may understand more than the translation."""
        as_chat = None if NAME in neuron_dialects else translate(request.body, request.model, request.secret_key)
        return ParsedResponsesRequest(request, as_chat)

    def error(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - a header carries it
        """OpenAI's error object."""
        return gateway_errors.envelope(error)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - as above
        """An `error` event. Its sequence number is 0: events of a neuron that pass through are not counted."""
        return errors.event(error, 0)

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:  # noqa: ARG002 - as above
        """The neuron's own body, as OpenAI's error object if it is in another form or about the prompt's length."""
        return response.openai_form_with_code()

    def headers(self, request_id: str) -> Headers:  # noqa: ARG002 - as above
        """None: the gateway's own headers suffice."""
        return []
