"""Errors that a neuron reports, as an error response or inside a stream: their message, and the matching GatewayError.

`gateway.http.error_body` reads the text. Which neuron to try next is not decided here.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway import errors
from gateway.asgi import Headers
from gateway.http.error_body import decode_error_body, error_text
from gateway.http.response_parser import UpstreamResponse

__all__ = ["UpstreamErrorResponse", "from_stream", "is_context_overflow"]

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
        return (self.status == 429 or self.status >= 500) and not self.is_context_overflow

    @property
    def is_context_overflow(self) -> bool:
        """Whether the neuron rejects the prompt as longer than the model's context."""
        if self.status in _NEVER_OVERFLOW:
            return False
        value = self.value
        return is_context_overflow(value.get("error", value) if isinstance(value, dict) else value)

    @property
    def is_failure(self) -> bool:
        """Whether the neuron failed. A neuron that is busy (429, 503) or rejects the request has not failed."""
        return self.status >= 500 and self.status != 503 and not self.is_context_overflow

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
        kind = errors.ContextLengthExceeded if self.is_context_overflow else _BY_STATUS.get(self.status)
        if kind is None:
            kind = errors.BadRequest if self.status < 500 else errors.ServiceUnavailable
        return _quoting(kind(self.message, retry_after_s=self.retry_after_s))

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

    def openai_form_with_code(self) -> tuple[bytes, bytes]:
        """As `openai_form`, but an error about the prompt's length always has the code that clients look for."""
        if not self.is_context_overflow:
            return self.openai_form()
        return _JSON, errors.envelope(errors.ContextLengthExceeded(self.message))


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
        return _quoting(errors.ServiceUnavailable(message))
    if is_context_overflow(value):
        return _quoting(errors.ContextLengthExceeded(message))
    if 400 <= status < 500:
        return _quoting(errors.BadRequest(message))
    return _quoting(errors.UpstreamConnectionError(message))


def _quoting(error: errors.GatewayError) -> errors.GatewayError:
    error.is_neurons_text = True
    return error


# How engines say that a prompt is longer than the model's context...

_NEVER_OVERFLOW = frozenset({401, 403, 404, 429, 503})
_OVERFLOW_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"})
_OVERFLOW_WORDS = re.compile(
    r"maximum context length|max(?:imum)? model length|max_model_len"  # OpenAI, vLLM
    r"|(?:exceed\w*|greater than|longer than|larger than|beyond|overflow\w*)"
    r"[\w' ]{0,40}\b(?:context|max_seq_len)\b"  # llama.cpp, SGLang, TabbyAPI
    r"|prompt is too long|prompt too long|context(?: (?:size|length|window))?\b[\w' ]{0,20}\b(?:exceeded|overflows?)",
    re.IGNORECASE,
)


def is_context_overflow(value: object) -> bool:
    """Whether the `error` of a neuron, an object or a text, says that the prompt is longer than the model's context."""
    if isinstance(value, dict) and (_OVERFLOW_CODES & {str(value.get("code")), str(value.get("type"))}):
        return True
    text = error_text({"error": value})
    return text is not None and _OVERFLOW_WORDS.search(text) is not None


def _status_in(value: object) -> int:
    """The HTTP status that such an error stands for: engines put it into `code`, or imply it by `type`."""
    error: dict[str, Any] = value if isinstance(value, dict) else {}
    code, type_ = error.get("code"), str(error.get("type"))
    if isinstance(code, int):
        return code
    if "rate_limit" in type_ or "overloaded" in type_:
        return 503
    return 400 if type_ == "invalid_request_error" or code == "context_length_exceeded" else 502
