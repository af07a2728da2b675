"""A stream of chat completion chunks as a stream of Responses events: a state machine, data in, bytes out. No I/O.

    response.created  response.in_progress
    ( output_item.added  item  output_item.done )*        output_index 0, 1, 2, ...; one open at a time
    response.completed | response.incomplete
    | error response.failed                               at any point (`error` alone before the first), nothing after

    item:  reasoning      content_part.added  reasoning_text.delta*  reasoning_text.done  content_part.done
           message        ( content_part.added  output_text.delta* .done | refusal.delta* .done  content_part.done )+
           function_call  function_call_arguments.delta*  .done
           custom_tool_call  custom_tool_call_input.delta*  .done

Every event has its `type` and a `sequence_number` without gaps. Grammar as in
https://platform.openai.com/docs/api-reference/responses-streaming.

Text and thoughts leave as they come. Of parallel calls, whose chunks may be interleaved, the first streams live if it
is a function; whatever else comes while it is open waits for the end: the others sorted by their index, late text
before them. The end is told when the neuron has told it (a finish reason with or before usage, `[DONE]`, or the end of
the body after a finish reason), and never otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway import errors
from gateway.dialects.calls import Call, Calls
from gateway.dialects.chat_chunks import BROKEN_OFF, Choice, Chunk, Said, ToolCall, read_chunk
from gateway.dialects.responses import errors as dialect_errors
from gateway.dialects.responses.response_object import (
    ResponsesContext,
    Status,
    call_id,
    call_item,
    end_of,
    message_item,
    part,
    reasoning_item,
    response,
    usage_of,
)
from gateway.dialects.usage_fields import Usage, read_usage
from gateway.http import sse

__all__ = ["ResponsesStream"]

_encode = msgspec.json.Encoder().encode
_NO_USAGE = (None, Usage())

Told = dict[str, Any]
Kind = Literal["reasoning_text", "output_text", "refusal"]

_DELTA = (
    b'event: response.%b.delta\ndata: {"type":"response.%b.delta","item_id":%b,"output_index":%d,%b'
    b'"delta":%%b%b,"sequence_number":%%d}\n\n'
)
"""A delta's event. Filled in twice: once for every part or call, and then with each text and number."""

_ITEMS = {"reasoning_text": "reasoning", "output_text": "message", "refusal": "message"}
_LOGPROBS = {"output_text": b',"logprobs":[]'}
_CUSTOM_DONE = "response.custom_tool_call_input.done"
_FUNCTION_DONE = "response.function_call_arguments.done"


class ResponsesStream:
    """One stream's translation. Made anew for every attempt; used up when `ended`.

    No method raises. Each returns the bytes the client is to get next, whole events always, often none. When the
    neuron's stream turns out to have failed, those bytes end in an `error` event and `response.failed`, and `error`
    says why.
    """

    __slots__ = (
        "_blank",
        "_calls",
        "_choice",
        "_context",
        "_delta",
        "_deltas",
        "_item",
        "_late",
        "_live",
        "_open",
        "_output",
        "_pieces",
        "_response",
        "_sequence_number",
        "_thoughts",
        "_usage",
        "ended",
        "error",
    )

    def __init__(self, context: ResponsesContext) -> None:
        self._context = context
        self.ended = False
        self.error: errors.GatewayError | None = None
        self._sequence_number = 0  # of the next event
        self._response: Told | None = None  # as told last; None before the first event
        self._output: list[Told] = []  # the items that are done
        self._item: Told | None = None  # the one that is open
        self._open: Kind | None = None  # the part of it that is
        self._delta = b""  # the event of a piece of the open part or call, but for the piece and its number
        self._pieces: list[str] = []
        self._blank = ""  # white space that becomes part of a text if there will be one
        self._calls = Calls()
        self._live: Call | None = None
        self._late: list[tuple[Kind, str]] = []
        self._choice: Choice | None = None  # the one that finished
        self._usage: Usage | None = None
        self._deltas = self._thoughts = 0

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
        """End with an error; nothing if the stream has ended, one way or the other. What was whole is told again."""
        if self.ended:
            return b""
        self.ended = True
        self.error = error
        told = dialect_errors.event(error, self._number())
        if self._response is None:
            return told
        return told + self._lifecycle("response.failed", status="failed", error=dialect_errors.object_of(error))

    # Chunks...

    def _take(self, chunk: Chunk) -> bytes:
        told = b"" if self._response is not None else self._start(chunk)
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

    def _start(self, chunk: Chunk) -> bytes:
        self._response = response(self._context, chunk.created, chunk.model)
        return self._lifecycle("response.created") + self._lifecycle("response.in_progress")

    def _say(self, said: Said) -> bytes:
        told = b""
        if thought := said.thought:
            self._thoughts += 1
            told = self._write("reasoning_text", thought)
        if words := said.words:
            told += self._write("output_text", words)
        if refused := said.refused:
            told += self._write("refusal", refused)
        for piece in said.tool_calls or ():
            told += self._call(piece)
        if thought or words or refused or said.tool_calls:
            self._deltas += 1
        return told

    # Text and thoughts...

    def _write(self, kind: Kind, text: str) -> bytes:
        if self._open == kind:
            self._pieces.append(text)
            return self._delta % (_encode(text), self._number())
        return self._write_elsewhere(kind, text)

    def _write_elsewhere(self, kind: Kind, text: str) -> bytes:
        """Not into the open part: into a new one, now or later."""
        if self._live is not None:
            self._late.append((kind, text))
            return b""
        if kind == "output_text":
            self._blank += text
            if self._blank.isspace():
                return b""  # between thoughts and a call, say: a message of nothing
            text, self._blank = self._blank, ""
        told = self._close_part()
        if self._item is None or self._item["type"] != _ITEMS[kind]:
            told += self._close_item() + self._open_text_item(kind)
        told += self._open_part(kind)
        self._pieces.append(text)
        return told + self._delta % (_encode(text), self._number())

    def _open_text_item(self, kind: Kind) -> bytes:
        make = reasoning_item if kind == "reasoning_text" else message_item
        return self._open_item(make(self._context, len(self._output), [], "in_progress"))

    def _open_part(self, kind: Kind) -> bytes:
        item = self._opened()
        place = {"item_id": item["id"], "output_index": len(self._output), "content_index": len(item["content"])}
        self._open = kind
        self._prepare(kind, b'"content_index":%d,' % place["content_index"], _LOGPROBS.get(kind, b""))
        return self._event("response.content_part.added", {**place, "part": part(kind, "")})

    def _close_part(self) -> bytes:
        if self._open is None:
            return b""
        item, kind, text = self._opened(), self._open, "".join(self._pieces)
        place = {"item_id": item["id"], "output_index": len(self._output), "content_index": len(item["content"])}
        whole = part(kind, text)
        done: Told = {"refusal": text} if kind == "refusal" else {"text": text}
        if kind == "output_text":
            done["logprobs"] = []
        item["content"].append(whole)
        self._open = None
        self._pieces = []
        return self._event(f"response.{kind}.done", {**place, **done}) + self._event(
            "response.content_part.done", {**place, "part": whole}
        )

    # Tool calls...

    def _call(self, piece: ToolCall) -> bytes:
        call = self._calls.find(piece)
        text = call.add(piece)
        if call is self._live:
            return self._delta % (_encode(text), self._number()) if text else b""
        if self._live is None and call is self._calls.first and self._can_be_live(call):
            told = self._close_part() + self._close_item() + self._open_call(call, 0)
            self._live = call
            return told + self._delta % (_encode(call.arguments), self._number())
        return b""

    def _can_be_live(self, call: Call) -> bool:
        """A custom tool's input is inside its arguments, and can be read when they are whole."""
        return call.is_well_begun and not self._context.client_tool(call.name).is_custom

    def _open_call(self, call: Call, position: int) -> bytes:
        tool, id_ = self._context.client_tool(call.name), call_id(call.id, self._context.request_id, position)
        told = self._open_item(call_item(self._context, len(self._output), tool, id_, None))
        self._prepare("custom_tool_call_input" if tool.is_custom else "function_call_arguments")
        return told

    def _close_call(self, call: Call) -> bytes:
        """The open call's last events but for its item's; the item itself gets what the call says."""
        opened, tool = self._opened(), self._context.client_tool(call.name)
        item = call_item(self._context, len(self._output), tool, opened["call_id"], call.arguments)
        self._item = item
        field = "input" if tool.is_custom else "arguments"
        told = b"" if call is self._live or not item[field] else self._delta % (_encode(item[field]), self._number())
        done = {"item_id": item["id"], "output_index": len(self._output), "name": item["name"], field: item[field]}
        return told + self._event(_CUSTOM_DONE if tool.is_custom else _FUNCTION_DONE, done)

    def _remaining_calls(self) -> bytes:
        """The end of the one that is live, what was said meanwhile, and the others, whole."""
        told: list[bytes] = []  # joined once: a model in a loop calls thousands
        waiting = self._calls.in_order()
        first = 0
        if self._live is not None:
            first = 1
            told.append(self._close_call(waiting.pop(0)))
            self._live = None
            told += [self._write(kind, text) for kind, text in self._late]
        for position, call in enumerate(waiting, start=first):
            told += self._close_part(), self._close_item()
            told += self._open_call(call, position), self._close_call(call)
        return b"".join(told)

    # Items...

    def _opened(self) -> Told:
        assert self._item is not None  # noqa: S101 - for mypy: who asks has opened one
        return self._item

    def _open_item(self, item: Told) -> bytes:
        self._item = item
        return self._event("response.output_item.added", {"output_index": len(self._output), "item": item})

    def _close_item(self, status: Status = "completed") -> bytes:
        if self._item is None:
            return b""
        item, self._item = self._item, None
        item["status"] = status
        self._output.append(item)
        return self._event("response.output_item.done", {"output_index": len(self._output) - 1, "item": item})

    # The end...

    def _end(self) -> bytes:
        if not self._calls.all_named:
            return self.fail(errors.UpstreamMalformedResponse("the neuron's answer has a tool call without a name"))
        told = b"" if self._response is not None else self._start(Chunk())
        status, details = end_of(None if self._choice is None else self._choice.finish_reason)
        told += self._remaining_calls() + self._close_part() + self._close_item(status)
        usage = usage_of(self._usage, self._context.input_tokens, self._deltas, self._thoughts)
        told += self._lifecycle(f"response.{status}", status=status, incomplete_details=details, usage=usage)
        self.ended = True
        return told

    # Events...

    def _prepare(self, event: str, before: bytes = b"", after: bytes = b"") -> None:
        """The deltas of what was just opened: everything in them that stays the same."""
        type_, item_id = event.encode(), _encode(self._opened()["id"]).replace(b"%", b"%%")
        self._delta = _DELTA % (type_, type_, item_id, len(self._output), before, after)

    def _number(self) -> int:
        number = self._sequence_number
        self._sequence_number = number + 1
        return number

    def _event(self, type_: str, fields: Told) -> bytes:
        return sse.write(_encode({"type": type_, "sequence_number": self._number(), **fields}), type_.encode())

    def _lifecycle(self, type_: str, **changes: Any) -> bytes:
        self._response = {**(self._response or {}), **changes, "output": self._output}
        return self._event(type_, {"response": self._response})
