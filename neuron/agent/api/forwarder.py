"""The forwarder: inference requests from gateways on other machines to engines, which listen on loopback only.

    POST /engines/{id}/v1/…   the inference URL that the neuron reports
    POST /v1/…                the model by the body's `model`

It demands the neuron's token, passes inference paths only, and counts what is in flight. Bytes pass as they come; when
the client leaves, the engine's connection is closed, and when the engine breaks off, so does the answer.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec
import structlog
import trio

from gateway.asgi import Headers, Message, Receive, Scope, Send
from gateway.config.settings import DeadlineSettings
from gateway.errors import DeadlineExceeded, UpstreamError
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import Origin, UpstreamPool, header_lines, request_head
from neuron.agent.api.access_token import check_caller
from neuron.agent.engines.launch import LOOPBACK, EngineHost
from neuron.agent.errors import InvalidRequest, NeuronRequestError, Unauthorized, UnknownModel
from neuron.agent.supervision.host import ModelHost
from neuron.agent.supervision.model_supervisor import ModelSupervisor

__all__ = ["Forwarder", "is_inference_path"]

PREFIX = "/engines/"
PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/audio/speech",
        "/v1/tokenize",
        "/v1/detokenize",
        "/rerank",
        "/tokenize",
        "/detokenize",
    }
)
WHOLE_BODY_BYTES = 1024 * 1024  # up to here a body is read first, so that an idle connection can carry it
NAMED_BODY_BYTES = 64 * 1024 * 1024  # of a body whose `model` must be read
FOREVER_S = 7 * 86400.0  # the gateway has deadlines for these phases, and its leaving ends the request

_DEADLINES = DeadlineSettings(
    connect_seconds=5, upload_seconds=FOREVER_S, first_byte_seconds=FOREVER_S, idle_seconds=FOREVER_S
)
# Of one connection (RFC 9110, section 7.6.1), or for the neuron and not for the engine.
_NOT_SENT = frozenset(
    {b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection",
     b"proxy-authorization", b"content-length", b"expect", b"authorization", b"x-api-key", b"api-key"}
)  # fmt: skip
_NOT_RETURNED = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"trailer", b"date", b"server"}
)

log = structlog.get_logger("cortex.neuron.forwarder")


def is_inference_path(path: str) -> bool:
    """Whether a decoded request path is the forwarder's: below `/engines/{id}/`, but for its logs, or `/v1/…`."""
    if path.startswith(PREFIX):
        return not path.endswith("/logs")
    return path in PATHS


class _ClientLeft(Exception):
    """The client has closed the connection."""


class Forwarder:
    """An ASGI application.

    Args:
        host: The models.
        pool: Connections to engines; its owner runs and closes it.
        engine_host: Where engines listen.
    """

    def __init__(self, host: ModelHost, pool: UpstreamPool, engine_host: EngineHost = LOOPBACK) -> None:
        self._host = host
        self._engine_host = engine_host
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: Headers = scope["headers"]
        body = _RequestBody(receive, headers)
        try:
            token = self._host.settings.api.token
            check_caller(token, _header(headers, b"authorization"), _header(headers, b"origin"))
            if scope["method"] != "POST":
                raise InvalidRequest(f"{scope['path']} takes POST")
            supervisor, path = await self._target(scope, body)
        except NeuronRequestError as error:
            await _refuse(send, error)
            return
        except _ClientLeft:
            return
        supervisor.begin_request()
        try:
            await self._forward(supervisor, path, headers, body, send)
        finally:
            supervisor.end_request()

    async def _target(self, scope: Scope, body: _RequestBody) -> tuple[ModelSupervisor, bytes]:
        """The model, and the path at its engine."""
        raw_path: bytes = scope["raw_path"]
        query: bytes = scope["query_string"]
        if scope["path"].startswith(PREFIX):
            quoted, slash, rest = raw_path.removeprefix(PREFIX.encode()).partition(b"/")
            name, path = unquote(quoted.decode("latin-1")), slash + rest
            if path.decode("latin-1") not in PATHS:
                raise UnknownModel(f"no such path: {path.decode('latin-1')} is no inference path")
            supervisor = self._loaded(name)
        else:
            path = raw_path
            supervisor = await self._named_in(body)
        return supervisor, path + (b"?" + query if query else b"")

    async def _named_in(self, body: _RequestBody) -> ModelSupervisor:
        """The model that the body names. The engine gets its own name for it."""
        data = await body.read_whole(NAMED_BODY_BYTES)
        try:
            fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            name = msgspec.json.decode(fields["model"], type=str)
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
            raise InvalidRequest("the body must be a JSON object with the name of a model in `model`") from None
        supervisor = self._loaded(name)
        if supervisor.served is not None and supervisor.served.name != name:
            fields["model"] = msgspec.Raw(msgspec.json.encode(supervisor.served.name))
            body.replace(msgspec.json.encode(fields))
        return supervisor

    def _loaded(self, name: str) -> ModelSupervisor:
        supervisor = self._host.models.get(name)
        if supervisor is None or not supervisor.is_routable or supervisor.port is None:
            raise UnknownModel(f"model '{name}' not loaded on this neuron")
        return supervisor

    async def _forward(
        self, supervisor: ModelSupervisor, path: bytes, headers: Headers, body: _RequestBody, send: Send
    ) -> None:
        answer = _ClientAnswer(send)
        async with trio.open_nursery() as nursery:
            body.on_end = lambda: nursery.start_soon(_cancel_when_client_leaves, body, nursery.cancel_scope)
            try:
                await self._exchange(supervisor, path, headers, body, answer)
            except _ClientLeft:
                pass
            except (UpstreamError, DeadlineExceeded) as error:
                log.info("engine_broke_off", model=supervisor.id, started=answer.started, reason=error.message)
                if not answer.started:
                    await answer.unavailable(f"the engine of model '{supervisor.id}' does not answer: {error.message}")
                # A started answer ends here without its end, so the client sees that it is not whole.
            nursery.cancel_scope.cancel()

    async def _exchange(
        self, supervisor: ModelSupervisor, path: bytes, headers: Headers, body: _RequestBody, answer: _ClientAnswer
    ) -> None:
        origin = Origin("http", self._engine_host.connect, supervisor.port or 0, b"")
        kept = [(name, value) for name, value in headers if name not in _NOT_SENT | _named_by_connection(headers)]
        lines = header_lines(kept)
        if (body.length is not None and body.length <= WHOLE_BODY_BYTES) or body.is_read:
            data = await body.read_whole(WHOLE_BODY_BYTES)
            message, streamed = [request_head(origin, path, lines, len(data)), data], None
        else:
            message, streamed = [request_head(origin, path, lines, body.length)], body
        with PhaseDeadlines(_DEADLINES) as phases, self._pool.exchange(origin, message, phases, streamed) as exchange:
            response = await exchange.response()
            await answer.start(response.status, response.headers)
            phases.enter("idle")
            while chunk := await response.receive():
                await answer.send_piece(chunk)
                phases.progressed()
            await answer.end()


class _RequestBody:
    """The body of the client's request, as a `StreamedBody` or whole. Calls `on_end` once all of it has been read."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        self._whole: bytes | None = None
        self._ended = False
        length = _header(headers, b"content-length")
        self.length = int(length) if length is not None else None
        self.on_end: Any = None

    @property
    def is_read(self) -> bool:
        """Whether all of it is here."""
        return self._whole is not None

    def replace(self, data: bytes) -> None:
        """Send this instead."""
        self._whole = data

    def rewind(self) -> bool:
        """False: it is sent while it arrives, and not kept."""
        return False

    async def receive(self) -> bytes:
        """The next piece; `b""` at the end. Raises _ClientLeft."""
        while not self._ended:
            message: Message = await self._receive()
            if message["type"] != "http.request":
                raise _ClientLeft
            self._ended = not message.get("more_body", False)
            piece: bytes = message.get("body", b"")
            if self._ended and self.on_end is not None:
                self.on_end()
            if piece:
                return piece
        return b""

    async def read_whole(self, limit_bytes: int) -> bytes:
        """All of it. Raises _ClientLeft, and InvalidRequest if it is longer than that."""
        if self._whole is None:
            pieces, size = [], 0
            while piece := await self.receive():
                pieces.append(piece)
                size += len(piece)
                if size > limit_bytes:
                    raise InvalidRequest(f"the body is longer than {limit_bytes} bytes")
            self._whole = b"".join(pieces)
        elif self.on_end is not None:
            self.on_end()
        return self._whole

    async def wait_until_client_leaves(self) -> None:
        """After the end of the body."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _cancel_when_client_leaves(body: _RequestBody, scope: trio.CancelScope) -> None:
    await body.wait_until_client_leaves()
    scope.cancel()


class _ClientAnswer:
    """The response to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head at once: a stream's first piece may be minutes away."""
        dropped = _NOT_RETURNED | _named_by_connection(headers)
        kept = [(name, value) for name, value in headers if name not in dropped]
        await self._send({"type": "http.response.start", "status": status, "headers": kept})
        self.started = True
        if not any(name == b"content-length" for name, _ in kept):
            await self.send_piece(b"")

    async def send_piece(self, piece: bytes) -> None:
        """A piece of the body."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """The body is whole."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def unavailable(self, text: str) -> None:
        """The engine does not answer; it may do so soon."""
        await _respond(self._send, 503, {"error": text, "code": "unavailable"}, [(b"retry-after", b"2")])


async def _refuse(send: Send, error: NeuronRequestError) -> None:
    headers: Headers = [(b"www-authenticate", b"Bearer")] if isinstance(error, Unauthorized) else []
    await _respond(send, error.status, {"error": str(error), "code": error.code}, headers)


async def _respond(send: Send, status: int, body: object, headers: Headers) -> None:
    data = msgspec.json.encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})


def _header(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """The header names that `Connection` lists: they belong to one connection (RFC 9110, section 7.6.1)."""
    value = _header(headers, b"connection")
    return frozenset() if value is None else frozenset(part.strip().lower().encode() for part in value.split(","))
