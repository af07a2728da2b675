"""A request's record around a block, without a request."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.telemetry.request_log import RequestLog
from gateway.telemetry.request_record import RequestRecord


@contextmanager
def recorded(request_log: RequestLog, request_id: str = "id", path: str = "/") -> Iterator[RequestRecord]:
    """A record that ends with the block, however that is left."""
    record = request_log.open(request_id, path)
    try:
        yield record
    finally:
        request_log.close(record)
