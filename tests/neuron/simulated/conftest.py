"""A simulated neuron over memory streams (exact time) or a real socket (real bytes), for the tests beside this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import httpx
import pytest
import trio
from sim_wire import Dial, Raw, read_all
from trio.testing import memory_stream_pair

from neuron.simulated import SimNeuron
from neuron.simulated.fleet import neuron


@pytest.fixture
def simulated() -> SimNeuron:
    """A neuron with two devices and the two probe models loaded, at speed 1."""
    return neuron("beast", [24576, 24576], ["Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"])


@pytest.fixture
def dial(simulated: SimNeuron, nursery: trio.Nursery) -> Callable[[], trio.abc.Stream]:
    """Opens a connection to `simulated` in memory."""

    def connect() -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(simulated.serve_stream, theirs)
        return ours

    return connect


@pytest.fixture
async def url(simulated: SimNeuron, nursery: trio.Nursery) -> str:
    """The base URL of `simulated` on a real socket, a thousand times as fast."""
    simulated.speed = 1000
    return str(await nursery.start(simulated.serve))


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of `simulated`."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as opened:
        yield opened


@pytest.fixture
def connect(simulated: SimNeuron, url: str) -> Dial:
    """Opens a real socket to `simulated`."""
    return partial(trio.open_tcp_stream, "127.0.0.1", simulated.port)


@pytest.fixture
def raw(connect: Dial) -> Raw:
    """Sends bytes on a real socket and returns all that comes until the neuron closes."""

    async def exchange(*parts: bytes) -> bytes:
        async with await connect() as stream:
            for part in parts:
                await stream.send_all(part)
            return await read_all(stream)

    return exchange
