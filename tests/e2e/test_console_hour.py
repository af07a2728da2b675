"""The events of an hour of traffic, in seconds: the gateway's memory is flat. tests/browser has the same of a page."""

from __future__ import annotations

import re

import httpx
import pytest
from fakes.console_hour import BATCH_TICKS, BATCHES, demo_of_an_hour
from fakes.patience import SAFETY_NET_S

TOLERANCE_BYTES = 2_000_000  # between the first batch, which fills what is bounded, and the last: 120 bytes per request


@pytest.mark.slow
def test_memory_is_flat_over_the_events_of_an_hour(tmp_path):
    with (
        demo_of_an_hour(tmp_path) as demo,
        httpx.Client(base_url=demo.admin, trust_env=False, timeout=SAFETY_NET_S) as client,
        client.stream("GET", "/admin/events", headers={"authorization": f"Bearer {demo.key}"}) as events,
    ):
        ticks = (line for line in events.iter_lines() if line == "event: request")
        resident = []
        for _ in range(BATCHES):
            demo.next_batch()
            for _ in range(BATCH_TICKS):
                next(ticks)
            metrics = httpx.get(f"{demo.admin}/metrics", trust_env=False, timeout=SAFETY_NET_S).text
            resident.append(float(re.search(r"^process_resident_memory_bytes (\S+)", metrics, re.MULTILINE)[1]))
    assert resident[-1] - resident[0] < TOLERANCE_BYTES, resident
