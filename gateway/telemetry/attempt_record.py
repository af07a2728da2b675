"""One attempt at one neuron, as it is accounted for; and what an error was, once it is only remembered."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Self

import trio

from gateway.errors import GatewayError
from gateway.telemetry.metrics import Metrics

__all__ = ["AttemptRecord", "End"]

MESSAGE_CHARACTERS = 1000


class End(NamedTuple):
    """What an error was, once it is only remembered."""

    code: str | None
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: GatewayError) -> End:
        """Without the exception: its traceback holds on to everything that was going on."""
        return cls(error.code, error.message[:MESSAGE_CHARACTERS], error.param)


class AttemptRecord:
    """One attempt at one neuron. See `Record.routed`.

    `result` says how it ended: `answered`, `refused` (the neuron's own no went to the client), `failed`, `lost` to
    another at the same request, or `cancelled` by whatever ended the request. Times are Trio's clock.
    """

    __slots__ = ("_gauge", "_metrics", "began_at", "end", "ended_at", "is_hedge", "model", "node", "result")

    def __init__(self, metrics: Metrics, model: str, node: str, began_at: float, *, is_hedge: bool = False) -> None:
        self._metrics = metrics
        self.model = model
        self.node = node
        self.began_at = began_at
        self.is_hedge = is_hedge
        self.ended_at: float | None = None
        self.result: str | None = None  # while it is under way
        self.end: End | None = None

    def __enter__(self) -> Self:
        self._metrics.requests(self.model, self.node).inc()
        self._gauge = self._metrics.inflight(self.model, self.node)
        self._gauge.inc()
        return self

    def failed(self, error: GatewayError) -> None:
        """The neuron did not answer, or not to the end."""
        self.result, self.end = "failed", End.of(error)

    def lost(self) -> None:
        """Another was quicker."""
        self.result = self.result or "lost"

    def refused(self, error: GatewayError) -> None:
        """The neuron said no, and that is the answer."""
        self.result, self.end = "refused", End.of(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._gauge.dec()
        if error is None:
            self.result = self.result or "answered"  # and the request ends with it
            return
        self.ended_at = trio.current_time()
        if isinstance(error, GatewayError):
            self.failed(error)
        elif self.result is None:
            self.result = "cancelled"
