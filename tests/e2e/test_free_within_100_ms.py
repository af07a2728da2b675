"""Clients that leave, over real sockets: the neuron is free within 100 ms. See tests/gateway/test_leaving.py too."""

import json

import pytest
import trio
from fakes.running import PROBE, SMALL, running_gateway

from gateway.sim.faults import LateHeaders
from gateway.sim.fleet import neuron


@pytest.mark.parametrize(
    ("moment_s", "stream", "faults"),
    [
        (0.2, True, [LateHeaders()]),  # before the headers
        (0.2, True, []),  # before the first token
        (2.0, True, []),  # in mid-stream
        (0.2, False, []),
        (2.0, False, []),
    ],
)
async def test_neuron_is_free_within_100_ms(tmp_path, moment_s, stream, faults):
    """Of the socket's closing, wherever the request stood; and nothing is left of it here."""
    simulated = neuron("beast", [24576], [SMALL], speed=1.3)  # first token after 1.9 s, the last one 0.1 s later
    for fault in faults:
        simulated.faults.add(fault)
    async with running_gateway(tmp_path, [simulated]) as running:
        client = await trio.open_tcp_stream("127.0.0.1", running.port)
        body = json.dumps({"model": "helexa/small", "stream": stream, "messages": PROBE * 3}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        await client.send_all(head.encode() + body)
        await trio.sleep(moment_s)
        left_at = trio.current_time()
        await trio.aclose_forcefully(client)
        with trio.fail_after(5):
            while not simulated.cancelled:
                await trio.sleep(0.005)
        assert simulated.cancelled[0].at - left_at < 0.1
        await trio.sleep(0.05)
        running.gateway.fleet.assert_idle()
        assert running.gateway.accounts.live == {}
        assert running.gateway.upstream.in_use == 0
