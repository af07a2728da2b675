"""OpenAI's API, and every other endpoint whose body names its `model`: passed through, only the name is replaced."""

from __future__ import annotations

import msgspec

from gateway import errors
from gateway.asgi import Headers
from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest, Outgoing
from gateway.dialects.include_usage import Edit, UsageStripper, asking_for_usage, edited
from gateway.dialects.json_splice import splice
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.errors import GatewayError
from gateway.http import sse

__all__ = ["OpenAI", "PassThrough"]


class PassThrough:
    """A request that every neuron is asked as it came."""

    __slots__ = ("_request",)

    def __init__(self, request: ClientRequest) -> None:
        self._request = request

    def outgoing(self, model: str, backend: Backend) -> Outgoing:
        """The same bytes, but for the model's name (`rewrite.splice`, `Upload`), and the wish for usage (`usage`)."""
        request = self._request
        if request.form is None:
            if backend.ask_usage and request.model.stream and request.path.partition(b"?")[0] in _WITH_USAGE:
                return self._asking(model)
            return Outgoing(request.path, splice(request.body, request.model, model))
        form = request.form(model)
        return Outgoing(request.path, form) if isinstance(form, bytes) else Outgoing(request.path, b"", upload=form)

    def _asking(self, model: str) -> Outgoing:
        """The same, and it asks for usage of our own accord, unless the client has decided about that itself."""
        path, body, field = self._request.path, self._request.body, self._request.model
        wish = asking_for_usage(body)
        if wish is None:
            return Outgoing(path, splice(body, field, model))
        edits = [wish]
        if model != field.name:
            edits.append(Edit(field.start, field.end, msgspec.json.encode(model)))
        return Outgoing(path, edited(body, *edits), UsageStripper())


_WITH_USAGE = frozenset({b"/v1/chat/completions", b"/v1/completions"})


class OpenAI:
    """The dialect of the data plane itself."""

    __slots__ = ()

    def open(self, request: ClientRequest, spoken: frozenset[str]) -> PassThrough:  # noqa: ARG002 - all speak it
        """Nothing to understand: the neuron judges what is in the body."""
        return PassThrough(request)

    def error(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - it goes out as a header
        """The envelope of contract section 10."""
        return errors.envelope(error)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - as above
        """The envelope as an event."""
        return sse.write(errors.envelope(error))

    def upstream_error(self, response: UpstreamErrorResponse, request_id: str) -> tuple[bytes, bytes]:  # noqa: ARG002 - as above
        """The neuron's own body, as OpenAI's error object if it is in another form."""
        return response.openai_form()

    def headers(self, request_id: str) -> Headers:  # noqa: ARG002 - as above
        """None: ours have them all."""
        return []
