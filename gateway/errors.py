"""What can go wrong with a request, and how a client hears of it.

Errors are raised where they are noticed and translated once, at the edge, by `envelope`. Statuses, types and codes
are the contract's closed list (section 10); the shape is OpenAI's error object
(https://platform.openai.com/docs/guides/error-codes), which its SDKs turn into typed exceptions.

    GatewayError
    +-- BadRequest            400  the client's fault, and the client can mend it
    |   +-- MalformedJson, MalformedMultipart, MissingModelField
    +-- RequestTimeout        408  the request itself did not arrive in time
    +-- ModelNotFound         404  nobody has it, and nobody could
    +-- NotFound, MethodNotAllowed, BodyTooLarge, UnsupportedMediaType (UnsupportedEncoding), InvalidApiKey
    +-- RateLimited           429  more than somebody allows
    +-- ServiceUnavailable    503  not now; Retry-After says when to ask again
    |   +-- NoFeasibleNeuron, ShuttingDown, Overloaded, NoRoom
    +-- UpstreamError         502  the neuron's fault
    |   +-- UpstreamConnectionError, UpstreamMalformedResponse, ColdLoadFailed
    +-- DeadlineExceeded      504  and which phase spent it
    +-- InternalError         500  ours; logged with a traceback, never shown
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import ClassVar

import msgspec


class GatewayError(Exception):
    """An answer to the client that is not what it asked for.

    Args:
        message: For a person; names the thing at fault and, where it helps, what to do.
        param: The request field or the deadline phase at fault, or None.
        retry_after_s: Whole seconds after which asking again may help, or None if it will not.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What HTTP has for it besides the status."""
        return [] if self.retry_after_s is None else [(b"retry-after", b"%d" % self.retry_after_s)]


def whole_s(seconds: float) -> int:
    """For a Retry-After: at least 1, and 5.0000001 is 5."""
    return max(1, ceil(round(seconds, 3)))


class InternalError(GatewayError):
    """A fault of ours. The message never carries details; the log does."""


class BadRequest(GatewayError):
    """The request is wrong as it stands."""

    status = 400
    type = "invalid_request_error"
    code: ClassVar[str | None] = None


class MalformedJson(BadRequest):
    """The body is not JSON."""

    code = "malformed_json"


class MalformedMultipart(BadRequest):
    """The body is not `multipart/form-data`, or two parsers could take it apart differently."""

    code = "malformed_multipart"


class MissingModelField(BadRequest):
    """JSON or a form, but no single string `model` to route by."""

    code = "missing_model_field"


class ContextLengthExceeded(BadRequest):
    """A prompt that no neuron could take for its model; see `context_length`."""

    code = "context_length_exceeded"


class RequestTimeout(BadRequest):
    """Headers or body did not arrive within `deadlines.header_seconds`."""

    status = 408
    code = "request_timeout"


class InvalidApiKey(BadRequest):
    """No key, or not one that is known."""

    status = 401
    code = "invalid_api_key"


class NotFound(BadRequest):
    """No such path."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No neuron has the model and the catalogue does not know it."""

    code = "model_not_found"


class MethodNotAllowed(BadRequest):
    """The path exists, the method does not; `allow` are those that do (RFC 9110, 15.5.6)."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: Iterable[str]) -> None:
        super().__init__(message)
        self.allow = sorted(allow)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """With `allow`."""
        return [*super().headers, (b"allow", ", ".join(self.allow).encode())]


class BodyTooLarge(BadRequest):
    """Beyond `gateway.body_limit_mb`."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(BadRequest):
    """A body in a form this endpoint cannot read."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    """A compressed body."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """With what would do (RFC 9110, 15.5.16)."""
        return [*super().headers, (b"accept-encoding", b"identity")]


class RateLimited(BadRequest):
    """More requests than somebody allows; Retry-After says when to ask again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class ServiceUnavailable(GatewayError):
    """Not now."""

    status = 503
    code = "service_unavailable"


class NoFeasibleNeuron(ServiceUnavailable):
    """Catalogued, but no healthy neuron's topology satisfies its constraints."""

    code = "no_feasible_neuron"


class NoRoom(ServiceUnavailable):
    """Every feasible neuron is full of models this one may not displace."""

    code = "no_room"


class ShuttingDown(ServiceUnavailable):
    """This gateway is draining; another copy, or this one restarted, will answer."""

    code = "shutting_down"


class Overloaded(ServiceUnavailable):
    """A limit of ours on waiting or running requests is reached."""

    code = "overloaded"


class UpstreamError(GatewayError):
    """The neuron's fault."""

    status = 502


class UpstreamConnectionError(UpstreamError):
    """The neuron could not be reached, or broke off before or while answering."""

    code = "upstream_connection_error"


class UpstreamMalformedResponse(UpstreamError):
    """The neuron answered, but not in HTTP/1.1 that we accept."""

    code = "upstream_malformed_response"


class ColdLoadFailed(UpstreamError):
    """The model was asked for, and the neuron could not load it."""

    code = "cold_load_failed"


class DeadlineExceeded(GatewayError):
    """A named phase took longer than its deadline; `param` says which."""

    status = 504
    code = "deadline_exceeded"


def body_too_large(limit_bytes: int) -> BodyTooLarge:
    """The refusal of a body, known to be beyond the limit by its length or by what has come of it."""
    return BodyTooLarge(f"the request body is larger than the {limit_bytes / 1024**2:g} MiB this gateway accepts")


class Problem(msgspec.Struct, frozen=True):
    """What is wrong. `param` is the field or the phase at fault."""

    message: str
    type: str
    code: str | None
    param: str | None


class Envelope(msgspec.Struct, frozen=True):
    """The body of an answer that is an error of ours."""

    error: Problem


def envelope(error: GatewayError) -> bytes:
    """The error as a JSON body: `{"error":{"message","type","code","param"}}`."""
    return envelope_of(error.message, error.type, error.code, error.param)


def envelope_of(message: str, type_: str, code: str | None, param: str | None = None) -> bytes:
    """The same envelope from loose parts: for an error that began life at a neuron."""
    return msgspec.json.encode(Envelope(Problem(message, type_, code, param)))
