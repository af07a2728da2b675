"""Large requests with pictures: their bytes, and a client and a neuron in threads, so that the event loop is the
gateway's alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import socket
import threading
import time

import trio
from fakes.in_memory import InMemoryGateway

from gateway.http.sockets import RECEIVE_BYTES
from gateway.http.tcp.plain_stream import PlainStream

__all__ = ["StepTimes", "ThreadedGateway", "body_with_picture"]

ANSWER = b'{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'


def body_with_picture(model: str, size_bytes: int, **more: object) -> bytes:
    """A chat request with one picture in base64, about as large as said; `model` comes last, as some SDKs send it."""
    picture = base64.b64encode(os.urandom(size_bytes * 3 // 4)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    content = [part, {"type": "text", "text": "What is on the picture? " * 9}]
    return json.dumps({"messages": [{"role": "user", "content": content}], **more, "model": model}).encode()


class StepTimes(trio.abc.Instrument):
    """The CPU time of the longest step that a task took without letting others run."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began = math.inf  # until the first step begins

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest_s = max(self.longest_s, time.thread_time() - self._began)


class ThreadedGateway(InMemoryGateway):
    """A gateway in front of one neuron in a thread, on TCP sockets.

    Attributes:
        received: Of each request that the neuron has got: its head, and the length and SHA-256 of its body.
        before_first_byte: Called in the neuron's thread when a request's head has arrived.
    """

    def __init__(self, nursery: trio.Nursery, **more: object) -> None:
        super().__init__(nursery, {"neuron": None}, **more)
        self.received: list[tuple[bytes, int, str]] = []
        self.before_first_byte = lambda: None

    async def _connect(self, origin: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = tcp_pair()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return _stream(ours)

    def _serve(self, neuron: socket.socket) -> None:
        with neuron:
            head, begun = b"", b""
            while not begun:
                head += neuron.recv(1)
                begun = head[-4:] if head.endswith(b"\r\n\r\n") else b""
            self.before_first_byte()
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            digest, left, buffer = hashlib.sha256(), length, bytearray(RECEIVE_BYTES)
            while left and (size := neuron.recv_into(buffer, min(left, len(buffer)))):
                digest.update(memoryview(buffer)[:size])
                left -= size
            self.received.append((head, length - left, digest.hexdigest()))
            answer_head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
            neuron.sendall(answer_head + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    async def ask(self, body: bytes, path: str = "/v1/chat/completions", *, headers: tuple[str, ...] = ()) -> bytes:
        """Send a request from a thread. Returns the status line."""
        ours, theirs = tcp_pair()
        self.nursery.start_soon(self.server.serve_stream, _stream(theirs))
        lines = (
            f"POST {path} HTTP/1.1",
            "host: gateway",
            "connection: close",
            f"content-length: {len(body)}",
            *headers,
        )
        return await trio.to_thread.run_sync(_exchange, ours, "\r\n".join((*lines, "", "")), body)


def _exchange(client: socket.socket, head: str, body: bytes) -> bytes:
    with client:
        client.sendall(head.encode())
        client.sendall(body)
        answer = b""
        while piece := client.recv(RECEIVE_BYTES):
            answer += piece
    return answer.partition(b"\r\n")[0]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback: unlike a socket pair, it takes megabytes at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def _stream(end: socket.socket) -> PlainStream:
    return PlainStream(end)
