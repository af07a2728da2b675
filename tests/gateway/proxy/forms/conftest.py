"""A gateway in memory for uploads."""

import dataclasses

import pytest
from fakes.in_memory import InMemoryGateway

from gateway.config.settings import Settings


@pytest.fixture
def gateway_for(nursery):
    """Creates a gateway for the given neurons; all of them have the model."""

    def make(*neurons, **sections):
        named = {f"neuron-{index}": neuron for index, neuron in enumerate(neurons)}
        return InMemoryGateway(nursery, named, dataclasses.replace(Settings(), **sections))

    return make
