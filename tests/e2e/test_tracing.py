"""A running gateway sends its traces and metrics to a collector, and the last ones when it ends."""

import httpx
from fakes.collector import Collector
from fakes.patience import SAFETY_NET_S, until
from fakes.running import PROBE, SMALL, running_gateway, settled

from gateway.config.settings import MetricsSettings, TracingSettings


async def test_gateway_exports_traces_and_metrics(tmp_path):
    with Collector() as collector:
        sections = {
            "tracing": TracingSettings(otlp_endpoint=collector.url),
            "metrics": MetricsSettings(otlp_endpoint=collector.url, otlp_interval_seconds=0.1),
        }
        async with (
            running_gateway(tmp_path, **sections) as running,
            httpx.AsyncClient(base_url=running.url, timeout=SAFETY_NET_S) as client,
        ):
            body = {"model": "helexa/small", "messages": PROBE}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            await settled(running.gateway)
            await until(lambda: any(each["name"] == "cortex_requests" for each in collector.metrics))
            accept = {"accept": "application/openmetrics-text"}
            scraped = await client.get(running.metrics_url, headers=accept)
        names = [span.name for span in collector.spans]  # the last ones came when the gateway ended

    assert {"POST /v1/chat/completions", f"chat {SMALL}", "relay"} <= set(names)
    assert len({span.trace_id for span in collector.spans}) == 1
    assert 'trace_id="' + collector.spans[0].trace_id.hex() in scraped.text
    assert scraped.text.endswith("# EOF\n")


async def test_gateway_serves_while_the_collector_is_away(tmp_path):
    sections = {"tracing": TracingSettings(otlp_endpoint="http://127.0.0.1:1")}
    async with (
        running_gateway(tmp_path, **sections) as running,
        httpx.AsyncClient(base_url=running.url, timeout=SAFETY_NET_S) as client,
    ):
        for _ in range(5):
            body = {"model": "helexa/small", "messages": PROBE}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
