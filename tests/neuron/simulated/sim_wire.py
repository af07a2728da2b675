"""Requests as bytes, and bytes read from streams: what tests of a simulated neuron share. No fixtures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from neuron.simulated import PROBE

CHAT = "/v1/chat/completions"
Dial = Callable[[], Awaitable[trio.abc.Stream]]
Raw = Callable[..., Awaitable[bytes]]


def request(model: str, content: str = PROBE, *, path: str = CHAT, **fields: Any) -> bytes:
    """A chat request as bytes, headers and all."""
    body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": content}], **fields})
    return b"POST %s HTTP/1.1\r\nhost: sim\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body


async def read_all(stream: trio.abc.Stream) -> bytes:
    """Everything until the other side closes."""
    return b"".join([bytes(data) async for data in stream])


async def read_until(stream: trio.abc.Stream, mark: bytes) -> bytes:
    """Everything up to at least this mark."""
    got = b""
    while mark not in got:
        data = await stream.receive_some()
        assert data, f"closed before {mark!r}: {got!r}"
        got += data
    return got
