"""`/v1/messages/count_tokens`: the length of a prompt in tokens. It never loads a model.

A neuron that has the endpoint itself gets the request as it is. A neuron with a tokenizer API counts the translated
messages. Without either, or if that fails, the gateway estimates the count, and a header says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
import structlog
import trio

from catalogue.resolve import resolve
from gateway import errors
from gateway.dialects import OutgoingRequest
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic.dialect import NAME, ParsedMessagesRequest
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import choose
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.body.off_loop import off_loop
from gateway.proxy.context import ProxyContext
from gateway.proxy.request import InferenceRequest, outgoing_headers
from gateway.proxy.response import response_headers
from gateway.proxy.response.client_response import ClientResponse
from gateway.telemetry.request_record import RequestRecord

__all__ = ["CountTokens"]

COUNT_DEADLINE_S = 5.0  # a client prefers an estimate now to a count later
ANSWER_LIMIT_BYTES = 16 * 1024 * 1024  # vLLM lists every token beside their number

TOKENIZE_PATH = b"/tokenize"
ESTIMATE_HEADER = (b"x-cortex-token-count", b"estimate")
"""Goes with a count that the gateway estimated because no neuron could count."""

log = structlog.get_logger("cortex.counting")


class CountTokens:
    """One request for a token count. Call `run` once."""

    __slots__ = ("_client", "_context", "_record", "_request")

    def __init__(
        self, context: ProxyContext, request: InferenceRequest, client: ClientResponse, record: RequestRecord
    ) -> None:
        self._context = context
        self._request = request
        self._client = client
        self._record = record

    async def run(self) -> None:
        """Answer the client. Raises ModelNotFound, BadRequest, ClientGone, RateLimited or InsufficientQuota."""
        account = self._request.account
        if account is None:
            await self._answer()
            return
        account.reserve()
        try:
            await self._answer()
        finally:
            account.settle()

    async def _answer(self) -> None:
        tokens = None
        route = self._find_route()
        if route is not None:
            outgoing = await off_loop(self._request.body, partial(self._outgoing, route))
            tokens = None if outgoing is None else await self._count_at(route, outgoing)
        headers = response_headers.of_gateway(self._record, self._request.dialect.headers(self._record.request_id))
        if tokens is None:
            tokens = await off_loop(self._request.body, lambda: self._parsed.as_chat.input_tokens)
            headers.append(ESTIMATE_HEADER)
        await self._client.respond(200, headers, messages_response.token_count_body(tokens))
        self._record.outcome = "ok"

    def _find_route(self) -> Route | None:
        """A replica of the model; None if the model would have to be loaded first."""
        catalogue = self._context.catalogue.current
        resolution = resolve(catalogue, self._request.model.name, self._request.key_of)
        routing = self._record.routing
        routing.alias, routing.model, routing.generation = resolution.alias, resolution.model, catalogue.generation
        try:
            decision = choose(resolution.model, self._context.fleet, catalogue)
        except errors.ModelNotFound:
            routing.is_unknown_model = resolution.alias is None
            raise
        except errors.ServiceUnavailable:
            return None
        return decision if isinstance(decision, Route) else None

    def _outgoing(self, route: Route) -> OutgoingRequest | None:
        """The request for this neuron; None if it cannot count."""
        name = neuron_model_name(route)
        if NAME in route.backend.dialects:
            return self._parsed.outgoing(name, route.backend)
        if not route.backend.tokenizer:
            return None
        return OutgoingRequest(TOKENIZE_PATH, _tokenize_body(self._parsed.as_chat.encode(name, route.backend)))

    async def _count_at(self, route: Route, outgoing: OutgoingRequest) -> int | None:
        """The neuron's count; None if it does not give one."""
        lease = self._context.fleet.lease(route.node, route.model_id, gpu_use=self._record.gpu_use)
        with trio.move_on_after(COUNT_DEADLINE_S), lease:
            try:
                return await self._exchange(route, outgoing)
            except errors.GatewayError as error:
                log.info("count_failed", node=route.node, model=route.model_id, reason=error.message)
        return None

    async def _exchange(self, route: Route, outgoing: OutgoingRequest) -> int | None:
        headers = outgoing_headers(self._request, outgoing.path, self._context.settings.gateway.pass_request_headers)
        origin, message = build_request(route, outgoing.path, headers, outgoing.body)
        with (
            PhaseDeadlines(self._context.settings.deadlines) as phases,
            self._context.upstream.exchange(origin, message, phases) as exchange,
        ):
            response = await exchange.response()
            if response.status != 200 or response.header(ESTIMATE_HEADER[0]) is not None:
                return None  # another cortex estimated; this one's own estimate is as good, and is marked as one
            response.decode_body()
            body = b""
            while len(body) < ANSWER_LIMIT_BYTES and (piece := await response.receive()):
                body += piece
            return _count_in(body)

    @property
    def _parsed(self) -> ParsedMessagesRequest:
        parsed = self._request.parsed
        if not isinstance(parsed, ParsedMessagesRequest):
            raise TypeError("only the tokens of Messages requests can be counted")
        return parsed


def _tokenize_body(chat_body: bytes) -> bytes:
    """The body for vLLM's `/tokenize` (docs.vllm.ai, "Tokenizer API"): what the chat template uses."""
    chat: Mapping[str, Any] = msgspec.json.decode(chat_body)
    return msgspec.json.encode({key: chat[key] for key in ("model", "messages", "tools") if key in chat})


class _Counted(msgspec.Struct):
    """Anthropic's answer (`input_tokens`) or a tokenizer's (`count`)."""

    input_tokens: int | None = None
    count: int | None = None


def _count_in(body: bytes) -> int | None:
    try:
        counted = msgspec.json.decode(body, type=_Counted)
    except msgspec.DecodeError:
        return None
    return counted.count if counted.input_tokens is None else counted.input_tokens
