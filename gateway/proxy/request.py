"""From path, headers and body to an `InferenceRequest`: the client's request, read once and checked. No routing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import partial

from catalogue.models import Sticky
from gateway.access.keys.key import Key
from gateway.asgi import DirectExchange, Headers, Receive, Scope
from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest, Dialect, OutgoingRequest, ParsedRequest, sticky_key
from gateway.dialects.json_splice import ModelField, locate, locate_in_outline
from gateway.dialects.large_bodies.outline import Outline, outline_of, outlining
from gateway.errors import (
    MalformedMultipart,
    MethodNotAllowed,
    UnsupportedMediaType,
    UpgradeRequired,
    body_too_large,
)
from gateway.http.pool import header_lines
from gateway.proxy import header_policy, total_deadline
from gateway.proxy.accounts.request_account import RequestAccount
from gateway.proxy.body.compressed import CompressedBody, coding_of
from gateway.proxy.body.memory import BodyReservation
from gateway.proxy.body.off_loop import INLINE_BYTES, LARGE_BYTES, in_steps, in_thread, off_loop
from gateway.proxy.body.progress import BodyProgress
from gateway.proxy.forms.upload import Upload
from gateway.proxy.response import server_timing
from gateway.proxy.response.client_response import ClientGone
from gateway.proxy.total_deadline import TotalDeadline

__all__ = [
    "InferenceRequest",
    "RequestHead",
    "check_head",
    "content_type_of",
    "head_of",
    "media_type",
    "new_request_id",
    "outgoing_headers",
    "path_and_query",
    "read_request",
    "request_id_of",
]

_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")


class RequestHead:
    """What the headers of a request say, read once: `head_of` gives the next request of a connection the same object.

    Attributes:
        path: Path and query; see `path_and_query`.
        headers: The client's.
        names_id: There is an `x-request-id`.
        names_deadline: There is a header of `total_deadline`.
        wants_timing: The client wants the comment of `server_timing`.
        is_plain: Once the body has arrived, nothing needs a closer look: POST, JSON, not compressed, no header twice.
    """

    __slots__ = ("_for_neuron", "headers", "is_plain", "names_deadline", "names_id", "path", "wants_timing")

    def __init__(self, scope: Scope) -> None:
        self.headers: Headers = scope["headers"]
        values = dict(self.headers)
        self.path = path_and_query(scope)
        self.names_id = b"x-request-id" in values
        self.names_deadline = total_deadline.HEADER in values
        self.wants_timing = server_timing.wanted(self.headers)
        self.is_plain = (
            scope["method"] == "POST"
            and values.get(b"content-type") == b"application/json"
            and b"content-encoding" not in values
            and len(values) == len(self.headers)
        )
        self._for_neuron: tuple[bool, tuple[str, ...], bytes] | None = None

    def for_neuron(self, *, in_clients_dialect: bool, also: tuple[str, ...]) -> bytes:
        """The lines of `header_policy.kept_for_neuron`."""
        known = self._for_neuron
        if known is not None and known[0] == in_clients_dialect and known[1] == also:
            return known[2]
        kept = header_policy.kept_for_neuron(self.headers, None, in_clients_dialect=in_clients_dialect, also=also)
        lines = header_lines(kept)
        self._for_neuron = (in_clients_dialect, also, lines)
        return lines


def head_of(scope: Scope, exchange: DirectExchange | None) -> RequestHead:
    """The head of a request; the server's own exchange has it if the connection's last request had the same one."""
    if exchange is None:
        return RequestHead(scope)
    derived = exchange.derived
    if _HEAD not in derived:
        derived[_HEAD] = RequestHead(scope)
    head: RequestHead = derived[_HEAD]
    return head


_HEAD = "cortex.request_head"


@dataclass(slots=True)
class InferenceRequest:
    """One inference request as the client sent it. `body` is never changed.

    A multipart form has an empty `body` and an `upload`, of which more may arrive after `model`. `total_deadline` is
    the client's, None if it set none; `key` is None for a client without one, `account` if
    requests are not accounted for. `head` is that of a JSON request. `dialect` and `parsed` exist once `parse`
    was called.
    """

    path: bytes
    headers: Headers
    body: bytes
    model: ModelField
    request_id: str
    head: RequestHead | None = None
    total_deadline: TotalDeadline | None = None
    key: Key | None = None
    account: RequestAccount | None = None
    upload: Upload | None = None
    dialect: Dialect = field(init=False)
    parsed: ParsedRequest = field(init=False)

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        return self.model.stream

    @property
    def outline(self) -> Outline:
        """The body for parsers: without what they need not read."""
        return self.model.outline or Outline(self.body)

    @property
    def can_be_sent(self) -> bool:
        """Whether all of the body is still here, so that another attempt can send it."""
        return self.upload is None or self.upload.can_be_sent

    def parse(self, dialect: Dialect, neuron_dialects: frozenset[str], secret_key: bytes) -> None:
        """Read the request by the rules of its dialect; see `Dialect.parse`. Raises BadRequest."""
        self.dialect = dialect
        form = None if self.upload is None else self.upload.with_model
        self.parsed = dialect.parse(
            ClientRequest(self.path, self.body, self.model, self.request_id, form, secret_key), neuron_dialects
        )

    def release(self) -> None:
        """Drop the body and what was read from it: the request has ended.

        Connection, exchange, request and attempts refer to each other, so without this a body of many megabytes would
        stay until the garbage collector runs.
        """
        self.body = b""
        self.model = _NO_MODEL
        self.parsed = _RELEASED
        self.account = None

    def key_of(self, sticky: Sticky) -> bytes | None:
        """The key of the request's conversation or API key, for a sticky alias; see `sticky_key.key_of`."""
        outline = self.model.outline or outline_of(self.body)  # of a small body too: the next turn may be large
        key = sticky_key.key_of(self.headers, outline.text, sticky)
        return sticky_key.key_of(self.headers, self.body, sticky) if key is None and outline.cuts else key


class _ReleasedRequest:
    """In place of what was parsed, once a request has ended."""

    ignored = b""

    def outgoing(self, model: str, backend: Backend) -> OutgoingRequest:  # noqa: ARG002 - a `ParsedRequest`
        raise RuntimeError("the request has ended")


_RELEASED = _ReleasedRequest()
_NO_MODEL = ModelField("", 0, 0, stream=False)


def request_id_of(headers: Headers) -> str:
    """The client's `x-request-id` if it is 1 to 128 of A-Z a-z 0-9 . _ : -, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _VALID_REQUEST_ID.match(value):
            return value.decode()
    return new_request_id()


def new_request_id() -> str:
    """128 random bits in hex. 64 ids are made at a time: the system call for one takes 1.4 us."""
    if not _new_ids:
        digits = os.urandom(16 * 64).hex()
        _new_ids.extend([digits[start : start + 32] for start in range(0, len(digits), 32)])
    return _new_ids.pop()


_new_ids: list[str] = []


async def read_request(
    scope: Scope,
    receive: Receive,
    request_id: str,
    body_limit_bytes: int,
    reservation: BodyReservation,
    *,
    progress: BodyProgress | None = None,
) -> InferenceRequest:
    """Read a request with a JSON body. Of the body only `model` and `stream` are decoded.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        request_id: The request's id.
        body_limit_bytes: Of the body, decoded.
        reservation: Counts the body's memory.
        progress: Moves the deadline of the caller's scope while the body arrives.

    Raises:
        MethodNotAllowed, UnsupportedMediaType, BodyTooLarge, MalformedJson, MissingModelField: By their names.
        MalformedRequest: The body is not in the coding that its `content-encoding` names.
        Overloaded: The bodies of other requests leave too little memory for this one.
        ClientGone: The client left before the request was complete.
    """
    headers: Headers = scope["headers"]
    check_head(scope, body_limit_bytes)
    # Any other content type is accepted: curl, for example, declares every body as an urlencoded form.
    if media_type(content_type_of(headers)).startswith(b"multipart/"):
        raise UnsupportedMediaType(f"{scope['path']} takes a JSON object, not a form")
    coding = coding_of(headers)
    if coding is not None:
        receive = CompressedBody(receive, coding, body_limit_bytes).receive
    body = await _read_body(receive, body_limit_bytes, reservation, progress)
    path: str = scope["path"]
    model = locate(body, path) if len(body) <= INLINE_BYTES else await _located(body, path)
    return InferenceRequest(path_and_query(scope), headers, body, model, request_id)


async def _located(body: bytes, path: str) -> ModelField:
    """Find the model of a large body, mostly without reading its pictures."""
    outline = await in_steps(outlining(body))
    return await off_loop(outline.text, partial(locate_in_outline, body, outline, path))


def check_head(scope: Scope, body_limit_bytes: int) -> int | None:
    """Check method and length of a request before its body is read. Returns the declared length in bytes.

    Raises:
        MethodNotAllowed, UpgradeRequired, BodyTooLarge: By their names.
    """
    headers: Headers = scope["headers"]
    if scope["method"] != "POST":
        if any(name == b"upgrade" and value.strip().lower() == b"websocket" for name, value in headers):
            raise UpgradeRequired(f"{scope['path']} has no WebSocket: send the request with POST")
        raise MethodNotAllowed(
            f"{scope['method']} is not allowed on {scope['path']}: use POST", allow=("POST", "OPTIONS")
        )
    length = next((int(value) for name, value in headers if name == b"content-length"), None)
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


async def _read_body(
    receive: Receive, limit_bytes: int, reservation: BodyReservation, progress: BodyProgress | None
) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise body_too_large(limit_bytes)
        reservation.add(len(piece))
        if not message.get("more_body", False):
            if progress is not None:
                progress.complete()
            if not pieces:
                return piece
            pieces.append(piece)
            join = partial(_joined, pieces)
            return join() if size <= LARGE_BYTES else await in_thread(join)
        if progress is not None:
            progress.arrived(size)
        pieces.append(piece)


def _joined(pieces: list[bytes]) -> bytes:
    """Put a body together and free its pieces. `join` releases the interpreter's lock if it copies more than 1 MiB."""
    body = b"".join(pieces)
    pieces.clear()
    return body


def outgoing_headers(request: InferenceRequest, path: bytes, also: tuple[str, ...]) -> bytes:
    """The header lines that a neuron gets.

    Args:
        request: The client's request.
        path: Of the outgoing request: the client's own unless the request is translated.
        also: `[gateway] pass_request_headers`.
    """
    if request.head is not None:
        kept = request.head.for_neuron(in_clients_dialect=path == request.path, also=also)
        return b"%bx-request-id: %b\r\n" % (kept, request.request_id.encode())
    return header_lines(
        header_policy.for_neuron(
            request.headers,
            request.request_id,
            form_type=None if request.upload is None else content_type_of(request.headers),
            in_clients_dialect=path == request.path,
            also=also,
        )
    )
