"""Scripted peers: neurons behind memory streams or a real port that send given bytes, and the answers they send.

A peer is an async function of one stream. `neuron.simulated` behaves like a neuron; these are for bytes that no correct
neuron sends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio
from trio.testing import memory_stream_pair

from gateway.http.pool import Origin

Peer = Callable[[trio.abc.Stream], Awaitable[None]]


async def read_request(stream: trio.abc.Stream) -> bytes:
    """One request, head and body; an incomplete one if its sender stopped."""
    data = b""
    while piece := await stream.receive_some(65536):
        data += piece
        head, end, body = data.partition(b"\r\n\r\n")
        if end and len(body) >= _content_length(head):
            break
    return data


def _content_length(head: bytes) -> int:
    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lines[0].partition(b":")[2]) if lines else 0


def with_length(body: bytes, *, kind: str = "application/json", status: str = "200 OK", more: str = "") -> bytes:
    """A response with a content-length. `more` are further header lines, each ended by CRLF."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def chunked(*chunks: bytes, kind: str = "text/event-stream", more: str = "", end: bytes = b"0\r\n\r\n") -> bytes:
    """A chunked response, one chunk for each of `chunks`; another `end` can cut it off or add trailers."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n{more}\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def delta(text: str) -> bytes:
    """One event with one generated token."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def answering(*answers: bytes | None, then_close: bool = False) -> Peer:
    """A peer that answers its requests with these bytes, one after the other; None closes instead. It keeps the
    last connection open.
    """

    async def peer(stream: trio.abc.Stream) -> None:
        for answer in answers:
            if not await read_request(stream) or answer is None:
                break
            await stream.send_all(answer)
        else:
            if not then_close:
                await stream.receive_some(1)
        await stream.aclose()

    return peer


class MemoryNetwork:
    """A `connect` for `UpstreamPool`: connection n is served by peer n, and all later ones by the last peer."""

    def __init__(self, nursery: trio.Nursery, *peers: Peer) -> None:
        self._nursery = nursery
        self._peers = list(peers)
        self.connections: list[trio.abc.Stream] = []
        """The client's end of each, in order."""

    async def connect(self, origin: Origin) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        peer = self._peers[min(len(self.connections), len(self._peers) - 1)]
        ours, theirs = memory_stream_pair()
        self.connections.append(ours)
        self._nursery.start_soon(self._serve, peer, theirs)
        return ours

    async def _serve(self, peer: Peer, stream: trio.abc.Stream) -> None:
        try:
            await peer(stream)
        except trio.BrokenResourceError:
            pass  # the gateway may close the connection
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[str]:
    """The base URL of a real port on which every connection is served by `peer`."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await peer(stream)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
