"""From path, headers and body to an `InferenceRequest`: the client's request, read once and checked. No routing."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from catalogue.models import Sticky
from gateway.asgi import Headers, Receive, Scope
from gateway.dialects import ClientRequest, Dialect, ParsedRequest, sticky_key
from gateway.dialects.json_splice import ModelField, locate
from gateway.errors import (
    MalformedMultipart,
    MethodNotAllowed,
    UnsupportedEncoding,
    UnsupportedMediaType,
    body_too_large,
)
from gateway.proxy.body_memory import BodyReservation
from gateway.proxy.forms.upload import Upload
from gateway.proxy.response.client_response import ClientGone
from gateway.proxy.total_deadline import HEADER as TOTAL_DEADLINE_HEADER
from gateway.proxy.total_deadline import TotalDeadline

__all__ = [
    "HOP_BY_HOP",
    "InferenceRequest",
    "check_head",
    "content_type_of",
    "media_type",
    "named_by_connection",
    "outgoing_headers",
    "path_and_query",
    "read_request",
    "request_id_of",
]

_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"}
)
"""RFC 9110 section 7.6.1, and those of RFC 2616. Headers `proxy-*` and those that `connection` names go as well."""

_NOT_FOR_NEURONS = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"cookie",
    b"x-api-key",
    b"api-key",  # Azure's
    b"x-goog-api-key",
    b"openai-organization",
    b"openai-project",
    b"accept-encoding",
    b"expect",
    b"x-request-id",
    TOTAL_DEADLINE_HEADER,
}
_NOT_FOR_NEURONS_PREFIXES = (b"proxy-", b"x-cortex-", b"x-helexa-")
_NOT_FOR_OTHER_DIALECTS_PREFIXES = (*_NOT_FOR_NEURONS_PREFIXES, b"anthropic-")


@dataclass(slots=True)
class InferenceRequest:
    """One inference request as the client sent it. `body` is never changed.

    A multipart form has an empty `body` and an `upload`, of which more may arrive after `model`. `total_deadline` is
    the client's, None if it set none. `dialect` and `parsed` exist once `parse` was called.
    """

    path: bytes
    headers: Headers
    body: bytes
    model: ModelField
    request_id: str
    total_deadline: TotalDeadline | None = None
    upload: Upload | None = None
    dialect: Dialect = field(init=False)
    parsed: ParsedRequest = field(init=False)

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        return self.model.stream

    @property
    def can_be_sent(self) -> bool:
        """Whether all of the body is still here, so that another attempt can send it."""
        return self.upload is None or self.upload.can_be_sent

    def parse(self, dialect: Dialect, neuron_dialects: frozenset[str], secret_key: bytes) -> None:
        """Read the request by the rules of its dialect; see `Dialect.parse`. Raises BadRequest."""
        form = None if self.upload is None else self.upload.with_model
        self.dialect = dialect
        self.parsed = dialect.parse(
            ClientRequest(self.path, self.body, self.model, self.request_id, form, secret_key), neuron_dialects
        )

    def key_of(self, sticky: Sticky) -> bytes | None:
        """The key of the request's conversation or API key, for a sticky alias; see `sticky_key.key_of`."""
        return sticky_key.key_of(self.headers, self.body, sticky)


def request_id_of(headers: Headers) -> str:
    """The client's `x-request-id` if it is 1 to 128 of A-Z a-z 0-9 . _ : -, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _VALID_REQUEST_ID.match(value):
            return value.decode()
    return secrets.token_hex(16)


async def read_request(
    scope: Scope, receive: Receive, request_id: str, body_limit_bytes: int, reservation: BodyReservation
) -> InferenceRequest:
    """Read a request with a JSON body. Of the body only `model` and `stream` are decoded.

    Raises:
        MethodNotAllowed, UnsupportedMediaType, BodyTooLarge, MalformedJson, MissingModelField: By their names.
        Overloaded: The bodies of other requests leave too little memory for this one.
        ClientGone: The client left before the request was complete.
    """
    headers: Headers = scope["headers"]
    check_head(scope, body_limit_bytes)
    # Any other content type is accepted: curl, for example, declares every body as an urlencoded form.
    if media_type(content_type_of(headers)).startswith(b"multipart/"):
        raise UnsupportedMediaType(f"{scope['path']} takes a JSON object, not a form")
    body = await _read_body(receive, body_limit_bytes, reservation)
    return InferenceRequest(path_and_query(scope), headers, body, locate(body), request_id)


def check_head(scope: Scope, body_limit_bytes: int) -> int | None:
    """Check method, encoding and length of a request before its body is read. Returns the declared length in bytes.

    Raises:
        MethodNotAllowed, UnsupportedEncoding, BodyTooLarge: By their names.
    """
    if scope["method"] != "POST":
        raise MethodNotAllowed(
            f"{scope['method']} is not allowed on {scope['path']}: use POST", allow=("POST", "OPTIONS")
        )
    length = None
    for name, value in scope["headers"]:
        # `model` must be read, and a few compressed bytes can expand without limit.
        if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise UnsupportedEncoding(
                "this gateway does not accept compressed request bodies: send the body without content-encoding"
            )
        if name == b"content-length" and length is None:
            length = int(value)
    if length is not None and length > body_limit_bytes:
        raise body_too_large(body_limit_bytes)
    return length


def content_type_of(headers: Headers) -> bytes:
    """The content type, or nothing. Raises MalformedMultipart if there are several and one is a form's."""
    found = [value for name, value in headers if name == b"content-type"]
    if len(found) > 1 and any(media_type(value).startswith(b"multipart/") for value in found):
        raise MalformedMultipart("the request, which must name a `model`, has more than one content-type")
    return found[0] if found else b""


def media_type(content_type: bytes) -> bytes:
    """The type without its parameters, in lower case."""
    return content_type.partition(b";")[0].strip().lower()


def path_and_query(scope: Scope) -> bytes:
    """The endpoint's own spelling of the path (a client may have sent `/v1/chat%2Fcompletions`), with the query."""
    path: bytes = scope["path"].encode()
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


async def _read_body(receive: Receive, limit_bytes: int, reservation: BodyReservation) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise body_too_large(limit_bytes)
        reservation.add(len(piece))
        if not message.get("more_body", False):
            return b"".join((*pieces, piece)) if pieces else piece
        pieces.append(piece)


def outgoing_headers(request: InferenceRequest, *, translated: bool = False) -> Headers:
    """The client's headers that a neuron gets, and those that the gateway adds.

    Args:
        request: The client's request.
        translated: The neuron is asked in another dialect than the client's.
    """
    named = named_by_connection(request.headers)
    prefixes = _NOT_FOR_OTHER_DIALECTS_PREFIXES if translated else _NOT_FOR_NEURONS_PREFIXES
    kept = [
        (name, value)
        for name, value in request.headers
        if name not in _NOT_FOR_NEURONS and not name.startswith(prefixes) and name not in named
    ]
    kept.append((b"accept-encoding", b"identity"))
    kept.append((b"x-request-id", request.request_id.encode()))
    return kept


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """The headers that `connection` declares as hop-by-hop, in lower case; for either direction."""
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            named.update(token.strip().lower() for token in value.split(b","))
    return frozenset(named)
