"""The least a Trio proxy can do: llhttp on both sides, one nursery per request, and nothing else. For measuring only.

It has no limits, no deadlines and no error handling.

    python scripts/bench/floor.py PORT UPSTREAM_PORT
"""

from __future__ import annotations

import sys

import httptools
import msgspec
import trio

PORT, UPSTREAM_PORT = int(sys.argv[1]), int(sys.argv[2])
READ_BYTES = 65536
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


class Body(msgspec.Struct):
    """What a gateway reads of a request."""

    model: str
    stream: bool = False


class Incoming:
    """One request, as llhttp reports it."""

    __slots__ = ("body", "done")

    def __init__(self) -> None:
        self.done = False
        self.body = b""

    def on_body(self, data: bytes) -> None:
        """Called by llhttp."""
        self.body += data

    def on_message_complete(self) -> None:
        """Called by llhttp."""
        self.done = True


class Answer:
    """One response, as llhttp reports it."""

    __slots__ = ("done", "has_head", "pieces")

    def __init__(self) -> None:
        self.done = self.has_head = False
        self.pieces: list[bytes] = []

    def on_headers_complete(self) -> None:
        """Called by llhttp."""
        self.has_head = True

    def on_body(self, data: bytes) -> None:
        """Called by llhttp."""
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        """Called by llhttp."""
        self.done = True


decoder = msgspec.json.Decoder(Body)
idle: list[trio.SocketStream] = []


async def serve(client: trio.SocketStream) -> None:
    """One client connection, request after request."""
    try:
        while True:
            incoming = Incoming()
            parser = httptools.HttpRequestParser(incoming)
            while not incoming.done:
                data = await client.receive_some(READ_BYTES)
                if not data:
                    return
                parser.feed_data(data)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward, client, incoming.body)
    except trio.BrokenResourceError:
        pass


async def forward(client: trio.SocketStream, body: bytes) -> None:
    """One request to the upstream, and its answer back."""
    decoder.decode(body)
    body = body.replace(b'"helexa/small"', b'"Qwen/Qwen3-1.7B"', 1)
    upstream = idle.pop() if idle else await trio.open_tcp_stream("127.0.0.1", UPSTREAM_PORT)
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    await upstream.send_all(head % len(body) + body)
    answer = Answer()
    parser = httptools.HttpResponseParser(answer)
    sent_head = False
    while not answer.done:
        data = await upstream.receive_some(READ_BYTES)
        if not data:
            raise RuntimeError("the upstream closed the connection")
        parser.feed_data(data)
        out = b""
        if answer.has_head and not sent_head:
            sent_head, out = True, HEAD
        if answer.pieces:
            piece = b"".join(answer.pieces)
            answer.pieces.clear()
            out += b"%x\r\n%b\r\n" % (len(piece), piece)
        if answer.done:
            out += b"0\r\n\r\n"
        if out:
            await client.send_all(out)
    idle.append(upstream)


if __name__ == "__main__":
    trio.run(trio.serve_tcp, serve, PORT)
