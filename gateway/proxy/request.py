"""From path, headers and body to an `InferenceRequest`: what the client asks, read once and checked. No routing."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from catalogue.models import Sticky
from gateway.asgi import Headers, Receive, Scope
from gateway.dialects import ClientRequest, Dialect, Dialogue, sticky_key
from gateway.dialects.json_splice import ModelField, locate
from gateway.errors import (
    MalformedMultipart,
    MethodNotAllowed,
    UnsupportedEncoding,
    UnsupportedMediaType,
    body_too_large,
)
from gateway.proxy import total_deadline as budget
from gateway.proxy.body_memory import BodyReservation
from gateway.proxy.client_response import ClientGone
from gateway.proxy.forms.form_parser import FormReader, boundary_of
from gateway.proxy.forms.spool import Spool
from gateway.proxy.forms.upload import Upload
from gateway.proxy.total_deadline import Budget

__all__ = [
    "HOP_BY_HOP",
    "InferenceRequest",
    "named_by_connection",
    "open_upload",
    "outgoing_headers",
    "read",
    "read_form",
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
    b"api-key",  # Azure's
    b"x-goog-api-key",
    b"openai-organization",
    b"openai-project",
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

    A form has an `upload` in place of a body, of which more may be to come than its `model` and what precedes it.
    `budget` is the whole time its client gives it, None if it does not say.
    `dialect` and `dialogue` are there once it has been understood.
    """

    path: bytes
    headers: Headers
    body: bytes
    model: ModelField
    request_id: str
    budget: Budget | None = None
    upload: Upload | None = None
    dialect: Dialect = field(init=False)
    dialogue: Dialogue = field(init=False)

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        return self.model.stream

    @property
    def can_be_sent(self) -> bool:
        """Whether all of it is still here, so that another attempt may be made."""
        return self.upload is None or self.upload.can_be_sent

    def understand(self, dialect: Dialect, spoken: frozenset[str]) -> None:
        """Read it as its dialect does; see `Dialect.open`. Raises BadRequest."""
        self.dialect = dialect
        form = None if self.upload is None else self.upload.with_model
        self.dialogue = dialect.open(ClientRequest(self.path, self.body, self.model, self.request_id, form), spoken)

    def key_of(self, sticky: Sticky) -> bytes | None:
        """What tells its conversation or its API key from others; see `stickiness.key_of`."""
        return sticky_key.key_of(self.headers, self.body, sticky)


def request_id_of(headers: Headers) -> str:
    """The client's `x-request-id` if it is a sane one, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _SANE_REQUEST_ID.match(value):
            return value.decode()
    return secrets.token_hex(16)


async def read(
    scope: Scope, receive: Receive, request_id: str, body_limit_bytes: int, reservation: BodyReservation
) -> InferenceRequest:
    """Wait for the body, as much as the `reservation` allows, and read what routing needs of it.

    Raises:
        MethodNotAllowed, UnsupportedMediaType, BodyTooLarge, MalformedJson, MissingModelField: As the names say.
        Overloaded: The bodies of other requests leave too little room for this one.
        ClientGone: It left before its request was whole.
    """
    headers: Headers = scope["headers"]
    _check_method(scope)
    _refuse_compressed(headers)
    _declared_length(headers, body_limit_bytes)
    # Whatever else it says it is, JSON is what it must be: curl calls everything a urlencoded form.
    if _media_type(_content_type(headers)).startswith(b"multipart/"):
        raise UnsupportedMediaType(f"{scope['path']} takes a JSON object, not a form")
    body = await _read_body(receive, body_limit_bytes, reservation)
    return InferenceRequest(_path_and_query(scope), headers, body, locate(body), request_id)


def open_upload(
    scope: Scope, receive: Receive, spool: Spool, *, body_limit_bytes: int, stall_timeout_s: float
) -> Upload:
    """The form that is a request's body, nothing of it read yet.

    Raises:
        MethodNotAllowed, UnsupportedMediaType, BodyTooLarge, MalformedMultipart: As the names say.
    """
    headers: Headers = scope["headers"]
    _check_method(scope)
    _refuse_compressed(headers)
    length = _declared_length(headers, body_limit_bytes)
    content_type = _content_type(headers)
    if _media_type(content_type) != b"multipart/form-data":
        raise UnsupportedMediaType(f"{scope['path']} takes multipart/form-data")
    reader = FormReader(boundary_of(content_type))
    return Upload(receive, reader, spool, length=length, limit_bytes=body_limit_bytes, stall_timeout_s=stall_timeout_s)


async def read_form(scope: Scope, upload: Upload, request_id: str) -> InferenceRequest:
    """Wait for as much of a form as routing needs. Raises as `Upload.read_until_model`."""
    name, start, end = await upload.read_until_model()
    model = ModelField(name, start, end, stream=False)  # whether it is one, a form may say last of all
    return InferenceRequest(_path_and_query(scope), scope["headers"], b"", model, request_id, upload=upload)


def _check_method(scope: Scope) -> None:
    if scope["method"] != "POST":
        raise MethodNotAllowed(
            f"{scope['method']} is not allowed on {scope['path']}: use POST", allow=("POST", "OPTIONS")
        )


def _refuse_compressed(headers: Headers) -> None:
    """Its `model` has to be read, and what a few bytes may unfold to has no limit."""
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise UnsupportedEncoding("a compressed request body is not taken here: send it without content-encoding")


def _declared_length(headers: Headers, limit_bytes: int) -> int | None:
    """A length that says too much is refused before a byte of it is read."""
    length = next((int(value) for name, value in headers if name == b"content-length"), None)
    if length is not None and length > limit_bytes:
        raise body_too_large(limit_bytes)
    return length


def _content_type(headers: Headers) -> bytes:
    """What it says, or nothing. Raises MalformedMultipart if it says two things and one is a form."""
    said = [value for name, value in headers if name == b"content-type"]
    if len(said) > 1 and any(_media_type(value).startswith(b"multipart/") for value in said):
        raise MalformedMultipart("the request, which must name a `model`, has more than one content-type")
    return said[0] if said else b""


def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def _path_and_query(scope: Scope) -> bytes:
    path: bytes = scope["path"].encode()  # as we know it, not as a client may have spelled it: `/v1/chat%2Fcompletions`
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
