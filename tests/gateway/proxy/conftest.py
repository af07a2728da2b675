"""A gateway in memory, as it is before a test's request."""

import dataclasses

import pytest
from fakes.in_memory import InMemoryGateway

from gateway.config.settings import (
    RetrySettings,
    Settings,
)


@pytest.fixture
def before(nursery):
    """Makes a gateway in front of one neuron; no retries unless a test asks for them."""

    def make(peer, *, attempts=0, **sections):
        settings = dataclasses.replace(Settings(retries=RetrySettings(attempts=attempts)), **sections)
        return InMemoryGateway(nursery, {"beast": peer}, settings)

    return make
