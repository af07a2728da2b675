"""`/v1/messages/count_tokens`: how long a prompt is, without loading a model for it.

By the best means at hand: a neuron that speaks the endpoint itself is asked as it is; one with a tokenizer API counts
the translated messages; otherwise, and whenever that fails, the count is an estimate and a header says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
import trio

from catalogue.resolve import resolve
from gateway import errors
from gateway.dialects import Outgoing
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic.dialect import NAME, MessagesDialogue
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.routing.choose import Route, choose
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy import response_headers
from gateway.proxy.client_response import ClientResponse
from gateway.proxy.request import InferenceRequest, outgoing_headers
from gateway.telemetry.request_record import Record

if TYPE_CHECKING:
    from gateway.proxy.app import Inference

__all__ = ["Count"]

COUNT_DEADLINE_S = 5.0  # an estimate now is worth more to a client than a count later
ANSWER_LIMIT_BYTES = 16 * 1024 * 1024  # vLLM lists every token beside their number

TOKENIZE_PATH = b"/tokenize"
ESTIMATE_HEADER = (b"x-cortex-token-count", b"estimate")
"""Goes with a count that the gateway estimated because no neuron could count."""

log = structlog.get_logger("cortex.counting")


class Count:
    """One such request. `run` once."""

    __slots__ = ("_answer", "_record", "_request", "_shared")

    def __init__(self, shared: Inference, request: InferenceRequest, answer: ClientResponse, record: Record) -> None:
        self._shared = shared
        self._request = request
        self._answer = answer
        self._record = record

    async def run(self) -> None:
        """Raises what `errors` has for a model that nobody knows, or ClientGone."""
        route = self._find_route()
        question = None if route is None else self._question(route)
        tokens = None if route is None or question is None else await self._ask(route, question)
        await self._tell(tokens)
        self._record.outcome = "ok"

    def _find_route(self) -> Route | None:
        """Where the model is now; None if it would have to be loaded: that is not worth a number."""
        catalogue = self._shared.catalogue.current
        resolution = resolve(catalogue, self._request.model.name, self._request.key_of)
        self._record.alias, self._record.model = resolution.alias, resolution.model
        try:
            decision = choose(resolution.model, self._shared.fleet, catalogue)
        except errors.ModelNotFound:
            self._record.is_unknown_model = resolution.alias is None
            raise
        except errors.ServiceUnavailable:
            return None
        return decision if isinstance(decision, Route) else None

    def _question(self, route: Route) -> Outgoing | None:
        """What this neuron has to be asked; None if it cannot count."""
        name = neuron_model_name(route)
        if NAME in route.backend.dialects:
            return self._dialogue.outgoing(name, route.backend)
        if not route.backend.tokenizer:
            return None
        return Outgoing(TOKENIZE_PATH, _conversation(self._dialogue.translated.encode(name, route.backend)))

    async def _ask(self, route: Route, question: Outgoing) -> int | None:
        """The neuron's own count, or None if it would not say."""
        with trio.move_on_after(COUNT_DEADLINE_S), self._shared.fleet.lease(route.node, route.model_id):
            try:
                return await self._exchange(route, question)
            except errors.GatewayError as error:
                log.info("count_failed", node=route.node, model=route.model_id, reason=error.message)
        return None

    async def _exchange(self, route: Route, question: Outgoing) -> int | None:
        shared = self._shared
        headers = outgoing_headers(self._request, translated=question.path == TOKENIZE_PATH)
        origin, message = build_request(route, question.path, headers, question.body)
        phases = PhaseDeadlines(shared.settings.deadlines)
        with phases:
            async with shared.upstream.exchange(origin, message, phases) as response:
                if response.status != 200 or response.header(ESTIMATE_HEADER[0]) is not None:
                    return None  # another cortex may estimate; ours is as good, and is told to be one
                return _count_in(await _read(response))

    @property
    def _dialogue(self) -> MessagesDialogue:
        dialogue = self._request.dialogue
        if not isinstance(dialogue, MessagesDialogue):
            raise TypeError("tokens are counted of Messages requests only")
        return dialogue

    async def _tell(self, tokens: int | None) -> None:
        headers = response_headers.of_ours(self._record, self._request.dialect.headers(self._record.request_id))
        if tokens is None:
            tokens = self._dialogue.translated.input_tokens
            headers.append(ESTIMATE_HEADER)
        await self._answer.respond(200, headers, messages_response.token_count_body(tokens))


async def _read(response: UpstreamResponse) -> bytes:
    """The body, or as much of it as anybody needs for a number."""
    answer = b""
    while len(answer) < ANSWER_LIMIT_BYTES and (piece := await response.receive()):
        answer += piece
    return answer


def _conversation(chat_body: bytes) -> bytes:
    """The `/tokenize` of vLLM for a conversation (docs.vllm.ai, "Tokenizer API"): what the chat template is made of."""
    chat: Mapping[str, Any] = msgspec.json.decode(chat_body)
    return msgspec.json.encode({key: chat[key] for key in ("model", "messages", "tools") if key in chat})


class _Counted(msgspec.Struct):
    """Either answer: Anthropic's own, or a tokenizer's."""

    input_tokens: int | None = None
    count: int | None = None


def _count_in(answer: bytes) -> int | None:
    try:
        counted = msgspec.json.decode(answer, type=_Counted)
    except msgspec.DecodeError:
        return None
    return counted.count if counted.input_tokens is None else counted.input_tokens
