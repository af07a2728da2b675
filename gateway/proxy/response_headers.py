"""Heads of answers: the neuron's own, less what was between it and us, plus what we say of every routed answer."""

from __future__ import annotations

import trio

from gateway.asgi import Headers
from gateway.proxy import server_timing
from gateway.proxy.request import HOP_BY_HOP, named_by_connection
from gateway.telemetry.request_record import Record

__all__ = ["header_value", "of_early_stream", "of_ours", "of_upstream"]

_NOT_FOR_CLIENTS = HOP_BY_HOP | {b"x-request-id", b"date"}
_NOT_FOR_CLIENTS_OF_STREAMS = _NOT_FOR_CLIENTS | {b"content-length", b"cache-control", b"x-accel-buffering"}
_NOT_FOR_CLIENTS_PREFIXES = (b"x-cortex-", b"proxy-")
_STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def of_upstream(headers: Headers, record: Record, *, streaming: bool, translated: bool, extra: Headers) -> Headers:
    """For an answer that a neuron gave.

    Args:
        headers: The neuron's.
        record: Of the request.
        streaming: The body is an event stream.
        translated: The body is not the neuron's own, so its length is not either.
        extra: What the client's dialect adds.
    """
    dropped = _NOT_FOR_CLIENTS_OF_STREAMS if streaming else _NOT_FOR_CLIENTS
    dropped |= named_by_connection(headers)
    if translated:
        dropped |= {b"content-length"}
    kept = [
        (name, value)
        for name, value in headers
        if name not in dropped and not name.startswith(_NOT_FOR_CLIENTS_PREFIXES)
    ]
    kept += _who_and_what(record)
    kept += extra
    if streaming:
        kept += _STREAM_HEADERS
    return kept


def of_early_stream(record: Record, extra: Headers, *, undecided: bool = False) -> Headers:
    """For a stream whose neuron is not known yet; `undecided` says that it may yet be another model that answers."""
    ours = _what(record) if undecided else _who_and_what(record)
    headers = [(b"content-type", b"text/event-stream"), *ours, *extra, *_STREAM_HEADERS]
    # It waits for its load, or two neurons have been asked.
    if record.model is not None and not undecided and (record.node is None or record.is_contested):
        headers.append((b"x-cortex-model", header_value(record.model)))
    return headers


def of_ours(record: Record, extra: Headers, content_type: bytes = b"application/json") -> Headers:
    """For an answer of our own making."""
    return [(b"content-type", content_type), *_who_and_what(record), *extra]


def _who_and_what(record: Record) -> Headers:
    headers = _what(record)
    if record.model is not None and record.node is not None and not record.is_contested:
        headers.append((b"x-cortex-model", header_value(record.model)))
        headers.append((b"x-cortex-node", header_value(record.node)))
    return headers


def _what(record: Record) -> Headers:
    """What holds whoever answers."""
    headers = [(b"x-request-id", record.request_id.encode())]
    if record.alias is not None:
        headers.append((b"x-cortex-alias", header_value(record.alias)))
    spent = server_timing.server_timing(record, trio.current_time())
    if spent is not None:
        headers.append((b"server-timing", spent))
    return headers


def header_value(text: str) -> bytes:
    """A name as a header value: ids are ASCII nearly always; what is not is percent-encoded."""
    encoded = text.encode()
    if encoded.isascii() and text.isprintable():
        return encoded
    return b"".join(b"%c" % byte if 0x20 <= byte < 0x7F else b"%%%02X" % byte for byte in encoded)
