"""The headers of responses: the neuron's, less those that are not for clients, and those the gateway adds."""

from __future__ import annotations

from functools import lru_cache

import trio

from gateway.asgi import Headers
from gateway.proxy import header_policy
from gateway.proxy.response import server_timing
from gateway.telemetry.request_record import RequestRecord

__all__ = ["from_upstream", "header_value", "of_early_stream", "of_gateway", "of_upstream_error"]

_STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def from_upstream(
    headers: Headers,
    record: RequestRecord,
    *,
    streaming: bool,
    keeps_length: bool,
    extra: Headers,
    also: tuple[str, ...] = (),
) -> Headers:
    """The headers of a response that a neuron gave.

    Args:
        headers: The neuron's headers.
        record: The request's record.
        streaming: The body is an event stream.
        keeps_length: The body is the neuron's own, and sent in pieces, so the neuron's `content-length` is needed.
        extra: The headers that the client's dialect adds.
        also: `[gateway] pass_headers`.
    """
    kept = header_policy.for_client(
        headers,
        also,
        own_limits=record.limit_headers is not None,
        same_length=keeps_length,
    )
    if streaming:
        if also:
            own = [name for name, _ in _STREAM_HEADERS]
            kept = [header for header in kept if header[0] not in own]
        kept += _STREAM_HEADERS
    kept += _common_headers(record)
    kept += extra
    return kept


def of_upstream_error(
    headers: Headers, record: RequestRecord, extra: Headers, content_type: bytes, also: tuple[str, ...]
) -> Headers:
    """The headers of a neuron's error response, whose body the client gets in its own dialect."""
    kept = header_policy.for_client(headers, also, own_limits=record.limit_headers is not None)
    kept = [header for header in kept if header[0] not in {b"content-type", b"content-encoding"}]
    return [*of_gateway(record, extra, content_type), *kept]


def of_early_stream(record: RequestRecord, extra: Headers, *, may_fall_back: bool = False) -> Headers:
    """The headers of a stream that begins before a neuron has answered.

    Args:
        record: The request's record.
        extra: The headers that the client's dialect adds.
        may_fall_back: Another model may answer in the end, so the model is not named.
    """
    headers = [(b"content-type", b"text/event-stream"), *_common_headers(record, names_neuron=not may_fall_back)]
    headers += [*extra, *_STREAM_HEADERS]
    # The model is known, but not the neuron: the model is being loaded, or two attempts race.
    if (
        record.routing.model is not None
        and not may_fall_back
        and (record.routing.node is None or record.routing.is_contested)
    ):
        headers.append((b"x-cortex-model", header_value(record.routing.model)))
    return headers


def of_gateway(record: RequestRecord, extra: Headers, content_type: bytes = b"application/json") -> Headers:
    """The headers of a response whose body the gateway made."""
    return [(b"content-type", content_type), *_common_headers(record), *extra]


def _common_headers(record: RequestRecord, *, names_neuron: bool = True) -> Headers:
    routing = record.routing
    # While it is not known which neuron answers, none is named.
    node = routing.node if names_neuron and not routing.is_contested else None
    names = _names(routing.alias, None if node is None else routing.model, node)
    headers: Headers = [(b"x-request-id", record.request_id.encode()), *names]
    if record.limit_headers is not None:
        headers += record.limit_headers()
    if record.ignored:
        headers.append((b"x-cortex-ignored", record.ignored))
    timing = server_timing.server_timing(record, record.first_byte_at or trio.current_time())
    if timing is not None:
        headers.append((b"server-timing", timing))
    return headers


@lru_cache(maxsize=1000)  # an alias or a model that a client makes up has no neuron, so there are few
def _names(alias: str | None, model: str | None, node: str | None) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that name the alias, and model and node if both are known."""
    headers: Headers = []
    if alias is not None:
        headers.append((b"x-cortex-alias", header_value(alias)))
    if model is not None and node is not None:
        headers += ((b"x-cortex-model", header_value(model)), (b"x-cortex-node", header_value(node)))
    return tuple(headers)


@lru_cache(maxsize=1000)  # names of models, aliases and neurons: there are few
def header_value(text: str) -> bytes:
    """A name as a header value. Anything but printable ASCII is percent-encoded."""
    encoded = text.encode()
    if encoded.isascii() and text.isprintable():
        return encoded
    return b"".join(b"%c" % byte if 0x20 <= byte < 0x7F else b"%%%02X" % byte for byte in encoded)
