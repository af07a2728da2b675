"""The errors a client can receive: one class per error, with its HTTP status, type and code.

Code raises these where it detects the problem. `envelope` turns one into the response body, in the shape of OpenAI's
error object (https://platform.openai.com/docs/guides/error-codes), which OpenAI's SDKs turn into typed exceptions.
Statuses and codes are a closed list: docs/api.md.

    GatewayError
    +-- BadRequest                  400  the client must change the request
    |   +-- MalformedRequest             not HTTP/1.1
    |   +-- MalformedJson, MalformedMultipart, MissingModelField, ContextLengthExceeded
    |   +-- InvalidApiKey           401
    |   +-- CsrfMissing, ModelNotAllowed, VerbNotAllowed  403
    |   +-- NotFound                404
    |   |   +-- ModelNotFound
    |   +-- MethodNotAllowed        405
    |   +-- RequestTimeout          408
    |   +-- Conflict                409
    |   |   +-- NotInForceOnDisk
    |   +-- PreconditionFailed      412
    |   +-- BodyTooLarge            413
    |   +-- UnsupportedMediaType    415
    |   |   +-- UnsupportedEncoding
    |   +-- Misdirected             421
    |   +-- InvalidCatalogue        422
    |   +-- UpgradeRequired         426
    |   +-- PreconditionRequired    428
    |   +-- RateLimited             429
    |   +-- InsufficientQuota       429
    |   +-- HeadersTooLarge         431
    +-- InternalError               500  a bug in the gateway; the log has the traceback
    +-- UpstreamError               502  the neuron failed
    |   +-- UpstreamConnectionError, UpstreamMalformedResponse, UpstreamAuthFailed, ColdLoadFailed
    |       +-- UpstreamUnreachable
    +-- ServiceUnavailable          503  temporary; Retry-After says when to try again
    |   +-- NoFeasibleNeuron, NoRoom, ShuttingDown, Overloaded
    +-- DeadlineExceeded            504  a phase of the request took longer than its deadline
    +-- HttpVersionNotSupported     505
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil
from typing import ClassVar

import msgspec


class GatewayError(Exception):
    """An error response.

    Args:
        message: For a person: what is wrong and, where it helps, what to do.
        param: The request field or the deadline phase that caused the error, or None.
        retry_after_s: Seconds after which a retry may succeed, or None if a retry does not help.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.is_neurons_text = False
        """Whether the message is what a neuron said."""
        self.quotes_prompt = False
        """Whether the message has parts of the prompt: the client gets it, but no record keeps it."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers of this error, without content-type and content-length."""
        return [] if self.retry_after_s is None else [(b"retry-after", b"%d" % self.retry_after_s)]


def forget_tracebacks(error: BaseException) -> None:
    """Free the frames that the error, and those that it was raised from, keep: they have the request's body.

    An error that is kept in a variable of one of its own frames is a reference cycle, which only the garbage collector
    would free. So is one that has cancelled a nursery while it was handled, and then replaced what the nursery raised:
    the group has exceptions whose context is that error.
    """
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__, getattr(link, "error", None), *getattr(link, "exceptions", ())]
            link.__context__ = None


def whole_s(seconds: float) -> int:
    """Round up to whole seconds for a Retry-After, at least 1. Rounds to ms first, so that 5.0000001 is 5."""
    return max(1, ceil(round(seconds, 3)))


class InternalError(GatewayError):
    """A bug in the gateway. The message has no details; the log has them."""


class HttpVersionNotSupported(GatewayError):
    """The request uses another HTTP version than 1.1 or 1.0."""

    status = 505
    code = "http_version_not_supported"


class BadRequest(GatewayError):
    """The request cannot succeed as it is."""

    status = 400
    type = "invalid_request_error"
    code: ClassVar[str | None] = None


class MalformedRequest(BadRequest):
    """The bytes on the connection are not an HTTP/1.1 request that the gateway accepts."""

    code = "malformed_request"


class MalformedJson(BadRequest):
    """The body is not valid JSON."""

    code = "malformed_json"


class MalformedMultipart(BadRequest):
    """The body is not `multipart/form-data`, or two parsers could read it differently."""

    code = "malformed_multipart"


class MissingModelField(BadRequest):
    """The JSON object or form has no single string `model`."""

    code = "missing_model_field"


class ContextLengthExceeded(BadRequest):
    """The prompt is longer than the model's context on every neuron; see `proxy/context_length.py`."""

    code = "context_length_exceeded"


class RequestTimeout(BadRequest):
    """The request's headers or body did not arrive within their deadline."""

    status = 408
    code = "request_timeout"


class InvalidApiKey(BadRequest):
    """The request has no API key, or an unknown one."""

    status = 401
    code = "invalid_api_key"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Adds `www-authenticate`, which a 401 must have (RFC 9110, section 15.5.2)."""
        return [*super().headers, (b"www-authenticate", b"Bearer")]


class CsrfMissing(BadRequest):
    """A change with the cookie of a console session lacks the session's `x-cortex-csrf`."""

    status = 403
    code = "csrf_missing"


class ModelNotAllowed(BadRequest):
    """The key may not use the model or alias."""

    status = 403
    code = "model_not_allowed"


class VerbNotAllowed(BadRequest):
    """The key may not do this."""

    status = 403
    code = "verb_not_allowed"


class Misdirected(BadRequest):
    """The request names a host that is not this gateway's (RFC 9110, section 15.5.20)."""

    status = 421
    code = "misdirected_request"


class NotFound(BadRequest):
    """The path does not exist."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """Neither a neuron nor the catalogue has the model.

    Args:
        message, param, retry_after_s: As for every error.
        hint: The end of the message, with the names `nearest`, which exist.
        nearest: As above.
    """

    code = "model_not_found"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        hint: str = "",
        nearest: Iterable[str] = (),
    ) -> None:
        super().__init__(message + hint, param=param, retry_after_s=retry_after_s)
        self._without_hint = message
        self._nearest = tuple(nearest)

    def hide_names(self, may_see: Callable[[str], bool]) -> None:
        """Drop the hint if the client may not see every name in it."""
        if not all(map(may_see, self._nearest)):
            self.message = self._without_hint


class MethodNotAllowed(BadRequest):
    """The path exists but does not support the method; `allow` lists those it does (RFC 9110, section 15.5.6)."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: Iterable[str]) -> None:
        super().__init__(message)
        self.allow = sorted(allow)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Adds `allow`."""
        return [*super().headers, (b"allow", ", ".join(self.allow).encode())]


class Conflict(BadRequest):
    """The change contradicts the present state; nothing was changed."""

    status = 409
    code = "conflict"


class NotInForceOnDisk(Conflict):
    """The `models.toml` on disk is not the one in force, so an edit would bring more into force than itself."""

    code = "file_not_in_force"


class PreconditionFailed(BadRequest):
    """`If-Match` names another version than the present one (RFC 9110, section 13.1.1)."""

    status = 412
    code = "precondition_failed"


class InvalidCatalogue(BadRequest):
    """The change would make `models.toml` faulty; the message lists every fault."""

    status = 422
    code = "invalid_catalogue"


class PreconditionRequired(BadRequest):
    """The change needs `If-Match`, so that it cannot undo another change by accident (RFC 6585, section 3)."""

    status = 428
    code = "precondition_required"


class BodyTooLarge(BadRequest):
    """The body is larger than `gateway.body_limit_mb`."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(BadRequest):
    """The endpoint does not accept the request's content-type."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    """The request body has a content coding that the gateway cannot decode."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Adds `accept-encoding`: the codings that would do (RFC 9110, section 15.5.16)."""
        return [*super().headers, (b"accept-encoding", b"gzip, deflate, zstd")]


class UpgradeRequired(BadRequest):
    """The request offers WebSocket on an endpoint that only answers plain HTTP (RFC 9110, section 15.5.22)."""

    status = 426
    code = "upgrade_required"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Adds `upgrade`, which a 426 must have: the protocol to use instead."""
        return [*super().headers, (b"upgrade", b"HTTP/1.1")]


class RateLimited(BadRequest):
    """A rate limit is exceeded; Retry-After says when to try again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class InsufficientQuota(BadRequest):
    """A budget of the API key is spent. It says not when to try again: that may be in weeks."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Adds `x-should-retry`, by which SDKs do not try again in vain."""
        return [*super().headers, (b"x-should-retry", b"false")]


class HeadersTooLarge(BadRequest):
    """The request line and headers, or a chunked body's framing, are larger than `limits.header_bytes`."""

    status = 431
    code = "headers_too_large"


class ServiceUnavailable(GatewayError):
    """The request cannot be served now."""

    status = 503
    code = "service_unavailable"


class NoFeasibleNeuron(ServiceUnavailable):
    """The catalogue has the model, but no healthy neuron meets the model's requirements."""

    code = "no_feasible_neuron"


class NoRoom(ServiceUnavailable):
    """Every feasible neuron is full of models that may not be evicted for this one."""

    code = "no_room"


class ShuttingDown(ServiceUnavailable):
    """The gateway is draining and takes no new requests."""

    code = "shutting_down"


class Overloaded(ServiceUnavailable):
    """A limit of the gateway on connections, requests, memory or disk is reached."""

    code = "overloaded"


class UpstreamError(GatewayError):
    """The neuron failed."""

    status = 502


class UpstreamConnectionError(UpstreamError):
    """The neuron could not be reached, or closed the connection before the end of its response."""

    code = "upstream_connection_error"


class UpstreamUnreachable(UpstreamConnectionError):
    """No connection to the neuron could be opened."""


class UpstreamMalformedResponse(UpstreamError):
    """The neuron's response is not valid HTTP/1.1, or not what its endpoint must return."""

    code = "upstream_malformed_response"


class UpstreamAuthFailed(UpstreamError):
    """The neuron rejects the gateway's own credentials, which is no fault of the client."""

    code = "upstream_auth_failed"


class ColdLoadFailed(UpstreamError):
    """The neuron could not load the model."""

    code = "cold_load_failed"


class DeadlineExceeded(GatewayError):
    """A phase of the request took longer than its deadline; `param` names the phase."""

    status = 504
    code = "deadline_exceeded"


def body_too_large(limit_bytes: int) -> BodyTooLarge:
    """Return the error for a body whose content-length, or whose size so far, exceeds the limit."""
    return BodyTooLarge(
        f"the request body is larger than the {limit_bytes / 1024**2:g} MiB this gateway accepts "
        "(gateway.body_limit_mb)"
    )


class Problem(msgspec.Struct, frozen=True):
    """The value of `error` in an `Envelope`. `param` is the request field or deadline phase that caused the error."""

    message: str
    type: str
    code: str | None
    param: str | None


class Envelope(msgspec.Struct, frozen=True):
    """The body of an error response: `{"error":{"message","type","code","param"}}`."""

    error: Problem


def envelope(error: GatewayError) -> bytes:
    """Return the JSON body of an error response."""
    return envelope_of(error.message, error.type, error.code, error.param)


def envelope_of(message: str, type_: str, code: str | None, param: str | None = None) -> bytes:
    """Return the JSON body of an error response from its fields; for an error that a neuron sent."""
    return msgspec.json.encode(Envelope(Problem(message, type_, code, param)))
