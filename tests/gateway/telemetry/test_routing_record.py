"""The record of a request's routing."""

from types import SimpleNamespace

from gateway.errors import ServiceUnavailable
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.routing_record import RoutingRecord


async def test_fallback_ends_the_slot_at_the_first_model():
    """The first model's queue is charged for its use up to then, and the fallback model needs a ticket of its own."""
    record, ended = RoutingRecord(Metrics(), "r"), []
    record.ticket = SimpleNamespace(end_slot=lambda: ended.append("first"))

    record.fell_back("other", ServiceUnavailable("its neuron failed"))

    assert ended == ["first"]
    assert record.ticket is None
