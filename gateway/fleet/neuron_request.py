"""The bytes of an outgoing request to a neuron: attempts, hedges, shadows, probes and token counts are built here.

Sending them is `http/pool.py`. Path, headers and body arrive finished: nothing here knows a dialect. The body must name
the model by `neuron_model_name`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from gateway.errors import UpstreamMalformedResponse
from gateway.fleet.route import Route
from gateway.http.pool import Origin, complete_head, request_opening
from gateway.http.streamed_body import StreamedBody

__all__ = ["BodyInPieces", "build_request", "neuron_model_name"]

_JOIN_LIMIT_BYTES = 128 * 1024  # copying this much costs less than a second system call


class BodyInPieces(Protocol):
    """A body that is not in one piece, so that it need not be copied."""

    def __len__(self) -> int:
        """The size in bytes."""
        ...

    @property
    def pieces(self) -> tuple[bytes | memoryview, ...]:
        """The bytes to send, in order."""
        ...


def neuron_model_name(route: Route) -> str:
    """The name that the outgoing body must give the model: the engine's own, where `serves` maps it."""
    return route.model_id if route.access is None else route.access.model_name(route.model_id)


def build_request(
    route: Route, path: bytes, lines: bytes, body: bytes | BodyInPieces, *, upload: StreamedBody | None = None
) -> tuple[Origin, tuple[bytes | memoryview, ...]]:
    """A POST to the route's neuron: where to connect, and the pieces to send in order.

    The pieces are the head and, unless it is uploaded later, the body.

    Args:
        route: Gives the origin, and for an engine its path prefix and credentials.
        path: As clients of this gateway spell it (`/v1/...`), with the query.
        lines: The header lines, free of hop-by-hop headers and of the client's credentials.
        body: The whole body; empty if `upload` produces it.
        upload: A body that is sent while it is produced. Only its length is read here.

    Raises:
        UpstreamMalformedResponse: The neuron reported an inference URL that is not an http(s) URL.
    """
    try:
        if (access := route.access) is not None:
            path, lines = access.path_at_engine(path), access.with_credentials(lines)
        origin, opening = _opening(route.url, path)
    except ValueError as error:
        raise UpstreamMalformedResponse(f"the neuron's inference URL is {error}") from error
    size = len(body)
    head = complete_head(opening, lines, size if upload is None else upload.length)
    if not isinstance(body, bytes):
        return origin, (head, *body.pieces)
    return origin, (head + body,) if size < _JOIN_LIMIT_BYTES else (head, body)


@lru_cache(maxsize=1024)  # neurons report few URLs, but clients may add a query to a path
def _opening(url: str, path: bytes) -> tuple[Origin, bytes]:
    """Raises ValueError for a URL that is none."""
    origin = Origin.parse(url)
    return origin, request_opening(origin, path)
