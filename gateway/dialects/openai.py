"""OpenAI's APIs and every other endpoint whose body names its `model`: passed through, only the name is replaced."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from gateway import errors
from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest, OutgoingRequest
from gateway.dialects.chat.pass_through import EngineAnswer, asking_for_stream
from gateway.dialects.include_usage import UsageStripper, asking_for_usage
from gateway.dialects.json_splice import rename, splice
from gateway.dialects.large_bodies.spliced_body import Edit, with_edits
from gateway.dialects.translation.alternation import merged_messages
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError
from gateway.http import sse

__all__ = ["OpenAIDialect", "PassThroughRequest"]


class PassThroughRequest(msgspec.Struct, frozen=True):
    """A request that every neuron gets as the client sent it, but for the model's name."""

    request: ClientRequest
    ignored: ClassVar[bytes] = b""

    def outgoing(self, model: str, backend: Backend) -> OutgoingRequest:
        """The client's bytes with the neuron's model name, and with what the backend's traits ask for.

        That is a request for usage (`ask_usage`), and one message in place of several (`alternating_roles`).
        """
        request = self.request
        if request.form is None and backend.passes_all:
            return OutgoingRequest(request.path, splice(request.body, request.model, model))
        if request.form is not None:
            form = request.form(model)
            if isinstance(form, bytes):
                return OutgoingRequest(request.path, form)
            return OutgoingRequest(request.path, b"", upload=form)
        edits, stripper = self._edits(backend)
        is_completion = self._path in _COMPLETION_PATHS
        translation = EngineAnswer(stripper) if backend.is_engine and is_completion else stripper
        if not edits:
            body = splice(request.body, request.model, model)
        else:
            if model != request.model.name:
                edits.append(rename(request.model, model))
            body = with_edits(request.body, edits, request.model.outline)
        if backend.stops_only_streams and not request.model.stream and isinstance(translation, EngineAnswer):
            body = asking_for_stream(body, ask_usage=backend.ask_usage) or body
        return OutgoingRequest(request.path, body, translation)

    @property
    def _path(self) -> bytes:
        return self.request.path.partition(b"?")[0]

    def _edits(self, backend: Backend) -> tuple[list[Edit], UsageStripper | None]:
        """The edits that the backend's traits ask for, and what removes the effect of one from the answer."""
        request = self.request
        edits: list[Edit] = []
        stripper = None
        if backend.ask_usage and request.model.stream and self._path in _COMPLETION_PATHS:
            outline = request.outline
            usage_option = asking_for_usage(outline.text)  # None if the client has decided about usage itself
            if usage_option is not None:
                start, end, text = usage_option
                edits.append(Edit(outline.offset(start), outline.offset(end), text))
                stripper = UsageStripper()
        if backend.alternating_roles and self._path == _CHAT_PATH:
            merged = merged_messages(request.body)
            if merged is not None:
                edits.append(Edit(*merged))
        return edits, stripper


_CHAT_PATH = b"/v1/chat/completions"
_COMPLETION_PATHS = frozenset({b"/v1/chat/completions", b"/v1/completions"})


class OpenAIDialect:
    """The dialect that neurons speak."""

    __slots__ = ()

    def parse(self, request: ClientRequest, neuron_dialects: frozenset[str]) -> PassThroughRequest:  # noqa: ARG002 - every neuron speaks it
        """Parse nothing: the neuron validates the body."""
        return PassThroughRequest(request)

    def error(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - a header carries it
        """OpenAI's error object."""
        return errors.envelope(error)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - as above
        """OpenAI's error object as an event."""
        return sse.write(errors.envelope(error))

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:  # noqa: ARG002 - as above
        """The neuron's own body, as OpenAI's error object if it is in another form."""
        return response.openai_form()

    def headers(self, request_id: str) -> Headers:  # noqa: ARG002 - as above
        """None: the gateway's own headers suffice."""
        return []
