"""A neuron's no: its status, Retry-After and words, as the client may see them. No routing, no retries."""

from __future__ import annotations

import msgspec

from gateway import errors
from gateway.asgi import Headers
from gateway.http.response_parser import UpstreamResponse

__all__ = ["Refusal"]

LIMIT_BYTES = 64 * 1024  # contract section 10: of an error body that is buffered, logged and perhaps wrapped
RETRY_AFTER_DIGITS = 9  # thirty years; int() and a clock have their limits, and a neuron may say anything
NOT_LOADED = b"not loaded"  # contract section 2: how a neuron says that it does not have the model (any more)


class Refusal(msgspec.Struct):
    """A neuron's answer that is no success, read whole (up to a limit)."""

    status: int
    headers: Headers
    body: bytes

    @classmethod
    async def read(cls, response: UpstreamResponse) -> Refusal:
        """Wait for the body, or as much of it as the limit allows. Raises what `UpstreamResponse.receive` does."""
        body = b""
        while len(body) < LIMIT_BYTES and (piece := await response.receive()):
            body += piece
        return cls(response.status, response.headers, body[:LIMIT_BYTES])

    @property
    def not_loaded(self) -> bool:
        """Whether the neuron says that it does not have the model."""
        return self.status == 404 and NOT_LOADED in self.body

    @property
    def may_differ_elsewhere(self) -> bool:
        """Whether another neuron may well say yes: what is wrong is this one, not the request."""
        return self.status == 429 or self.status >= 500

    @property
    def is_failure(self) -> bool:
        """Whether the neuron says that it broke, rather than that it will not or is busy."""
        return self.status >= 500 and self.status != 503

    @property
    def retry_after_s(self) -> int | None:
        """The neuron's Retry-After where it is in seconds, and so many that it can be meant."""
        value = next((value for name, value in self.headers if name == b"retry-after"), b"")
        return int(value) if value.isdigit() and len(value) <= RETRY_AFTER_DIGITS else None

    def envelope(self) -> bytes:
        """The body as it came if it is in the envelope already, or JSON of another shape; else wrapped."""
        text = self._flat_text()
        if text is None:
            return self.body
        error = self.as_error()
        return errors.envelope_of(text, error.type, error.code)

    @property
    def content_type(self) -> bytes:
        """Of what `envelope` returns."""
        if self._flat_text() is not None:
            return b"application/json"
        return next((value for name, value in self.headers if name == b"content-type"), b"application/json")

    def _flat_text(self) -> str | None:
        """The words of an error that is not in the envelope: `{"error":"text"}` of a neuron, or plain text."""
        try:
            value = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError):
            return self.body.decode("utf-8", "replace").strip() or f"the neuron answered {self.status}"
        if isinstance(value, dict) and isinstance(value.get("error"), str):
            return str(value["error"])
        return None if isinstance(value, dict) else self.body.decode("utf-8", "replace")

    def as_error(self) -> errors.GatewayError:
        """As an error of ours, for where the neuron's own status can no longer be passed on."""
        text = self._flat_text()
        kind = _BY_STATUS.get(self.status)
        if kind is None:
            kind = errors.BadRequest if self.status < 500 else errors.ServiceUnavailable
        return kind(
            text or _message_in(self.body) or f"the neuron answered {self.status}", retry_after_s=self.retry_after_s
        )


_BY_STATUS: dict[int, type[errors.GatewayError]] = {
    404: errors.ModelNotFound,
    413: errors.BodyTooLarge,
    429: errors.RateLimited,
}


def _message_in(body: bytes) -> str | None:
    value = msgspec.json.decode(body)
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None
