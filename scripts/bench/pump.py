"""As `floor.py`, but one task carries every relaying stream: it waits on a nested epoll. A prototype for measuring.

It has no limits, no deadlines, no error handling and no slow clients.

    python scripts/bench/pump.py PORT UPSTREAM_PORT
"""

from __future__ import annotations

import gc
import os
import select
import sys
from dataclasses import dataclass

import httptools
import trio
from floor import HEAD, READ_BYTES, Answer, Incoming, decoder

PORT, UPSTREAM_PORT = int(sys.argv[1]), int(sys.argv[2])
IDLE_S = 300
ready = select.epoll()
idle: list[trio.SocketStream] = []


@dataclass(slots=True)
class Flow:
    """A stream that is being relayed: an upstream socket, a client socket, and what the request's task waits for."""

    upstream_fd: int
    client_fd: int
    parser: httptools.HttpResponseParser
    answer: Answer
    ended: trio.Event
    scope: trio.CancelScope


flows: dict[int, Flow] = {}


async def pump() -> None:
    """Carry every flow whose upstream has bytes, in one turn."""
    while True:
        await trio.lowlevel.wait_readable(ready.fileno())
        now = trio.current_time()
        for fd, _ in ready.poll(0, 256):
            flow = flows[fd]
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                continue
            flow.parser.feed_data(data)
            out = b""
            if flow.answer.pieces:
                piece = b"".join(flow.answer.pieces)
                flow.answer.pieces.clear()
                out = b"%x\r\n%b\r\n" % (len(piece), piece)
            if flow.answer.done:
                out += b"0\r\n\r\n"
            if out and os.write(flow.client_fd, out) != len(out):
                raise RuntimeError("the client reads too slowly for this prototype")
            flow.scope.deadline = now + IDLE_S
            if flow.answer.done or not data:
                ready.unregister(fd)
                flow.ended.set()


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
    """One request to the upstream; the pump carries its answer back."""
    decoder.decode(body)
    body = body.replace(b'"helexa/small"', b'"Qwen/Qwen3-1.7B"', 1)
    upstream = idle.pop() if idle else await trio.open_tcp_stream("127.0.0.1", UPSTREAM_PORT)
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    await upstream.send_all(head % len(body) + body)
    answer = Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.has_head:
        parser.feed_data(await upstream.receive_some(READ_BYTES))
    out = HEAD
    if answer.pieces:
        piece = b"".join(answer.pieces)
        answer.pieces.clear()
        out += b"%x\r\n%b\r\n" % (len(piece), piece)
    if answer.done:
        out += b"0\r\n\r\n"
    await client.send_all(out)
    if not answer.done:
        fd = upstream.socket.fileno()
        with trio.CancelScope(deadline=trio.current_time() + IDLE_S) as scope:
            flow = Flow(fd, client.socket.fileno(), parser, answer, trio.Event(), scope)
            flows[fd] = flow
            ready.register(fd, select.EPOLLIN)
            try:
                await flow.ended.wait()
            finally:
                flows.pop(fd, None)
    idle.append(upstream)


async def main() -> None:
    """Serve and pump."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        await trio.serve_tcp(serve, PORT)


if __name__ == "__main__":
    gc.freeze()
    trio.run(main)
