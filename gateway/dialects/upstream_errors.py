"""Errors that a neuron reports, as an error response or inside a stream: their message, and the matching GatewayError.

`gateway.http.error_body` reads the text. Which neuron to try next is not decided here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any

import msgspec

from gateway import errors
from gateway.asgi import Headers
from gateway.dialects.token_room import TokenRefusal, read_token_refusal
from gateway.http.error_body import decode_error_body, error_text
from gateway.http.response_parser import UpstreamResponse

__all__ = [
    "UpstreamErrorResponse",
    "error_in",
    "error_in_event",
    "error_response_in",
    "from_stream",
    "is_context_overflow",
]

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
        return (self.status == 429 or self.status >= 500) and not self._rejects_length

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
        return self.status >= 500 and self.status != 503 and not self._rejects_length

    @property
    def token_refusal(self) -> TokenRefusal | None:
        """What the neuron says about `max_tokens`, if that is what it rejects."""
        return None if self.status in _NEVER_OVERFLOW else read_token_refusal(self.message)

    @property
    def _rejects_length(self) -> bool:
        return self.is_context_overflow or self.token_refusal is not None

    @property
    def retry_after_s(self) -> int | None:
        """When to come back, in seconds from now; None if that is absent, invalid or absurdly long.

        From Retry-After, in seconds or as a date, else from retry-after-ms.
        """
        value = self._header(b"retry-after")
        if _NUMBER.fullmatch(value):
            return _whole_seconds(float(value))
        if value:
            return _seconds_until(value.decode("latin-1"))
        milliseconds = self._header(b"retry-after-ms")
        return _whole_seconds(float(milliseconds) / 1000) if _NUMBER.fullmatch(milliseconds) else None

    def _header(self, name: bytes) -> bytes:
        return next((value for found, value in self.headers if found == name), b"").strip()

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
        if (refusal := self.token_refusal) is not None:
            return _quoting(_too_many_tokens(refusal, self.message))
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
        """As `openai_form`, but an error about lengths always has the code or the words that clients look for."""
        if (refusal := self.token_refusal) is not None:
            error = _too_many_tokens(refusal, self.message, "max_output_tokens")
            return _JSON, errors.envelope(error)
        if not self.is_context_overflow:
            return self.openai_form()
        return _JSON, errors.envelope(errors.ContextLengthExceeded(self.message))


_JSON = b"application/json"
_BY_STATUS: dict[int, type[errors.GatewayError]] = {
    404: errors.ModelNotFound,
    413: errors.BodyTooLarge,
    429: errors.RateLimited,
}


def error_in(fields: Mapping[str, Any]) -> object:
    """The error that a neuron reports by an event, or by a body under a 200, in any form; None if it reports none.

    `{"error": ...}` is one, and so are `{"object": "error", "message"}`, `{"detail"}` and `{"message", "code"}`, unless
    they have choices.
    """
    if fields.get("error"):
        return fields["error"]
    if fields.get("choices"):
        return None
    message, kind = fields.get("message"), fields.get("type")
    has_text = isinstance(message, str) and bool(message)
    is_named = isinstance(kind, str) and kind.lower().endswith("error")
    has_status = any(fields.get(member) is not None for member in _STATUS_MEMBERS)
    if "error" in (fields.get("object"), kind) or fields.get("detail") or (has_text and (is_named or has_status)):
        return {name: fields[name] for name in (*_FLAT_MEMBERS, *_STATUS_MEMBERS) if fields.get(name) is not None}
    return None


_FLAT_MEMBERS = ("message", "detail", "type")


def error_in_event(data: bytes) -> object:
    """The error in the data of an event of the type `error`, which is one in whatever form it is."""
    value = decode_error_body(data)
    return (error_in(value) or value) if isinstance(value, dict) else value


def from_stream(value: object) -> errors.GatewayError:
    """The error of the gateway for the `error` that a neuron puts into a stream, or into a body under a 200."""
    status = _status_in(value)
    message = error_text({"error": value}) or "the neuron reported an error inside its stream"
    kind: type[errors.GatewayError] = errors.UpstreamConnectionError
    if status in {429, 503, 529}:
        kind = errors.ServiceUnavailable
    elif status in {401, 407}:  # the gateway's own key, not the client's
        kind = errors.UpstreamAuthFailed
    elif (refusal := read_token_refusal(message)) is not None:
        return _quoting(_too_many_tokens(refusal, message))
    elif is_context_overflow(value):
        kind = errors.ContextLengthExceeded
    elif 400 <= status < 500:
        kind = errors.BadRequest
    return _quoting(kind(message))


def error_response_in(value: object) -> UpstreamErrorResponse:
    """The error response that stands for the `error` of a stream: the same error under its own status."""
    status = _status_in(value)
    if isinstance(value, dict) and not value.get("message") and (text := error_text(value)) is not None:
        value = {**value, "message": text}  # under the name that clients read
    body = msgspec.json.encode({"error": value})[:BODY_LIMIT_BYTES]
    return UpstreamErrorResponse(status if 400 <= status < 600 else 502, [(b"content-type", _JSON)], body)


def _too_many_tokens(refusal: TokenRefusal, message: str, param: str = "max_tokens") -> errors.BadRequest:
    words = refusal.message
    return errors.BadRequest(message if words is None else words.replace("max_tokens", param), param=param)


def _seconds_until(date: str) -> int | None:
    """The seconds until an HTTP-date (RFC 9110, section 5.6.7), 0 for one that has passed; None if it is no date."""
    try:
        at = parsedate_to_datetime(date)
        seconds = at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time.time()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    return _whole_seconds(max(seconds, 0))


def _whole_seconds(seconds: float) -> int | None:
    return ceil(seconds) if seconds < 10**RETRY_AFTER_DIGITS else None


_NUMBER = re.compile(rb"\d{1,20}(?:\.\d{0,20})?")


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
    r"|prompt is too long|prompt too long"
    r"|context(?: (?:size|length|window))?\b[\w' ]{0,20}\b(?:exceed(?:s|ed)|overflows?)"
    # SGLang, Gemini
    r"|\binput (?:length|token count) ?(?:\(?[\d,]+[\w ]{0,10}\)? )?(?:exceed\w*|is (?:longer|greater))"
    r"|token count is [\d,]+ but model only supports up to"
    # TGI, Bedrock, Qwen
    r"|`inputs` must have less than|input is too long|too many input tokens|range of input length should be"
    # TensorRT-LLM, Zhipu, xAI, Kimi
    r"|prompt(?: length)?(?: \([\d,]+\))? exceed\w*|maximum prompt length|exceeded model token limit"
    r"|prompt ?\u8d85\u957f|\u8d85\u8fc7\w{0,8}\u6700\u5927\w{0,6}\u957f\u5ea6"  # Zhipu, other Chinese hosts
    r"|reduce the length of the (?:messages|prompt|input)|tokens in the prompt cannot exceed",  # Groq, Cohere
    re.IGNORECASE,
)


def is_context_overflow(value: object) -> bool:
    """Whether the `error` of a neuron, an object or a text, says that the prompt is longer than the model's context."""
    text = error_text({"error": value})
    if text is not None and read_token_refusal(text) is not None:
        return False  # a shorter answer fits
    if isinstance(value, dict) and (_OVERFLOW_CODES & {str(value.get("code")), str(value.get("type"))}):
        return True
    return text is not None and _OVERFLOW_WORDS.search(text) is not None


def _status_in(value: object) -> int:
    """The HTTP status that such an error stands for: engines put it into a member, or imply it by `type` or `code`."""
    error: dict[str, Any] = value if isinstance(value, dict) else {}
    for member in _STATUS_MEMBERS:
        status = error.get(member)
        if isinstance(status, str) and _STATUS.fullmatch(status):
            status = int(status)
        if isinstance(status, int) and not isinstance(status, bool):
            return status
    names = f"{error.get('type')} {error.get('code')}".lower()
    return next((status for word, status in _STATUS_WORDS if word in names), 502)


_STATUS_MEMBERS = ("code", "status", "status_code", "http_code", "http_status")
_STATUS = re.compile(r"[1-5][0-9]{2}")
_STATUS_WORDS = (
    ("rate_limit", 429),
    ("insufficient_quota", 429),
    ("overloaded", 503),
    ("authentication_error", 401),
    ("invalid_api_key", 401),
    ("invalid_request", 400),
    ("badrequesterror", 400),
    ("context_length_exceeded", 400),
)
