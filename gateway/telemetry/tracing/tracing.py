"""What a gateway sends to collectors, and the task that owns it: traces, and metrics by OTLP."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog
import trio

from gateway.config.settings import MetricsSettings, TracingSettings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing.request_tracer import RequestTracer

if TYPE_CHECKING:
    from gateway.telemetry.tracing.otlp_metrics import MetricSender

__all__ = ["Tracing"]

CLOSE_S = 5  # for the last export, while the process ends

log = structlog.get_logger("cortex.tracing")


class Tracing:
    """Call `run` once.

    Args:
        settings: `[tracing]`.
        metrics_settings: `[metrics]`.
        metrics: The gateway's metrics.
        version: Of the gateway.

    Attributes:
        tracer: Traces requests; None if none is traced.
    """

    def __init__(
        self, settings: TracingSettings, metrics_settings: MetricsSettings, metrics: Metrics, version: str
    ) -> None:
        self.tracer: RequestTracer | None = None
        self._closing = ExitStack()
        self._interval_s = metrics_settings.otlp_interval_seconds
        self._metric_sender: MetricSender | None = None
        # The SDK takes 0.2 s to import, and need not be installed.
        if settings.otlp_endpoint is not None:
            from gateway.telemetry.tracing.otlp import SpanSender  # noqa: PLC0415

            sender = SpanSender(settings.otlp_endpoint, version)
            metrics.watch_spans_dropped(lambda: sender.dropped)
            self._closing.callback(sender.close)
            self.tracer = RequestTracer(settings.sample, sender.send)
        if metrics_settings.otlp_endpoint is not None:
            from gateway.telemetry.tracing.otlp_metrics import MetricSender  # noqa: PLC0415

            self._metric_sender = MetricSender(metrics_settings.otlp_endpoint, version, metrics.registry)
            self._closing.callback(self._metric_sender.close)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send metrics at their interval; at the end, what is still queued. Started at once."""
        task_status.started()
        try:
            while True:
                await trio.sleep(self._interval_s)
                if self._metric_sender is not None:
                    await self._send_metrics(self._metric_sender)
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await trio.to_thread.run_sync(self._closing.close, abandon_on_cancel=True)

    async def _send_metrics(self, sender: MetricSender) -> None:
        data = sender.read()
        if not await trio.to_thread.run_sync(sender.send, data, abandon_on_cancel=True):
            log.warning("metrics_not_exported")
