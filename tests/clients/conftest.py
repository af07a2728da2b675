"""A gateway on real sockets in front of one simulated neuron that has a model of every kind, one with reasoning."""

import gc

import pytest
from fakes.running import LARGE, SMALL, running_gateway

from neuron.simulated.fleet import neuron

THINKER, EMBEDDER = "Qwen/Qwen3-14B", "Qwen/Qwen3-Embedding-0.6B"


@pytest.fixture
def beast():
    """A hundred times faster than real models unless a test changes that."""
    return neuron("beast", [24576, 24576], [SMALL, LARGE, THINKER, EMBEDDER], speed=100)


@pytest.fixture
async def cortex(tmp_path, beast):
    async with running_gateway(tmp_path, [beast]) as running:
        yield running


@pytest.fixture(autouse=True)
def _collect_sdk_generators():
    """In this test, where the warning is ignored, and not in a later test of this worker."""
    yield
    gc.collect()
