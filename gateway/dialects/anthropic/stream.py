"""Translate a stream of chat completion chunks into a stream of Messages events. A state machine without I/O.

    message_start
    ( content_block_start  content_block_delta*  content_block_stop )*      indices 0, 1, 2, ...; one open at a time
    message_delta  message_stop
    | error                                                                 at any point, and nothing after it

`ping` may stand anywhere before the end. Grammar: https://docs.anthropic.com/en/api/messages-streaming.

Text and thinking are sent as they arrive. The chunks of parallel tool calls may be interleaved: the first call is sent
as it arrives, and what arrives while its block is open is deferred to the end: text first, then the other calls by
index. The end is sent only when the upstream has ended its answer: with a finish reason with or before usage, with
`[DONE]`, or with the end of the body after a finish reason.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway import errors
from gateway.dialects.anthropic import errors as dialect_errors
from gateway.dialects.anthropic.message_object import (
    MALFORMED_ARGUMENTS,
    MessagesContext,
    arguments_object,
    message,
    stop_of,
    tool_id,
    usage_of,
)
from gateway.dialects.anthropic.signature import Signer
from gateway.dialects.chat import finish_reasons
from gateway.dialects.chat.chunk_reader import ChunkReader
from gateway.dialects.chat_chunks import Choice, Chunk, Delta
from gateway.dialects.tool_calls import AssembledCall, ToolCalls
from gateway.dialects.usage_fields import Usage, read_usage
from gateway.http import sse

__all__ = ["PING", "MessagesStream"]

PING = sse.write(b'{"type":"ping"}', b"ping")
_TAIL = b"}}\n\n"
_encode = msgspec.json.Encoder().encode

_NO_USAGE = (None, Usage())

Kind = Literal["text", "thinking"]


class MessagesStream:
    """Translates one stream. Each attempt makes a new one.

    No method raises. Each returns the client's next bytes: whole events, often none. When the upstream's stream has
    failed, those bytes end with an `error` event, and `error` is the reason.
    """

    __slots__ = (
        "_blank",
        "_calls",
        "_choice",
        "_context",
        "_deferred",
        "_deltas",
        "_index",
        "_open",
        "_prefix",
        "_reader",
        "_signer",
        "_started",
        "_streamed_call",
        "_text_end",
        "_text_end_length",
        "_usage",
        "ended",
        "error",
    )

    def __init__(self, context: MessagesContext) -> None:
        self._context = context
        self._text_end_length = max(map(len, context.stop_sequences), default=0)
        self.ended = False
        self.error: errors.GatewayError | None = None
        self._started = False
        self._index = -1  # of the open block, or of the last one
        self._open: Kind | Literal["tool"] | None = None
        self._prefix = b""  # the bytes of a delta event of the open block that precede its text
        self._signer: Signer | None = None
        self._blank = ""  # white space that may become the start of a text block
        self._reader = ChunkReader()
        self._calls = ToolCalls()
        self._streamed_call: AssembledCall | None = None
        self._deferred: list[tuple[Kind, str]] = []
        self._choice: Choice | None = None  # the one with the finish reason
        self._usage: Usage | None = None
        self._deltas = 0
        self._text_end = ""

    def feed(self, data: bytes) -> bytes:
        """Take in the data of one upstream event."""
        if self.ended or not data:
            return b""
        if data == b"[DONE]":
            return self._end()
        try:
            return self._take(self._reader.read(data))
        except errors.GatewayError as error:  # also from `_take`: too many tool calls
            return self.fail(error)

    def finish(self) -> bytes:
        """The upstream body is complete, as far as HTTP can tell."""
        if self.ended:
            return b""
        if self._choice is None:
            return self.fail(errors.UpstreamConnectionError("the neuron's stream broke off without an end"))
        return self._end()

    def fail(self, error: errors.GatewayError) -> bytes:
        """End with an error event; nothing if the stream has ended."""
        if self.ended:
            return b""
        self.ended = True
        self.error = error
        return dialect_errors.event(error, self._context.request_id)

    # Chunks...

    def _take(self, chunk: Chunk) -> bytes:
        out = b"" if self._started else self._start(chunk.model)
        for choice in chunk.choices or ():
            if choice.index:
                continue  # only one was asked for
            if choice.delta is not None:
                out += self._take_delta(choice.delta)
            elif choice.message is not None and not self._deltas:  # a whole answer as the only event
                out += self._take_delta(choice.message)
            if (reason := choice.finish_reason) is not None:
                if (failure := finish_reasons.failure_of(reason)) is not None:
                    return out + self.fail(failure)
                self._choice = choice
        if (reported := chunk.reported_usage) is not None and (usage := read_usage(reported)) not in _NO_USAGE:
            self._usage = usage
            if self._choice is not None:
                out += self._end()
        return out

    def _start(self, model: object) -> bytes:
        self._started = True
        usage = usage_of(None, self._context.input_tokens, 0)
        started = message(self._context, model, usage)
        return _event("message_start", {"message": started})

    def _take_delta(self, delta: Delta) -> bytes:
        out = b""
        if (thinking := delta.reasoning_text) and self._context.show_thinking:
            out = self._write("thinking", thinking)
        if text := delta.text:
            out += self._write("text", text)
        if delta.tool_calls:
            for call, piece in self._calls.add(delta.tool_calls):
                out += self._take_call(call, piece)
        if thinking or text or delta.tool_calls:
            self._deltas += 1
        return out

    # Text and thinking...

    def _write(self, kind: Kind, text: str) -> bytes:
        if self._text_end_length and kind == "text":
            self._text_end = (self._text_end + text)[-self._text_end_length :]
        if self._signer is not None and kind == "thinking":
            self._signer.update(text)
        if self._open == kind:
            return self._prefix + _encode(text) + _TAIL
        return self._write_to_new_block(kind, text)

    def _write_to_new_block(self, kind: Kind, text: str) -> bytes:
        """Write to a new block, now or at the end."""
        if self._streamed_call is not None:
            self._deferred.append((kind, text))
            return b""
        if kind == "text":
            self._blank += text
            if self._blank.isspace():
                return b""  # Anthropic's API sends no blank text blocks, and rejects them in requests
            text, self._blank = self._blank, ""
        out = self._close()
        if kind == "text":
            out += self._open_block("text", {"type": "text", "text": ""}, "text_delta", "text")
        else:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            out += self._open_block("thinking", block, "thinking_delta", "thinking")
            self._signer = Signer()
            self._signer.update(text)
        return out + self._prefix + _encode(text) + _TAIL

    # Tool calls...

    def _take_call(self, call: AssembledCall, piece: str) -> bytes:
        if call is self._streamed_call:
            return self._prefix + _encode(piece) + _TAIL if piece else b""
        if self._streamed_call is None and call is self._calls.first and call.can_be_streamed:
            out = self._close() + self._open_tool(call, 0)
            self._streamed_call = call
            return out + self._prefix + _encode(call.arguments) + _TAIL
        return b""

    def _open_tool(self, call: AssembledCall, position: int) -> bytes:
        id_ = tool_id(call.id, self._context, position)
        block = {"type": "tool_use", "id": id_, "name": call.name, "input": {}}
        return self._open_block("tool", block, "input_json_delta", "partial_json")

    def _remaining_calls(self) -> bytes:
        """The calls that were not sent as they arrived."""
        out: list[bytes] = []  # joined once: a model in a loop makes thousands of calls
        for position, call in enumerate(self._calls.in_order()):
            if call is not self._streamed_call:
                out += self._close(), self._open_tool(call, position)
                out += self._prefix, _encode(self._arguments(call)), _TAIL
        return b"".join(out)

    def _arguments(self, call: AssembledCall) -> str:
        """As they are if the token limit cut them off, as in Anthropic's API; otherwise a JSON object."""
        if self._choice is not None and finish_reasons.kind_of(self._choice.finish_reason) == "length":
            return call.arguments
        text = call.arguments.strip()
        value = arguments_object(text)
        return text if text.startswith("{") and MALFORMED_ARGUMENTS not in value else _encode(value).decode()

    # Blocks...

    def _open_block(self, kind: Kind | Literal["tool"], block: dict[str, Any], delta: str, field: str) -> bytes:
        self._open = kind
        self._index += 1
        self._prefix = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
            % (self._index, delta.encode(), field.encode())
        )
        return _event("content_block_start", {"index": self._index, "content_block": block})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        out = b""
        if self._signer is not None:
            delta = {"type": "signature_delta", "signature": self._signer.signature()}
            out = _event("content_block_delta", {"index": self._index, "delta": delta})
            self._signer = None
        self._open = None
        return out + _event("content_block_stop", {"index": self._index})

    # The end...

    def _end(self) -> bytes:
        if not self._calls.all_named:
            return self.fail(errors.UpstreamMalformedResponse("the neuron's answer has a tool call without a name"))
        out = b"" if self._started else self._start(None)
        if (rest := self._reader.rest()) is not None:
            out += self._take_delta(rest)
        out += self._deferred_text() + self._remaining_calls() + self._close()
        out += _event("message_delta", {"delta": self._stop(), "usage": self._final_usage()})
        self.ended = True
        return out + _event("message_stop", {})

    def _deferred_text(self) -> bytes:
        if not self._deferred:
            return b""
        streamed_call, self._streamed_call = self._streamed_call, None
        out = b"".join(self._write_to_new_block(kind, text) for kind, text in _merged(self._deferred))
        self._streamed_call = streamed_call
        return out

    def _stop(self) -> dict[str, str | None]:
        choice = self._choice or Choice()
        reason, sequence = stop_of(
            choice.finish_reason, choice.matched, self._text_end, self._context.stop_sequences, called=bool(self._calls)
        )
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _final_usage(self) -> dict[str, Any]:
        return usage_of(self._usage, self._context.input_tokens, self._deltas)


def _merged(pieces: list[tuple[Kind, str]]) -> list[tuple[Kind, str]]:
    """The pieces, consecutive ones of one kind joined."""
    merged: list[tuple[Kind, str]] = []
    for kind, text in pieces:
        if merged and merged[-1][0] == kind:
            merged[-1] = kind, merged[-1][1] + text
        else:
            merged.append((kind, text))
    return merged


def _event(type_: str, fields: dict[str, Any]) -> bytes:
    return sse.write(_encode({"type": type_, **fields}), type_.encode())
