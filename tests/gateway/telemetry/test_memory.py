"""Ended requests leave nothing in memory but entries in bounded tables. Objects are counted."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from trio.testing import wait_all_tasks_blocked

from gateway.telemetry.recent import RecentRequests
from neuron.simulated.faults import Drop, HttpError
from neuron.simulated.fleet import neuron

ROUND = (
    {},
    {"stream": True},
    {"path": "/v1/messages", "max_tokens": 9},
    {"path": "/v1/messages", "max_tokens": 9, "stream": True},
    {"path": "/v1/responses", "input": "hi"},
    {"path": "/v1/responses", "input": "hi", "stream": True},
    {"model": "nobody/has-it"},
    {"body": b"{"},
    {"headers": ("x-request-deadline-ms: 300",)},
    {"stream": True, "headers": ("x-request-deadline-ms: 2400", "x-cortex-timing: 1")},
)


def ours():
    """The number of objects of each class of the product. Simulated neurons keep everything, and do not count."""
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    modules = ((str(kind.__module__), kind.__name__) for kind in kinds)
    return Counter(
        f"{module}.{name}"
        for module, name in modules
        if module.startswith(("gateway.", "catalogue.")) and not module.startswith("neuron.simulated")
    )


@pytest.mark.parametrize("trouble", [None, HttpError(status=503), Drop(after=2)])
async def test_requests_of_all_kinds_leave_nothing_behind(autojump_clock, nursery, trouble):
    """Successful, failed and cancelled: after hundreds there are as many objects as after a few dozen."""
    beast = neuron("a", [24576], [SMALL])
    if trouble is not None:
        beast.faults.add(trouble)
    gateway = InMemoryGateway(nursery, {"a": beast})
    gateway.request_log.recent = RecentRequests(10, 1)

    async def leave(after_s):
        client = gateway.client()
        await client.send(stream=True)
        await trio.sleep(after_s)
        await client.leave()

    async def one(kind):
        try:
            await gateway.client().ask(**kind)
        except EOFError:
            assert trouble is not None  # an answer that broke off is cut off, too

    async def some_rounds(count):
        for _ in range(count):
            async with trio.open_nursery() as clients:
                for kind in ROUND:
                    clients.start_soon(one, kind)
                for after_s in (0, 1, 2.45):
                    clients.start_soon(leave, after_s)
        await trio.sleep(60)  # breakers cool down, resting connections go
        await wait_all_tasks_blocked()
        gateway.request_log.recent = RecentRequests(10, 1)  # remembered requests differ in how many decisions they had
        return ours()

    await some_rounds(8)
    few, many = await some_rounds(2), await some_rounds(20)

    assert {kind: (few[kind], count) for kind, count in many.items() if count > few[kind]} == {}
    await gateway.idle()
