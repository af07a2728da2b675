"""HTTP calls to one engine of this host: whether it answers, its models, its load. Deadlines are the caller's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx
import msgspec
import trio

from neuron.agent.engines.launch import LOOPBACK, EngineHost

__all__ = ["EngineCalls", "EngineUnreachable", "HttpEngineClient", "open_engine_client"]

ANSWER_LIMIT_BYTES = 4 * 1024 * 1024  # vLLM's /metrics has some 200 kB


class EngineUnreachable(Exception):
    """No connection, or it broke, or the answer is larger than any sensible one."""


class EngineCalls(Protocol):
    """What the supervisor asks of an engine. Every method may hang, and raises EngineUnreachable."""

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        ...

    async def post(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body; `body` is sent as JSON."""
        ...


class HttpEngineClient:
    """One engine over TCP. Its maker closes it (`open_engine_client`)."""

    def __init__(self, port: int, host: EngineHost = LOOPBACK) -> None:
        self._http = httpx.AsyncClient(
            base_url=f"http://{host.in_url}:{port}",
            timeout=None,  # noqa: S113 - scopes sit with the caller
            limits=httpx.Limits(max_connections=8, max_keepalive_connections=0),  # engines close idle ones at will
            headers={"accept-encoding": "identity", "user-agent": "cortex-neuron"},
            trust_env=False,
        )

    async def get(self, path: str) -> tuple[int, bytes]:
        """See `EngineCalls`."""
        return await self._call("GET", path, None)

    async def post(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """See `EngineCalls`."""
        return await self._call("POST", path, body)

    async def _call(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        received = bytearray()
        try:
            async with self._http.stream(method, path, content=content, headers=headers) as answer:
                # A cancellation unwinds httpx's nested generators; leaving the loop would not.
                with trio.CancelScope() as too_long:
                    async for chunk in answer.aiter_raw():
                        received += chunk
                        if len(received) > ANSWER_LIMIT_BYTES:
                            too_long.cancel()
        except httpx.HTTPError as error:
            raise EngineUnreachable(str(error) or type(error).__name__) from error
        if len(received) > ANSWER_LIMIT_BYTES:
            raise EngineUnreachable(f"its answer to {path} is larger than {ANSWER_LIMIT_BYTES} bytes")
        return answer.status_code, bytes(received)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()


@asynccontextmanager
async def open_engine_client(port: int, *, host: EngineHost = LOOPBACK) -> AsyncIterator[EngineCalls]:
    """A client of the engine that listens on this port."""
    client = HttpEngineClient(port, host)
    try:
        yield client
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
            await client.aclose()
