"""The trace that a request belongs to, as clients and neurons name it (W3C Trace Context, section 3.2)."""

from __future__ import annotations

import random
import re
from typing import NamedTuple, Self

from gateway.asgi import Headers

__all__ = ["TraceContext", "new_span_id"]

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_ITS_LINE = re.compile(rb"^traceparent: .*\n", re.MULTILINE)
_SAMPLED = 1
_INVALID_VERSION = b"ff"

_random = random.Random()  # noqa: S311 - ids need not be secret


class TraceContext(NamedTuple):
    """One request in its trace. `parent_id` is the client's span, 0 if it has none."""

    trace_id: int
    span_id: int
    parent_id: int = 0

    @classmethod
    def begin(cls, headers: Headers, sample: float) -> Self | None:
        """The context of a new request; None if it is not sampled.

        The client's decision counts if it sends a `traceparent`; else the share `sample` of the requests is sampled.
        """
        sent = next((value for name, value in headers if name == b"traceparent"), None)
        match = None if sent is None else _TRACEPARENT.match(sent)
        if match is not None and match[1] != _INVALID_VERSION and (match[1] != b"00" or match[5] is None):
            trace_id, parent_id = int(match[2], 16), int(match[3], 16)
            if trace_id and parent_id:
                return cls(trace_id, new_span_id(), parent_id) if int(match[4], 16) & _SAMPLED else None
        if sample < 1 and _random.random() >= sample:
            return None
        return cls(_random.getrandbits(128) or 1, new_span_id())

    def headers_for(self, span_id: int, lines: bytes) -> bytes:
        """Header lines with a `traceparent` that names this span as the parent."""
        return b"%btraceparent: 00-%032x-%016x-01\r\n" % (_ITS_LINE.sub(b"", lines), self.trace_id, span_id)


def new_span_id() -> int:
    """A random id; never 0, which is invalid."""
    return _random.getrandbits(64) or 1
