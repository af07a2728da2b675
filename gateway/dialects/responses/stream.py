"""Translate a stream of chat completion chunks into a stream of Responses events. A state machine without I/O.

    response.created  response.in_progress
    ( output_item.added  item  output_item.done )*        output_index 0, 1, 2, ...; one open at a time
    response.completed | response.incomplete
    | error response.failed                               at any point (`error` alone before the first), nothing after

    item:  reasoning      content_part.added  reasoning_text.delta*  reasoning_text.done  content_part.done
           message        ( content_part.added  output_text.delta* .done | refusal.delta* .done  content_part.done )+
           function_call  function_call_arguments.delta*  .done
           custom_tool_call  custom_tool_call_input.delta*  .done
           shell_call, local_shell_call, apply_patch_call  (nothing: the item is complete when it is added)

Every event has its `type` and a `sequence_number` without gaps. Grammar:
https://platform.openai.com/docs/api-reference/responses-streaming.

Text and reasoning are sent as they arrive. The chunks of parallel calls may be interleaved: the first call is sent as
it arrives if it calls a function, and what arrives while its item is open is deferred to the end: text first, then the
other calls by index. The end is sent only when the upstream has ended its answer: with a finish reason with or before
usage, with `[DONE]`, or with the end of the body after a finish reason.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway import errors
from gateway.dialects.chat import finish_reasons
from gateway.dialects.chat.chunk_reader import ChunkReader
from gateway.dialects.chat_chunks import Choice, Chunk, Delta
from gateway.dialects.responses import errors as dialect_errors
from gateway.dialects.responses.client_run_tools import FUNCTIONS
from gateway.dialects.responses.response_object import (
    ResponsesContext,
    Status,
    add_encrypted_content,
    call_id,
    call_item,
    end_of,
    message_item,
    part,
    reasoning_item,
    response,
    usage_of,
)
from gateway.dialects.responses.tools import ClientTool
from gateway.dialects.tool_calls import AssembledCall, ToolCalls
from gateway.dialects.usage_fields import Usage, read_usage
from gateway.http import sse

__all__ = ["ResponsesStream"]

_encode = msgspec.json.Encoder().encode
_NO_USAGE = (None, Usage())

Fields = dict[str, Any]
Kind = Literal["reasoning_text", "output_text", "refusal"]

_DELTA = (
    b'event: response.%b.delta\ndata: {"type":"response.%b.delta","item_id":%b,"output_index":%d,%b'
    b'"delta":%%b%b,"sequence_number":%%d}\n\n'
)
"""A delta event. Formatted twice: once for each part or call, then with each text and sequence number."""

_ITEMS = {"reasoning_text": "reasoning", "output_text": "message", "refusal": "message"}
_LOGPROBS = {"output_text": b',"logprobs":[]'}
_CUSTOM_DONE = "response.custom_tool_call_input.done"
_FUNCTION_DONE = "response.function_call_arguments.done"


class ResponsesStream:
    """Translates one stream. Each attempt makes a new one.

    No method raises. Each returns the client's next bytes: whole events, often none. When the upstream's stream has
    failed, those bytes end with an `error` event and `response.failed`, and `error` is the reason.
    """

    __slots__ = (
        "_blank",
        "_calls",
        "_choice",
        "_context",
        "_deferred",
        "_delta",
        "_deltas",
        "_item",
        "_open",
        "_output",
        "_pieces",
        "_reader",
        "_reasoning_deltas",
        "_response",
        "_sequence_number",
        "_streamed_call",
        "_usage",
        "ended",
        "error",
    )

    def __init__(self, context: ResponsesContext) -> None:
        self._context = context
        self.ended = False
        self.error: errors.GatewayError | None = None
        self._sequence_number = 0  # of the next event
        self._response: Fields | None = None  # as it was sent last; None before the first event
        self._output: list[Fields] = []  # the finished items
        self._item: Fields | None = None  # the open one
        self._open: Kind | None = None  # its open part
        self._delta = b""  # the delta event of the open part or call, without text and number
        self._pieces: list[str] = []
        self._blank = ""  # white space that may become the start of a text
        self._reader = ChunkReader()
        self._calls = ToolCalls()
        self._streamed_call: AssembledCall | None = None
        self._deferred: list[tuple[Kind, str]] = []
        self._choice: Choice | None = None  # the one with the finish reason
        self._usage: Usage | None = None
        self._deltas = self._reasoning_deltas = 0

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
        """End with an error; nothing if the stream has ended. `response.failed` has the finished items."""
        if self.ended:
            return b""
        self.ended = True
        self.error = error
        out = dialect_errors.event(error, self._number())
        if self._response is None:
            return out
        return out + self._response_event("response.failed", status="failed", error=dialect_errors.object_of(error))

    # Chunks...

    def _take(self, chunk: Chunk) -> bytes:
        out = b"" if self._response is not None else self._start(chunk)
        for choice in chunk.choices or ():
            if choice.index:
                continue  # only one was asked for
            if choice.delta is not None:
                out += self._take_delta(choice.delta)
            elif choice.message is not None and not (self._deltas or self._reasoning_deltas):
                # A whole answer as the only event.
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

    def _start(self, chunk: Chunk) -> bytes:
        self._response = response(self._context, chunk.created, chunk.model)
        return self._response_event("response.created") + self._response_event("response.in_progress")

    def _take_delta(self, delta: Delta) -> bytes:
        out = b""
        if reasoning := delta.reasoning_text:
            self._reasoning_deltas += 1
            out = self._write("reasoning_text", reasoning)
        if text := delta.content_text:
            out += self._write("output_text", text)
        if refusal := delta.refusal_text:
            out += self._write("refusal", refusal)
        if delta.tool_calls:
            for call, piece in self._calls.add(delta.tool_calls):
                out += self._take_call(call, piece)
        if reasoning or text or refusal or delta.tool_calls:
            self._deltas += 1
        return out

    # Text and reasoning...

    def _write(self, kind: Kind, text: str) -> bytes:
        if self._open == kind:
            self._pieces.append(text)
            return self._delta % (_encode(text), self._number())
        return self._write_to_new_part(kind, text)

    def _write_to_new_part(self, kind: Kind, text: str) -> bytes:
        """Write to a new part, now or at the end."""
        if self._streamed_call is not None:
            self._deferred.append((kind, text))
            return b""
        if kind == "output_text":
            self._blank += text
            if self._blank.isspace():
                return b""  # between reasoning and a call: no message for white space only
            text, self._blank = self._blank, ""
        out = self._close_part()
        if self._item is None or self._item["type"] != _ITEMS[kind]:
            out += self._close_item() + self._open_text_item(kind)
        out += self._open_part(kind)
        self._pieces.append(text)
        return out + self._delta % (_encode(text), self._number())

    def _open_text_item(self, kind: Kind) -> bytes:
        make = reasoning_item if kind == "reasoning_text" else message_item
        return self._open_item(make(self._context, len(self._output), [], "in_progress"))

    def _open_part(self, kind: Kind) -> bytes:
        item = self._current_item()
        place = {"item_id": item["id"], "output_index": len(self._output), "content_index": len(item["content"])}
        self._open = kind
        self._prepare(kind, b'"content_index":%d,' % place["content_index"], _LOGPROBS.get(kind, b""))
        return self._event("response.content_part.added", {**place, "part": part(kind, "")})

    def _close_part(self) -> bytes:
        if self._open is None:
            return b""
        item, kind, text = self._current_item(), self._open, "".join(self._pieces)
        place = {"item_id": item["id"], "output_index": len(self._output), "content_index": len(item["content"])}
        whole = part(kind, text)
        done: Fields = {"refusal": text} if kind == "refusal" else {"text": text}
        if kind == "output_text":
            done["logprobs"] = []
        item["content"].append(whole)
        self._open = None
        self._pieces = []
        return self._event(f"response.{kind}.done", {**place, **done}) + self._event(
            "response.content_part.done", {**place, "part": whole}
        )

    # Tool calls...

    def _take_call(self, call: AssembledCall, piece: str) -> bytes:
        if call is self._streamed_call:
            return self._delta % (_encode(piece), self._number()) if piece else b""
        if self._streamed_call is None and call is self._calls.first and self._can_be_streamed(call):
            tool = self._context.client_tool(call.name)
            out = self._close_part() + self._close_item() + self._open_call(call, 0, tool)
            self._streamed_call = call
            return out + self._delta % (_encode(call.arguments), self._number())
        return b""

    def _can_be_streamed(self, call: AssembledCall) -> bool:
        """Only a function: another tool's input is inside the arguments, and can be read when they are complete."""
        return call.can_be_streamed and self._context.client_tool(call.name).kind == "function"

    def _open_complete_call(self, tool: ClientTool, call: AssembledCall, position: int) -> bytes:
        """The item's first event already says what to do; the API has no other events for these tools."""
        id_ = call_id(call.id, self._context, position)
        item = call_item(self._context, len(self._output), tool, id_, call.arguments)
        return self._open_item({**item, "status": "in_progress"})

    def _open_call(self, call: AssembledCall, position: int, tool: ClientTool) -> bytes:
        id_ = call_id(call.id, self._context, position)
        out = self._open_item(call_item(self._context, len(self._output), tool, id_, None))
        self._prepare("custom_tool_call_input" if tool.is_custom else "function_call_arguments")
        return out

    def _close_call(self, call: AssembledCall, tool: ClientTool) -> bytes:
        """The last events of the open call, without its item's. The item gets the call's arguments."""
        item = call_item(self._context, len(self._output), tool, self._current_item()["call_id"], call.arguments)
        self._item = item
        field = "input" if tool.is_custom else "arguments"
        out = b""
        if call is not self._streamed_call and item[field]:
            out = self._delta % (_encode(item[field]), self._number())
        done = {"item_id": item["id"], "output_index": len(self._output), "name": item["name"], field: item[field]}
        return out + self._event(_CUSTOM_DONE if tool.is_custom else _FUNCTION_DONE, done)

    def _remaining_calls(self) -> bytes:
        """The end of the call that was sent as it arrived, the deferred text, and the other calls."""
        out: list[bytes] = []  # joined once: a model in a loop makes thousands of calls
        waiting = self._calls.in_order()
        first = 0
        if self._streamed_call is not None:
            first = 1
            call = waiting.pop(0)
            out.append(self._close_call(call, self._context.client_tool(call.name)))
            self._streamed_call = None
            out += [self._write(kind, text) for kind, text in self._deferred]
        for position, call in enumerate(waiting, start=first):
            out += self._close_part(), self._close_item()
            tool = self._context.client_tool(call.name, call.arguments)
            if tool.kind in FUNCTIONS:
                out.append(self._open_complete_call(tool, call, position))
            else:
                out += self._open_call(call, position, tool), self._close_call(call, tool)
        return b"".join(out)

    # Items...

    def _current_item(self) -> Fields:
        assert self._item is not None  # noqa: S101 - for mypy: every caller has opened an item
        return self._item

    def _open_item(self, item: Fields) -> bytes:
        self._item = item
        return self._event("response.output_item.added", {"output_index": len(self._output), "item": item})

    def _close_item(self, status: Status = "completed") -> bytes:
        if self._item is None:
            return b""
        item, self._item = self._item, None
        item["status"] = status
        if item["type"] == "reasoning":
            add_encrypted_content(self._context, item)
        self._output.append(item)
        return self._event("response.output_item.done", {"output_index": len(self._output) - 1, "item": item})

    # The end...

    def _end(self) -> bytes:
        if not self._calls.all_named:
            return self.fail(errors.UpstreamMalformedResponse("the neuron's answer has a tool call without a name"))
        out = b"" if self._response is not None else self._start(Chunk())
        if (rest := self._reader.rest()) is not None:
            out += self._take_delta(rest)
        status, details = end_of(None if self._choice is None else self._choice.finish_reason)
        out += self._remaining_calls() + self._close_part() + self._close_item(status)
        usage = usage_of(self._usage, self._context.input_tokens, self._deltas, self._reasoning_deltas)
        out += self._response_event(f"response.{status}", status=status, incomplete_details=details, usage=usage)
        self.ended = True
        return out

    # Events...

    def _prepare(self, event: str, before: bytes = b"", after: bytes = b"") -> None:
        """Format the part of the delta events that is the same for all deltas of the open part or call."""
        type_, item_id = event.encode(), _encode(self._current_item()["id"]).replace(b"%", b"%%")
        self._delta = _DELTA % (type_, type_, item_id, len(self._output), before, after)

    def _number(self) -> int:
        number = self._sequence_number
        self._sequence_number = number + 1
        return number

    def _event(self, type_: str, fields: Fields) -> bytes:
        return sse.write(_encode({"type": type_, "sequence_number": self._number(), **fields}), type_.encode())

    def _response_event(self, type_: str, **changes: Any) -> bytes:
        self._response = {**(self._response or {}), **changes, "output": self._output}
        return self._event(type_, {"response": self._response})
