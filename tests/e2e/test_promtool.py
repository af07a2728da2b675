"""Prometheus's own linter accepts what a gateway exports while it serves the demo's fleet."""

import shutil

import httpx
import pytest
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.running import LARGE, PROBE, SMALL, running_gateway, settled

from neuron.simulated.fleet import demo_fleet


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
async def test_promtool_finds_nothing_to_complain_about(tmp_path):
    """After answers of all kinds: streams, whole answers, errors, drains, loads."""
    async with (
        running_gateway(tmp_path, demo_fleet(200)) as cortex,
        httpx.AsyncClient(base_url=cortex.url, timeout=SAFETY_NET_S) as client,
    ):
        for model, stream in ((SMALL, True), (LARGE, False), ("helexa/small", True), ("nobody/has-it", False)):
            await client.post("/v1/chat/completions", json={"model": model, "stream": stream, "messages": PROBE})
        cortex.gateway.drains.drain("quadbrat")
        cortex.gateway.manual_loads.unload("Qwen/Qwen3-8B")
        await settled(cortex.gateway)
        await until(lambda: b"cortex_evictions_total" in cortex.gateway.metrics.expose())
        exported = (await client.get(cortex.metrics_url)).text

    for name in ("cortex_inter_token_seconds_bucket", "cortex_build_info", "cortex_node_drained", "process_"):
        assert name in exported
    check = ["promtool", "check", "metrics"]
    done = await trio.run_process(check, stdin=exported.encode(), capture_stdout=True, capture_stderr=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert b"_created" not in exported.encode()
