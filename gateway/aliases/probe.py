"""One small question to a model, to see that it answers and not only that it is loaded. Whom to ask is not here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

from gateway import errors
from gateway.asgi import Headers
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.routing.choose import Route
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.http.response_parser import UpstreamResponse

__all__ = ["Probe", "ProbeFailed", "ProbePostponed", "ask", "probe_of"]

ANSWER_LIMIT_BYTES = 1024 * 1024  # an embedding of many thousand dimensions, as text

_HEADERS: Headers = [
    (b"content-type", b"application/json"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"identity"),
]


class Probe(NamedTuple):
    """A question: where it is sent, and the body without its `model`."""

    path: bytes
    body: dict[str, Any]


class ProbeFailed(Exception):
    """It answered, and not as a model does that can serve."""


class ProbePostponed(Exception):
    """No answer of its own: it is busy, or gone, or its neuron is. `not_loaded` if the neuron says so."""

    def __init__(self, reason: str, *, not_loaded: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.not_loaded = not_loaded
        self.unreachable = unreachable


# Which question .......................................................................................................

_CHAT = frozenset({"chat", "completion", "completions", "tools", "tool_call", "tool_use", "reasoning"})
_EMBEDDING = frozenset({"embedding", "embeddings", "embed"})
_RERANK = frozenset({"rerank", "reranker", "reranking"})
# Their answers cost seconds of GPU or need a file to begin with: that they are loaded has to do.
_COSTLY = frozenset({
    "image", "images", "image_generation", "image-generation", "audio", "speech", "tts", "stt", "asr", "transcription",
    "transcriptions", "translation", "video",
})  # fmt: skip
_TOOLS = frozenset({"tools", "tool_call", "tool_calls", "tool_use", "function_calling"})

_A_TOOL = {
    "type": "function",
    "function": {"name": "ping", "description": "Answers pong.", "parameters": {"type": "object", "properties": {}}},
}


def probe_of(capabilities: Collection[str], *, tool_call: bool | None) -> Probe | None:
    """The cheapest question that a model with these capabilities must be able to answer; None if none is cheap.

    Args:
        capabilities: In the operator's or the neuron's words; none known means chat, as most models do.
        tool_call: What the neuron says of tools, None if nothing.
    """
    known = frozenset(word.lower() for word in capabilities)
    if not known & _CHAT:
        if known & _EMBEDDING:
            return Probe(b"/v1/embeddings", {"input": "ping"})
        if known & _RERANK:
            return Probe(b"/v1/rerank", {"query": "ping", "documents": ["pong"]})
        if known & _COSTLY:
            return None
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1, "stream": False}
    if tool_call or known & _TOOLS:
        body["tools"] = [_A_TOOL]
    return Probe(b"/v1/chat/completions", body)


# Asking ...............................................................................................................


async def ask(probe: Probe, route: Route, upstream: UpstreamPool, phases: PhaseDeadlines) -> None:
    """Return once the model has answered well. The caller holds a lease on it.

    Raises:
        ProbeFailed, ProbePostponed: As they say.
    """
    body = msgspec.json.encode({"model": neuron_model_name(route), **probe.body})
    try:
        origin, message = build_request(route, probe.path, _HEADERS, body)
    except errors.UpstreamMalformedResponse as error:
        raise ProbeFailed(error.message) from error
    try:
        with phases:
            async with upstream.exchange(origin, message, phases) as response:
                await _judge(response)
    except (errors.UpstreamError, errors.DeadlineExceeded) as error:
        raise ProbePostponed(error.message, unreachable=True) from error


async def _judge(response: UpstreamResponse) -> None:
    if response.status >= 300:
        refusal = await UpstreamErrorResponse.read(response)
        told = f"{response.status}: {refusal.as_error().message}"
        if refusal.not_loaded:
            raise ProbePostponed(told, not_loaded=True)
        if response.status in {429, 503}:
            raise ProbePostponed(told)
        raise ProbeFailed(f"it answers a small question with {told}")
    body = await _read(response)
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        answer = None
    if not isinstance(answer, dict) or answer.get("error") is not None:
        raise ProbeFailed("it answers a small question with 200 and something that is no answer")


async def _read(response: UpstreamResponse) -> bytes:
    body = b""
    while piece := await response.receive():
        body += piece
        if len(body) > ANSWER_LIMIT_BYTES:
            raise ProbeFailed(f"it answers a small question with more than {ANSWER_LIMIT_BYTES} bytes")
    return body
