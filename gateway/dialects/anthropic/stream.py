"""A stream of chat completion chunks as a stream of Messages events: a state machine, data in, bytes out. No I/O.

    message_start
    ( content_block_start  content_block_delta*  content_block_stop )*      indices 0, 1, 2, ...; one open at a time
    message_delta  message_stop
    | error                                                                 at any point, and nothing after it

`ping` may stand anywhere before the end. Grammar as in https://docs.anthropic.com/en/api/messages-streaming.

Text and thoughts leave as they come. Of parallel tool calls, whose chunks may be interleaved, the first streams live;
whatever else comes while it is open waits for the end: the others sorted by their index, late text before them. The
end is told when the neuron has told it (a finish reason with or before usage, `[DONE]`, or the end of the body after
a finish reason), and never otherwise.
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
from gateway.dialects.calls import Call, Calls
from gateway.dialects.chat_chunks import BROKEN_OFF, Choice, Chunk, Said, ToolCall, read_chunk
from gateway.dialects.usage_fields import Usage, read_usage
from gateway.http import sse

__all__ = ["PING", "MessagesStream"]

PING = sse.write(b'{"type":"ping"}', b"ping")
_TAIL = b"}}\n\n"
_encode = msgspec.json.Encoder().encode

_NO_USAGE = (None, Usage())

Kind = Literal["text", "thinking"]


class MessagesStream:
    """One stream's translation. Made anew for every attempt; used up when `ended`.

    No method raises. Each returns the bytes the client is to get next, whole events always, often none. When the
    neuron's stream turns out to have failed, those bytes end in an `error` event and `error` says why.
    """

    __slots__ = (
        "_blank",
        "_calls",
        "_choice",
        "_context",
        "_deltas",
        "_index",
        "_late",
        "_live",
        "_open",
        "_prefix",
        "_signer",
        "_started",
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
        self._index = -1  # of the block that is open, or was last
        self._open: Kind | Literal["tool"] | None = None
        self._prefix = b""  # of a delta of the open block, up to its text
        self._signer: Signer | None = None
        self._blank = ""  # white space that becomes part of a text block if there will be one
        self._calls = Calls()
        self._live: Call | None = None
        self._late: list[tuple[Kind, str]] = []
        self._choice: Choice | None = None  # the one that finished
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
            chunk = read_chunk(data)
        except errors.GatewayError as error:
            return self.fail(error)
        return self._take(chunk)

    def finish(self) -> bytes:
        """The upstream body has ended, as far as HTTP can tell in good order."""
        if self.ended:
            return b""
        if self._choice is None:
            return self.fail(errors.UpstreamConnectionError("the neuron's stream broke off without an end"))
        return self._end()

    def fail(self, error: errors.GatewayError) -> bytes:
        """End with an error event; nothing if the stream has ended, one way or the other."""
        if self.ended:
            return b""
        self.ended = True
        self.error = error
        return dialect_errors.event(error, self._context.request_id)

    def ping(self) -> bytes:
        """For a silent stream; also before the first event, when nothing of an answer is there to commit to."""
        return b"" if self.ended else PING

    # Chunks...

    def _take(self, chunk: Chunk) -> bytes:
        told = b"" if self._started else self._start(chunk.model)
        for choice in chunk.choices or ():
            if choice.index:
                continue  # only one was asked for
            if choice.delta is not None:
                told += self._say(choice.delta)
            if choice.finish_reason is not None:
                if choice.finish_reason in BROKEN_OFF:
                    reason = f"the neuron broke off its answer: {choice.finish_reason}"
                    return told + self.fail(errors.UpstreamConnectionError(reason))
                self._choice = choice
        if chunk.usage is not None and (usage := read_usage(chunk.usage)) not in _NO_USAGE:
            self._usage = usage
            if self._choice is not None:
                told += self._end()
        return told

    def _start(self, model: object) -> bytes:
        self._started = True
        usage = usage_of(None, self._context.input_tokens, 0)
        begun = message(self._context, model, usage)
        return _event("message_start", {"message": begun})

    def _say(self, said: Said) -> bytes:
        told = b""
        if (thought := said.thought) and self._context.show_thinking:
            told = self._write("thinking", thought)
        if text := said.text:
            told += self._write("text", text)
        for part in said.tool_calls or ():
            told += self._call(part)
        if thought or text or said.tool_calls:
            self._deltas += 1
        return told

    # Text and thoughts...

    def _write(self, kind: Kind, text: str) -> bytes:
        if self._text_end_length and kind == "text":
            self._text_end = (self._text_end + text)[-self._text_end_length :]
        if self._signer is not None and kind == "thinking":
            self._signer.update(text)
        if self._open == kind:
            return self._prefix + _encode(text) + _TAIL
        return self._write_elsewhere(kind, text)

    def _write_elsewhere(self, kind: Kind, text: str) -> bytes:
        """Not into the open block: into a new one, now or later."""
        if self._live is not None:
            self._late.append((kind, text))
            return b""
        if kind == "text":
            self._blank += text
            if self._blank.isspace():
                return b""  # Anthropic's API has no blank text blocks, and refuses them when they come back
            text, self._blank = self._blank, ""
        told = self._close()
        if kind == "text":
            told += self._open_block("text", {"type": "text", "text": ""}, "text_delta", "text")
        else:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            told += self._open_block("thinking", block, "thinking_delta", "thinking")
            self._signer = Signer()
            self._signer.update(text)
        return told + self._prefix + _encode(text) + _TAIL

    # Tool calls...

    def _call(self, part: ToolCall) -> bytes:
        call = self._calls.find(part)
        piece = call.add(part)
        if call is self._live:
            return self._prefix + _encode(piece) + _TAIL if piece else b""
        if self._live is None and call is self._calls.first and call.is_well_begun:
            told = self._close() + self._open_tool(call, 0)
            self._live = call
            return told + self._prefix + _encode(call.arguments) + _TAIL
        return b""

    def _open_tool(self, call: Call, position: int) -> bytes:
        id_ = tool_id(call.id, self._context.request_id, position)
        block = {"type": "tool_use", "id": id_, "name": call.name, "input": {}}
        return self._open_block("tool", block, "input_json_delta", "partial_json")

    def _waiting_calls(self) -> bytes:
        """The calls that were not streamed live, whole."""
        told: list[bytes] = []  # joined once: a model in a loop calls thousands
        for position, call in enumerate(self._calls.in_order()):
            if call is not self._live:
                told += self._close(), self._open_tool(call, position)
                told += self._prefix, _encode(self._arguments(call)), _TAIL
        return b"".join(told)

    def _arguments(self, call: Call) -> str:
        """Cut short by the limit of tokens they stay as they are, as in the API; otherwise they are an object."""
        if self._choice is not None and self._choice.finish_reason == "length":
            return call.arguments
        given = call.arguments.strip()
        told = arguments_object(given)
        return given if given.startswith("{") and MALFORMED_ARGUMENTS not in told else _encode(told).decode()

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
        told = b""
        if self._signer is not None:
            delta = {"type": "signature_delta", "signature": self._signer.signature()}
            told = _event("content_block_delta", {"index": self._index, "delta": delta})
            self._signer = None
        self._open = None
        return told + _event("content_block_stop", {"index": self._index})

    # The end...

    def _end(self) -> bytes:
        if not self._calls.all_named:
            return self.fail(errors.UpstreamMalformedResponse("the neuron's answer has a tool call without a name"))
        told = b"" if self._started else self._start(None)
        told += self._late_words() + self._waiting_calls() + self._close()
        told += _event("message_delta", {"delta": self._stop(), "usage": self._final_usage()})
        self.ended = True
        return told + _event("message_stop", {})

    def _late_words(self) -> bytes:
        if not self._late:
            return b""
        live, self._live = self._live, None
        told = b"".join(self._write_elsewhere(kind, text) for kind, text in _merged(self._late))
        self._live = live
        return told

    def _stop(self) -> dict[str, str | None]:
        choice = self._choice or Choice()
        reason, sequence = stop_of(
            choice.finish_reason, choice.matched, self._text_end, self._context.stop_sequences, called=self._calls.any
        )
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _final_usage(self) -> dict[str, Any]:
        return usage_of(self._usage, self._context.input_tokens, self._deltas)


def _merged(words: list[tuple[Kind, str]]) -> list[tuple[Kind, str]]:
    """Consecutive pieces of one kind as one."""
    merged: list[tuple[Kind, str]] = []
    for kind, text in words:
        if merged and merged[-1][0] == kind:
            merged[-1] = kind, merged[-1][1] + text
        else:
            merged.append((kind, text))
    return merged


def _event(type_: str, fields: dict[str, Any]) -> bytes:
    return sse.write(_encode({"type": type_, **fields}), type_.encode())
