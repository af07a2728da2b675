"""A gateway on real sockets before one simulated neuron that has a model of every kind, one that thinks among them."""

import gc

import pytest
from fakes.running import LARGE, SMALL, running_gateway

from neuron.simulated.fleet import neuron

THINKER, EMBEDDER = "Qwen/Qwen3-14B", "Qwen/Qwen3-Embedding-0.6B"


@pytest.fixture
def beast():
    """A hundred times faster than life unless a test says otherwise."""
    return neuron("beast", [24576, 24576], [SMALL, LARGE, THINKER, EMBEDDER], speed=100)


@pytest.fixture
async def cortex(tmp_path, beast):
    async with running_gateway(tmp_path, [beast]) as running:
        yield running


@pytest.fixture(autouse=True)
def _collect_what_the_sdk_leaves():
    """Here, where it is forgiven, and not in whichever test comes next on this worker."""
    yield
    gc.collect()
