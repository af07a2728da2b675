"""What open pages of the console cost, in function calls: a count is free of noise, unlike CPU time.

`scripts/soak --pages 50` measures the same in CPU.
"""

from __future__ import annotations

import cProfile
import socket
from contextlib import ExitStack
from copy import copy

import pytest
import trio
from fakes.patience import until
from fakes.running import PROBE
from trio.testing import wait_all_tasks_blocked

from gateway.server.console import event_feed

RATE = 200  # requests per second
CALLS_PER_REQUEST = 595  # tests/gateway/proxy/test_call_budget.py: a plain one, the cheapest there is
PAGES = 50
TICKS = 5
BYTES_PER_TICK = 5000  # for each page: the kernel copies them as often as there are pages
CALLS_PER_PAGE = 55  # wake up, check the key, write once; measured: 47 with Python 3.11


@pytest.fixture
async def feed(cortex, monkeypatch):
    """The feed of a gateway whose ticks only the test makes."""
    monkeypatch.setattr(event_feed, "TICK_S", 10**9)
    return cortex.gateway.console.feed


async def calls_per_tick(cortex, feed, pages):
    """Calls of one tick in which `RATE` requests ended: for all pages together, and until each page has its event."""
    host, port = cortex.addresses.metrics.host, cortex.addresses.metrics.port
    request = b"GET /admin/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\n\r\n"
    shared, sent = [], []
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((host, port))) for _ in range(pages)]
        for client in clients:
            client.sendall(request)
            client.setblocking(False)
        await until(lambda: feed.listeners == pages)
        for _ in range(TICKS):
            await wait_all_tasks_blocked(0.01)
            for client in clients:
                drain(client)
            end_requests(cortex.gateway.request_log, RATE)
            with cProfile.Profile() as profile:
                chunk = feed._changes()
            shared.append(calls_of(profile))
            with cProfile.Profile() as profile:
                feed._append(chunk)
                await wait_all_tasks_blocked()
            sent.append(calls_of(profile))
            events = [drain(client) for client in clients]
            assert all(1000 < len(each) < BYTES_PER_TICK for each in events)
            assert all(b"upstream_error" in each and b'"ended_left_out":170' in each for each in events)
    await until(lambda: feed.listeners == 0)
    return min(shared), min(sent)  # in some ticks another task of the gateway runs, such as the poller


def end_requests(log, count):
    """Requests like the last one, which end now."""
    record = copy(next(log.recent.newest_first()))
    record.ended_at = trio.current_time()
    for number in range(count):
        one = copy(record)
        one.request_id, one.outcome = f"{number:032x}", "ok" if number else "upstream_error"
        log.recent.add(one)
    log.served += count


def calls_of(profile):
    return sum(entry.callcount for entry in profile.getstats())


def drain(client):
    """What has arrived."""
    data = b""
    while True:
        try:
            data += client.recv(2**20)
        except BlockingIOError:
            return data


async def test_fifty_pages_cost_at_most_a_twentieth_of_the_traffic(cortex, http, feed):
    """Of a second of traffic at 200 requests/s, each as cheap as a request can be."""
    await http.post("/v1/chat/completions", json={"model": "helexa/small", "messages": PROBE, "stream": True})
    shared, one = await calls_per_tick(cortex, feed, 1)
    _, many = await calls_per_tick(cortex, feed, PAGES)
    per_page = (many - one) / (PAGES - 1)
    assert per_page <= CALLS_PER_PAGE
    assert shared + PAGES * per_page <= 0.05 * RATE * CALLS_PER_REQUEST
