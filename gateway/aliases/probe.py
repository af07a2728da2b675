"""The probe: one small request that shows that a loaded model answers. Which replica to probe is decided elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

from gateway import errors
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.route import Route
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.http.response_parser import UpstreamResponse

__all__ = ["Probe", "ProbeFailed", "ProbePostponed", "choose_probe", "send_probe"]

RESPONSE_LIMIT_BYTES = 1024 * 1024  # an embedding with many thousand dimensions, as text

_HEADERS = b"content-type: application/json\r\naccept: application/json\r\naccept-encoding: identity\r\n"


class Probe(NamedTuple):
    """A request: its path, and its body without the `model`."""

    path: bytes
    body: dict[str, Any]


class ProbeFailed(Exception):
    """The model answered, but not as a model that can serve. The text continues "the model is loaded, but"."""


class ProbePostponed(Exception):
    """The model could not answer now: it or its neuron is busy or gone. A later probe may succeed.

    `not_loaded` if the neuron says that the model is not loaded; `unreachable` if the neuron did not respond.
    """

    def __init__(self, reason: str, *, not_loaded: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.not_loaded = not_loaded
        self.unreachable = unreachable


# Words that operators and neurons use for capabilities.
_CHAT = frozenset({"chat", "completion", "completions", "tools", "tool_call", "tool_use", "reasoning"})
_EMBEDDING = frozenset({"embedding", "embeddings", "embed"})
_RERANK = frozenset({"rerank", "reranker", "reranking"})
# These models are not probed: an answer costs seconds of GPU time, or the request needs a file.
_COSTLY = frozenset({
    "image", "images", "image_generation", "image-generation", "audio", "speech", "tts", "stt", "asr", "transcription",
    "transcriptions", "translation", "video",
})  # fmt: skip
_TOOLS = frozenset({"tools", "tool_call", "tool_calls", "tool_use", "function_calling"})

_TOOL = {
    "type": "function",
    "function": {"name": "ping", "description": "Answers pong.", "parameters": {"type": "object", "properties": {}}},
}


def choose_probe(capabilities: Collection[str], *, tool_call: bool | None) -> Probe | None:
    """The cheapest request that a model with these capabilities must be able to answer; None if none is cheap.

    Args:
        capabilities: From the catalogue or the neuron. Without a known one the model is assumed to chat.
        tool_call: Whether the neuron says that the model can call tools; None if it does not say.
    """
    words = frozenset(word.lower() for word in capabilities)
    if not words & _CHAT:
        if words & _EMBEDDING:
            return Probe(b"/v1/embeddings", {"input": "ping"})
        if words & _RERANK:
            return Probe(b"/v1/rerank", {"query": "ping", "documents": ["pong"]})
        if words & _COSTLY:
            return None
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1, "stream": False}
    if tool_call or words & _TOOLS:
        body["tools"] = [_TOOL]  # agents send tools, and a chat template that cannot format them fails only then
    return Probe(b"/v1/chat/completions", body)


async def send_probe(probe: Probe, route: Route, upstream: UpstreamPool, phases: PhaseDeadlines) -> None:
    """Return once the model has answered well. The caller holds a lease on the replica.

    Raises:
        ProbeFailed: The model cannot serve.
        ProbePostponed: The model could not answer now.
    """
    body = msgspec.json.encode({"model": neuron_model_name(route), **probe.body})
    try:
        origin, message = build_request(route, probe.path, _HEADERS, body)
    except errors.UpstreamMalformedResponse as error:
        raise ProbeFailed(error.message) from error
    try:
        with phases, upstream.exchange(origin, message, phases) as exchange:
            response = await exchange.response()
            await _check(response)
    except (errors.UpstreamError, errors.DeadlineExceeded) as error:
        raise ProbePostponed(error.message, unreachable=True) from error


async def _check(response: UpstreamResponse) -> None:
    response.decode_body()
    if response.status >= 300:
        error = await UpstreamErrorResponse.read(response)
        description = f"{response.status}: {error.as_error().message}"
        if error.not_loaded:
            raise ProbePostponed(description, not_loaded=True)
        if response.status in {429, 503}:
            raise ProbePostponed(description)
        raise ProbeFailed(f"its probe request got {description}")
    body = await _read(response)
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        answer = None
    if not isinstance(answer, dict) or answer.get("error") is not None:  # some engines send an error with status 200
        raise ProbeFailed("its probe request got status 200 with a body that is not an answer")


async def _read(response: UpstreamResponse) -> bytes:
    body = b""
    while piece := await response.receive():
        body += piece
        if len(body) > RESPONSE_LIMIT_BYTES:
            raise ProbeFailed(f"its probe request got more than {RESPONSE_LIMIT_BYTES} bytes")
    return body
