"""A gateway in front of two neurons."""

import pytest
from fakes.in_memory import SMALL, InMemoryGateway

from catalogue.models import Alias, Catalogue, Hedge, Target
from gateway.config.settings import DeadlineSettings, RetrySettings, Settings


@pytest.fixture
def before(nursery):
    """Makes a gateway in front of these neurons, used in the order of their names; its alias hedges after a second."""

    def make(hedge=Hedge(1.0, 100.0), *, attempts=0, deadlines=DeadlineSettings(), **neurons):  # noqa: B008 - frozen
        settings = Settings(retries=RetrySettings(attempts), deadlines=deadlines)
        gateway = InMemoryGateway(nursery, neurons, settings)
        alias = Alias("helexa/small", (Target(SMALL),), hedge=hedge)
        gateway.catalogue.current = Catalogue(1, {}, {alias.name: alias})
        return gateway

    return make
