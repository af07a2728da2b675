"""A gateway on real sockets in front of one simulated neuron, and its clients."""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fakes.in_memory import Client
from fakes.patience import PATIENT_STREAMING
from fakes.running import LARGE, SMALL, running_gateway

from neuron.simulated.fleet import neuron


@pytest.fixture
def beast():
    """The neuron, with both tiers loaded, a hundred times faster than real models unless a test changes that."""
    return neuron("beast", [24576, 24576], [SMALL, LARGE], speed=100)


@pytest.fixture(params=[pytest.param(True, id="pump")])
def pump(request):
    """Whether the pump carries streams. Modules for which that matters have `pytestmark = fakes.running.BOTH_WAYS`."""
    return request.param


@pytest.fixture
async def cortex(tmp_path, beast, pump):
    """The running gateway in front of `beast`."""
    streaming = dataclasses.replace(PATIENT_STREAMING, pump=pump)
    async with running_gateway(tmp_path, [beast], streaming=streaming) as running:
        yield running


@pytest.fixture
async def http(cortex):
    """An HTTP client of the gateway. httpx checks framing strictly."""
    async with httpx.AsyncClient(base_url=cortex.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def wire(cortex):
    """Opens a connection with a minimal HTTP client; closed at the end of the block."""

    @asynccontextmanager
    async def connected():
        async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream:
            yield Client(stream)

    return connected
