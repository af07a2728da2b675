"""From path, headers and body to an `InferenceRequest`: what the client asks, read once and checked. No routing."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from gateway import budget
from gateway.asgi import Headers, Receive, Scope
from gateway.budget import Budget
from gateway.dialects import Dialect, Dialogue
from gateway.errors import BodyTooLarge, MethodNotAllowed
from gateway.relay import ClientGone
from gateway.rewrite import ModelField, locate

__all__ = [
    "HOP_BY_HOP",
    "InferenceRequest",
    "named_by_connection",
    "outgoing_headers",
    "read",
    "request_id_of",
]

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")  # contract section 13

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"}
)
"""RFC 9110 section 7.6.1, and what RFC 2616 named; `proxy-*` and what `connection` names go as well."""

_NOT_FOR_NEURONS = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"cookie",
    b"x-api-key",
    b"accept-encoding",
    b"expect",
    b"x-request-id",
    budget.HEADER,
}
_NOT_FOR_NEURONS_PREFIXES = (b"proxy-", b"x-cortex-", b"x-helexa-")
_OF_ITS_OWN_DIALECT = (b"anthropic-",)  # means nothing to a neuron that is asked in another


@dataclass(slots=True)
class InferenceRequest:
    """One request for inference as the client sent it. `body` is never changed; see `rewrite.splice`.

    `budget` is the whole time its client gives it, None if it does not say.
    `dialect` and `dialogue` are there once it has been understood.
    """

    path: bytes
    headers: Headers
    body: bytes
    model: ModelField
    request_id: str
    budget: Budget | None = None
    dialect: Dialect = field(init=False)
    dialogue: Dialogue = field(init=False)

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        return self.model.stream

    def understand(self, dialect: Dialect, spoken: frozenset[str]) -> None:
        """Read it as its dialect does; see `Dialect.open`. Raises BadRequest."""
        self.dialect = dialect
        self.dialogue = dialect.open(self, spoken)


def request_id_of(headers: Headers) -> str:
    """The client's `x-request-id` if it is a sane one, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _SANE_REQUEST_ID.match(value):
            return value.decode()
    return secrets.token_hex(16)


async def read(scope: Scope, receive: Receive, request_id: str, body_limit_bytes: int) -> InferenceRequest:
    """Wait for the body and read what routing needs of it.

    Raises:
        MethodNotAllowed, BodyTooLarge, MalformedJson, MissingModelField: As the names say.
        ClientGone: It left before its request was whole.
    """
    if scope["method"] != "POST":
        raise MethodNotAllowed(f"{scope['method']} is not allowed on {scope['path']}: use POST")
    headers: Headers = scope["headers"]
    _refuse_early(headers, body_limit_bytes)
    body = await _read_body(receive, body_limit_bytes)
    path: bytes = scope["raw_path"]
    if query := scope["query_string"]:
        path += b"?" + query
    return InferenceRequest(path, headers, body, locate(body), request_id)


def _refuse_early(headers: Headers, limit_bytes: int) -> None:
    """A length that says too much is refused before a byte of it is read."""
    for name, value in headers:
        if name == b"content-length" and int(value) > limit_bytes:
            raise _too_large(limit_bytes)


async def _read_body(receive: Receive, limit_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        if not message.get("more_body", False):
            return b"".join((*pieces, piece)) if pieces else piece
        pieces.append(piece)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the {limit_bytes / 1024**2:g} MiB this gateway accepts")


def outgoing_headers(request: InferenceRequest, *, translated: bool = False) -> Headers:
    """What a neuron gets to see of the client's headers, and what we add.

    `translated` says that it is asked in another dialect than the client spoke.
    """
    named = named_by_connection(request.headers)
    unwanted = _NOT_FOR_NEURONS_PREFIXES + _OF_ITS_OWN_DIALECT if translated else _NOT_FOR_NEURONS_PREFIXES
    kept = [
        (name, value)
        for name, value in request.headers
        if name not in _NOT_FOR_NEURONS and not name.startswith(unwanted) and name not in named
    ]
    kept.append((b"accept-encoding", b"identity"))
    kept.append((b"x-request-id", request.request_id.encode()))
    return kept


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """The headers that are hop-by-hop because `connection` says so, in lower case; for either direction."""
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            named.update(token.strip().lower() for token in value.split(b","))
    return frozenset(named)
