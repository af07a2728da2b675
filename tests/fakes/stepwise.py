"""An engine that sends its next word only after its client has the previous one. It tests two properties of everything
between them: bytes arrive at once and not together with later ones, and a disconnect is passed on.

The test waits for words and never sleeps: a part that buffers hangs the test, however fast the machine.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate

import trio
from fakes.in_memory import Client
from fakes.patience import SAFETY_NET_S
from fakes.running import PROBE, SMALL
from fakes.scripted import DONE, chunked, delta, listening, read_request, with_length

CHAT = "/v1/chat/completions"


@dataclass
class Stepwise:
    """One conversation at a time. It lists the small model, so that it can be a gateway's backend."""

    words: list[bytes] = field(default_factory=lambda: [*(delta(f" word {number}") for number in range(10)), DONE])
    received: list[trio.Event] = field(default_factory=list)
    left_at: float | None = None
    left: trio.Event = field(default_factory=trio.Event)

    def ready(self) -> None:
        """Prepare for another conversation."""
        self.received = [trio.Event() for _ in self.words]
        self.left, self.left_at = trio.Event(), None

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        request = await read_request(stream)
        if not request.startswith(b"POST "):
            await stream.send_all(with_length(json.dumps({"object": "list", "data": [{"id": SMALL}]}).encode()))
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice, stream, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError):  # the client disconnected: `_notice` records it
                await stream.send_all(chunked(end=b""))
                for word, received in zip(self.words, self.received, strict=True):
                    await stream.send_all(b"%x\r\n%b\r\n" % (len(word), word))
                    await received.wait()
                await stream.send_all(b"0\r\n\r\n")
                nursery.cancel_scope.cancel()

    async def _notice(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass
        self.left_at = trio.current_time()
        self.left.set()
        scope.cancel()


@asynccontextmanager
async def stepwise():
    """An engine on a port of its own, and its base URL."""
    engine = Stepwise()
    async with listening(engine.serve) as url:
        yield engine, url


async def read_word_by_word(engine: Stepwise, port: int, model: str) -> bytes:
    """Request a stream, and permit each next word when the previous one has arrived: the bytes, without comments."""
    engine.ready()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = Client(stream)
        await client.send({"model": model, "messages": PROBE, "stream": True}, CHAT)
        with trio.fail_after(SAFETY_NET_S):
            status, headers = await client.head()
            assert status == 200, headers
            got = b""
            while piece := await client.piece(headers):
                got += piece
                for expected, received in zip(accumulate(engine.words), engine.received, strict=True):
                    if without_comments(got).startswith(expected):
                        received.set()
    return without_comments(got)


async def disconnect_after_a_word(engine: Stepwise, port: int, model: str) -> float:
    """Seconds from a client's disconnect in mid-stream until the engine notices."""
    engine.ready()
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    client = Client(stream)
    await client.send({"model": model, "messages": PROBE, "stream": True}, CHAT)
    with trio.fail_after(SAFETY_NET_S):
        _, headers = await client.head()
        while engine.words[0] not in (await client.piece(headers)):
            pass
        left_at = trio.current_time()
        stream.socket.close()
        await engine.left.wait()
    return engine.left_at - left_at


def without_comments(stream: bytes) -> bytes:
    """Without keep-alives, whose times vary."""
    return b"".join(event + b"\n\n" for event in stream.split(b"\n\n") if event and not event.startswith(b":"))
