"""One exchange with a scripted neuron, for tests of the layers below `gateway/proxy`."""

from __future__ import annotations

from fakes.scripted import read_request

from gateway.config.settings import DeadlineSettings
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import Origin, request_head

ORIGIN = Origin.parse("http://beast:13131")
REQUEST = (request_head(ORIGIN, b"/v1/chat/completions", b"", 2), b"{}")


async def ask(upstream, origin=ORIGIN, request=REQUEST):
    """One complete exchange: status and body."""
    with upstream.exchange(origin, request, PhaseDeadlines(DeadlineSettings())) as exchange:
        response = await exchange.response()
        body = b""
        while piece := await response.receive():
            body += piece
        return response.status, body


def piecemeal(data, size=1):
    """A peer that sends its answer in pieces of `size` bytes, and closes."""

    async def peer(stream):
        await read_request(stream)
        for at in range(0, len(data), size):
            await stream.send_all(data[at : at + size])
        await stream.aclose()

    return peer
