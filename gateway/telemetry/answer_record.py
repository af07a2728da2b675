"""What is measured of one request's answer as it passes: tokens, and for rollouts its finish reason and tool calls."""

from __future__ import annotations

from msgspec import Struct

from gateway.dialects.tool_calls import ToolCalls
from gateway.dialects.usage_fields import Usage
from gateway.telemetry.meter import BodyMeter, StreamMeter

__all__ = ["AnswerRecord"]


class AnswerRecord(Struct, eq=False):
    """The answer of one request.

    Attributes:
        is_observed: A rollout observes the request, so its finish reason and tool calls are read.
        meter: The meter of the attempt that answers with a stream; None before, for other answers, and at the end.
        usage: The tokens; None if unknown.
        is_estimated: The completion tokens in `usage` are the number of generated deltas.
    """

    is_observed: bool = False
    meter: StreamMeter | None = None
    usage: Usage | None = None
    is_estimated: bool = False
    _body_meter: BodyMeter | None = None
    _first_token_at: float | None = None

    def stream_meter(self) -> StreamMeter:
        """A meter for an attempt's stream. It becomes `meter` if that attempt answers."""
        return StreamMeter(ToolCalls() if self.is_observed else None)

    def body_meter(self, content_type: bytes | None) -> BodyMeter:
        """The meter for an answer that is not a stream."""
        if not self.is_observed:
            return BodyMeter(None, content_type)
        self._body_meter = BodyMeter(ToolCalls(), content_type)
        return self._body_meter

    @property
    def first_token_at(self) -> float | None:
        """When the first token of a stream arrived, by Trio's clock."""
        return self._first_token_at if self.meter is None else self.meter.first_at

    @property
    def finish_reason(self) -> str | None:
        """The neuron's finish reason. Of an answer that is not a stream, only if it is observed."""
        meter = self._any_meter
        return None if meter is None else meter.finish_reason

    @property
    def tool_calls_valid(self) -> bool | None:
        """Whether a client can use the tool calls; None if there are none, or the request is not observed."""
        meter = self._any_meter
        return None if meter is None or meter.tool_calls is None else meter.tool_calls.valid

    @property
    def _any_meter(self) -> StreamMeter | BodyMeter | None:
        return self._body_meter if self.meter is None else self.meter

    def tokens_per_s(self, total_s: float) -> float | None:
        """Completion tokens per second from the first token to the last; over `total_s` if it is not a stream."""
        tokens = None if self.usage is None else self.usage.completion_tokens
        meter = self.meter
        if meter is not None:
            window_s = 0.0 if meter.first_at is None or meter.last_at is None else meter.last_at - meter.first_at
        else:
            window_s = total_s
        return tokens / window_s if tokens and window_s > 0 else None

    def finish(self) -> None:
        """Take the usage of a stream. Completion tokens that it does not state are estimated by the deltas."""
        if self.meter is None:
            return
        self.usage = usage = self.meter.usage
        stated = None if usage is None else usage.completion_tokens
        # Anthropic begins a stream with a count of 1, so for a stream that broke off the deltas are the better count.
        if self.meter.generated and (stated is None or (stated < self.meter.generated and not self.meter.finished)):
            self.usage = (usage or Usage()).updated_by(Usage(completion_tokens=self.meter.generated))
            self.is_estimated = True

    def release(self) -> None:
        """Drop the meters; keep the numbers."""
        if self.meter is not None:
            self._first_token_at = self.meter.first_at
        self.meter = self._body_meter = None
