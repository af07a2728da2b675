"""Falling back: other models of an alias's `fallback` list, if no replica of the resolved model can serve a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from catalogue.models import Catalogue
from gateway import errors
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.fleet.state import Fleet
from gateway.proxy.context_length import refuse_if_too_long
from gateway.proxy.request import InferenceRequest
from gateway.proxy.response.client_response import ClientResponse
from gateway.telemetry.request_record import RequestRecord

__all__ = ["Fallbacks", "Unserved"]

# The errors that another model may not have. A request that is wrong is wrong for every model.
_ANOTHER_MODEL_MAY_SERVE = (
    errors.ModelNotFound,
    errors.ServiceUnavailable,
    errors.UpstreamError,
    errors.DeadlineExceeded,
)


class Unserved(NamedTuple):
    """Why no replica of a model served the request.

    The client gets `refusal`, a neuron's error response, if there is one, else `error`. `model` and `node` are those of
    the last attempt.
    """

    error: errors.GatewayError
    refusal: UpstreamErrorResponse | None
    model: str | None
    node: str | None


class Fallbacks:
    """The fallback models of one request that are left to try."""

    __slots__ = ("_catalogue", "_client", "_fleet", "_record", "_request", "models")

    def __init__(
        self,
        models: list[str],
        request: InferenceRequest,
        client: ClientResponse,
        record: RequestRecord,
        *,
        catalogue: Catalogue,
        fleet: Fleet,
    ) -> None:
        self.models = models
        self._request = request
        self._client = client
        self._record = record
        self._catalogue = catalogue
        self._fleet = fleet

    async def serve(self, first: Unserved, serve_model: Callable[[str], Awaitable[Unserved | None]]) -> Unserved | None:
        """Try the models in order. Returns None once the client is answered, else `first`: that is what it gets."""
        unserved = first
        while self._may_fall_back(unserved) and (model := await self._next_model()) is not None:
            self._record.routing.fell_back(model, unserved.error)
            result = await serve_model(model)
            if result is None:
                return None
            unserved = result
        return first

    def _may_fall_back(self, unserved: Unserved) -> bool:
        """Not once the client has seen part of an answer, and not if the request was cancelled."""
        phases = self._record.phases
        if self._client.committed or (phases is not None and phases.interrupted) or not self._request.can_be_sent:
            return False
        if isinstance(unserved.error, errors.ShuttingDown):
            return False
        return unserved.refusal is not None or isinstance(unserved.error, _ANOTHER_MODEL_MAY_SERVE)

    async def _next_model(self) -> str | None:
        """The next model that can take the prompt; it and those before it leave the list."""
        while self.models:
            model = self.models.pop(0)
            try:
                await refuse_if_too_long(self._request, model, self._catalogue, self._fleet)
            except errors.ContextLengthExceeded as error:
                self._record.routing.skipped_fallback(model, error)
            else:
                return model
        return None
