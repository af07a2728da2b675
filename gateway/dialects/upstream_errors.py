"""Errors that a neuron reports, as an error response or inside a stream: their message, and the matching GatewayError.

`gateway.http.error_body` reads the text. Which neuron to try next is not decided here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway import errors
from gateway.asgi import Headers
from gateway.http.error_body import decode_error_body, error_text
from gateway.http.response_parser import UpstreamResponse

__all__ = ["UpstreamErrorResponse", "from_stream"]

BODY_LIMIT_BYTES = 64 * 1024  # an error body is buffered, logged and perhaps translated
RETRY_AFTER_DIGITS = 9  # 30 years; a longer number overflows the deadline it is turned into
NOT_LOADED = b"not loaded"  # part of the 404 body by which a neuron says that it does not have the model (any more)


class UpstreamErrorResponse(msgspec.Struct):
    """A neuron's response with an error status. `body` is cut at `BODY_LIMIT_BYTES`."""

    status: int
    headers: Headers
    body: bytes

    @classmethod
    async def read(cls, response: UpstreamResponse) -> UpstreamErrorResponse:
        """Read the body of a response up to the limit. Raises what `UpstreamResponse.receive` raises."""
        body = b""
        while len(body) < BODY_LIMIT_BYTES and (piece := await response.receive()):
            body += piece
        return cls(response.status, response.headers, body[:BODY_LIMIT_BYTES])

    @property
    def not_loaded(self) -> bool:
        """Whether the neuron does not have the model."""
        return self.status == 404 and NOT_LOADED in self.body

    @property
    def may_differ_elsewhere(self) -> bool:
        """Whether another neuron may accept the same request: the fault is this neuron's, not the request's."""
        return self.status == 429 or self.status >= 500

    @property
    def is_failure(self) -> bool:
        """Whether the neuron failed. A neuron that is busy (429, 503) or rejects the request has not failed."""
        return self.status >= 500 and self.status != 503

    @property
    def retry_after_s(self) -> int | None:
        """The Retry-After header if it is a number of seconds; None if it is a date, absent or absurdly long."""
        value = next((value for name, value in self.headers if name == b"retry-after"), b"")
        return int(value) if value.isdigit() and len(value) <= RETRY_AFTER_DIGITS else None

    @property
    def value(self) -> dict[str, Any] | str:
        """The body as a JSON object, or as text if it is none."""
        return decode_error_body(self.body)

    @property
    def message(self) -> str:
        """The error text in the body, whatever its form; the status if the body has none."""
        return error_text(self.value) or f"the neuron answered with status {self.status} and no error message"

    def as_error(self) -> errors.GatewayError:
        """The matching error of the gateway, for a client that can no longer get the neuron's own status."""
        kind = _BY_STATUS.get(self.status)
        if kind is None:
            kind = errors.BadRequest if self.status < 500 else errors.ServiceUnavailable
        return kind(self.message, retry_after_s=self.retry_after_s)

    def openai_form(self) -> tuple[bytes, bytes]:
        """Content type and body for clients of OpenAI's APIs, to go with the neuron's own status.

        A JSON object keeps its bytes, since engines put more into it than a message. A flat `{"error": "text"}` and
        everything that is no JSON object become OpenAI's error object.
        """
        value = self.value
        if isinstance(value, dict) and not isinstance(value.get("error"), str):
            return next((value for name, value in self.headers if name == b"content-type"), _JSON), self.body
        error = self.as_error()
        return _JSON, errors.envelope_of(error.message, error.type, error.code)


_JSON = b"application/json"
_BY_STATUS: dict[int, type[errors.GatewayError]] = {
    404: errors.ModelNotFound,
    413: errors.BodyTooLarge,
    429: errors.RateLimited,
}


def from_stream(value: object) -> errors.GatewayError:
    """The error of the gateway for the `error` that a neuron puts into a stream, or into a body under a 200."""
    status = _status_in(value)
    message = error_text({"error": value}) or "the neuron reported an error inside its stream"
    if status in {429, 503, 529}:
        return errors.ServiceUnavailable(message)
    if 400 <= status < 500:
        return errors.BadRequest(message)
    return errors.UpstreamConnectionError(message)


def _status_in(value: object) -> int:
    """The HTTP status that such an error stands for: engines put it into `code`, or imply it by `type`."""
    error: dict[str, Any] = value if isinstance(value, dict) else {}
    code, type_ = error.get("code"), str(error.get("type"))
    if isinstance(code, int):
        return code
    if "rate_limit" in type_ or "overloaded" in type_:
        return 503
    return 400 if type_ == "invalid_request_error" or code == "context_length_exceeded" else 502
