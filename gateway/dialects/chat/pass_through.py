"""Chat completions of an engine that pass through: what is changed in them, and what is asked for. No I/O.

Everything keeps its bytes, but for a failing finish reason, which becomes an error event, the usage chunk that the
gateway asked for, and an answer in another form than the client asked for. Only for engines (`Backend.is_engine`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from gateway import errors
from gateway.dialects import chat_chunks
from gateway.dialects.chat import finish_reasons
from gateway.dialects.chat.assemble import CompletionAssembler, stream_datas
from gateway.dialects.include_usage import UsageStripper, asking_for_usage
from gateway.dialects.json_splice import find
from gateway.dialects.large_bodies.spliced_body import Edit, SplicedBody, edited, in_one_piece
from gateway.http import sse

__all__ = ["EngineAnswer", "asking_for_stream"]

# A finish reason that OpenAI does not document. Keys in strings are escaped, so this finds members only.
_ODD_REASON = re.compile(
    rb'"finish_reason"\s*:\s*(?!null|"(?:stop|length|tool_calls|content_filter|function_call)?")'
)  # fmt: skip
_WHOLE = re.compile(rb'"message"\s*:\s*\{')
_STREAM_KEY = re.compile(rb'"stream"\s*:')


class EngineAnswer:
    """A `dialects.Translation` that changes only what the client would misread.

    Args:
        stripper: Drops the usage chunk if the gateway asked for it; else None.
    """

    __slots__ = ("_at_start", "_lacks_end", "_stripper", "error", "held_limit_bytes")

    keepalive_bytes = sse.KEEP_ALIVE
    passes_text = True
    converts = True
    assembler = CompletionAssembler

    def __init__(self, stripper: UsageStripper | None = None) -> None:
        self._stripper = stripper
        self._at_start = True
        self.held_limit_bytes = sse.EVENT_LIMIT_BYTES  # of the first event; `_started` lowers it
        self._lacks_end = False  # a whole answer was converted, and no `[DONE]` has followed
        self.error: errors.GatewayError | None = None

    def feed(self, events: Sequence[sse.Event]) -> bytes:
        """The events; an error event in place of one with a failing finish reason, and nothing after it.

        A whole answer as the first event becomes the chunks that the client expects.
        """
        if self.error is not None:
            return b""
        if self._at_start:
            events = self._started(events)
        if self._lacks_end and any(event.data == b"[DONE]" for event in events):
            self._lacks_end = False
        for position, event in enumerate(events):
            if event.data is None or _ODD_REASON.search(event.data) is None:
                continue
            if (failure := _failure_in(event.data)) is not None:
                return self._pass(events[:position]) + self.fail(failure)
        return self._pass(events)

    def _pass(self, events: Sequence[sse.Event]) -> bytes:
        if self._stripper is not None:
            return self._stripper.feed(events)
        return events[0].raw if len(events) == 1 else b"".join([event.raw for event in events])

    def _started(self, events: Sequence[sse.Event]) -> Sequence[sse.Event]:
        """The first events, with the chunks of a whole answer in its place."""
        position, first = next(((at, event) for at, event in enumerate(events) if event.data is not None), (0, None))
        if first is None:
            return events
        self._at_start = False
        # From now on an unfinished event leaves as it arrives, unless it may have to be dropped.
        self.held_limit_bytes = 0 if self._stripper is None else self._stripper.held_limit_bytes
        if not first.is_whole or _WHOLE.search(first.raw) is None:
            return events
        renamed = next((event.data for event in sse.Reader().feed(first.raw) if event.data is not None), b"")
        try:
            *chunks, _ = stream_datas(renamed)
        except errors.GatewayError:
            return events  # no completion, or one that failed: as any event
        self._lacks_end = True
        converted = [sse.Event(data, None, sse.write(data)) for data in chunks]
        return [*events[:position], *converted, *events[position + 1 :]]

    def finish(self) -> bytes:
        """The terminator, if a whole answer was converted that had none."""
        return sse.write(b"[DONE]") if self._lacks_end and self.error is None else b""

    def fail(self, error: errors.GatewayError) -> bytes:
        """The error as an event; nothing if the stream has ended in one."""
        if self.error is not None:
            return b""
        self.error = error
        return sse.write(errors.envelope(error))

    def whole(self, body: bytes) -> bytes:
        """The same body. Raises GatewayError if it has a failing finish reason."""
        if _ODD_REASON.search(body) is not None and (failure := _failure_in(body)) is not None:
            raise failure
        return body

    def stream_of(self, body: bytes) -> bytes:
        """The stream of a whole answer. Raises GatewayError if it is no completion."""
        return b"".join(map(sse.write, stream_datas(body)))


def _failure_in(data: bytes) -> errors.GatewayError | None:
    try:
        choices = chat_chunks.decode_event(data).choices
    except msgspec.DecodeError:
        return None
    failures = (finish_reasons.failure_of(choice.finish_reason) for choice in choices or ())
    return next((failure for failure in failures if failure is not None), None)


def asking_for_stream(body: bytes | SplicedBody, *, ask_usage: bool) -> bytes | None:
    """The body of a plain request that asks for a stream, and for usage if the engine takes that.

    None if it cannot be changed with certainty: it has `stream` more than once, or stream options of its own.
    """
    body = in_one_piece(body)
    try:
        found = find(body, ("stream", "stream_options"))
    except ValueError:
        return None
    if "stream_options" in found or len(_STREAM_KEY.findall(body)) > 1:
        return None
    start = body.index(b"{") + 1
    if (span := found.get("stream")) is None:
        edits = [Edit(start, start, b'"stream":true,')]
    else:
        edits = [Edit(span.start, span.end, b"true")]
    if ask_usage and (usage_option := asking_for_usage(body)) is not None:
        if span is None:
            return edited(body, Edit(start, start, edits[0].text + usage_option.text))
        edits.append(usage_option)
    return edited(body, *edits)
