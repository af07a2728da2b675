"""The record of one attempt at one neuron, and the summary of an error that outlives its exception."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Self

import msgspec
import trio

from gateway.errors import GatewayError
from gateway.telemetry.metrics import Metrics

__all__ = ["AttemptRecord", "ErrorSummary"]

MESSAGE_CHARACTERS = 1000
QUOTE_REMOVED = "the neuron's error message quotes the prompt, so it is not kept here"


class ErrorSummary(NamedTuple):
    """An error without its exception, whose traceback would keep the whole request in memory."""

    code: str | None
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: GatewayError) -> ErrorSummary:
        """Of an error; the message is cut at `MESSAGE_CHARACTERS`, and replaced if it quotes the prompt."""
        message = QUOTE_REMOVED if error.quotes_prompt else error.message[:MESSAGE_CHARACTERS]
        return cls(error.code, message, error.param)


class AttemptRecord(msgspec.Struct, eq=False):
    """One attempt at one neuron: a context manager around it. Counts it, and the attempts in flight.

    Attributes:
        result: How the attempt ended: `answered`, `refused` (the neuron's error response went to the client), `failed`,
            `lost` (another attempt answered first), or `cancelled` with the request. None while it runs.
        began_at: By Trio's clock, in s.
        ended_at: By Trio's clock, in s. None while it runs, and for an attempt that answered: that one ends with the
            request.
        error: Why it failed or was refused.
        span_id: Of its span, which the neuron got as the parent of its own; 0 if the request is not traced.
    """

    metrics: Metrics
    model: str
    node: str
    began_at: float
    is_hedge: bool = False
    ended_at: float | None = None
    result: str | None = None
    error: ErrorSummary | None = None
    span_id: int = 0

    def __enter__(self) -> Self:
        labels = (self.model, self.node)
        self.metrics.requests.cells[labels].value += 1
        self.metrics.inflight.cells[labels].value += 1
        return self

    def failed(self, error: GatewayError) -> None:
        """The neuron did not answer, or not to the end."""
        self.result, self.error = "failed", ErrorSummary.of(error)

    def lost(self) -> None:
        """Another attempt answered first."""
        self.result = self.result or "lost"

    def refused(self, error: GatewayError) -> None:
        """The neuron refused the request."""
        self.result, self.error = "refused", ErrorSummary.of(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.metrics.inflight.cells[self.model, self.node].value -= 1
        if error is None:
            self.result = self.result or "answered"
            return
        self.ended_at = trio.current_time()
        if isinstance(error, GatewayError):
            self.failed(error)
        elif self.result is None:
            self.result = "cancelled"
