"""The Responses API of a neuron that serves it itself: from a body to a `Generation`, to JSON or SSE. No I/O.

Shares nothing with `gateway.dialects.responses`: so that a pass-through differs from what the gateway would generate.
Shapes as in https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec

from neuron.simulated.hardware import SimModel
from neuron.simulated.shapes import ChatRequest, Generation, SimFunction, SimMessage, SimTool, Voice, chat_answer

_ENCODE = msgspec.json.Encoder().encode


# ---- requests: only what changes the answer is read


class FlatTool(msgspec.Struct):
    """One of `tools`; only functions are offered to the model."""

    type: str
    name: str = ""
    parameters: dict[str, Any] | None = None


class SimReasoning(msgspec.Struct):
    """`reasoning`."""

    effort: str | None = None


class SimResponsesRequest(msgspec.Struct):
    """`POST /v1/responses`."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[FlatTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning: SimReasoning | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None


def answer(model: SimModel, body: bytes) -> ResponsesGeneration:
    """The answer the model gives to the same chat.

    Raises:
        msgspec.MsgspecError: the body is no Responses request.
    """
    request = msgspec.json.decode(body, type=SimResponsesRequest)
    generation = chat_answer(model, _chat(request))
    fields = {name: getattr(generation, name) for name in Generation.__dataclass_fields__}
    return ResponsesGeneration(**{**fields, "id": generation.id.replace("chatcmpl-", "resp_")})


def _chat(request: SimResponsesRequest) -> ChatRequest:
    choice = request.tool_choice
    return ChatRequest(
        messages=list(_messages(request)),
        tools=[
            SimTool(SimFunction(tool.name, tool.parameters)) for tool in request.tools or () if tool.type == "function"
        ],
        tool_choice={"function": choice} if isinstance(choice, dict) else choice,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        max_tokens=request.max_output_tokens,
        stream=request.stream,
    )


def _messages(request: SimResponsesRequest) -> Iterator[SimMessage]:
    if request.instructions:
        yield SimMessage("system", request.instructions)
    items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    for item in items:
        match item.get("type", "message"):
            case "message":
                yield SimMessage(item["role"], _content(item.get("content")))
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                yield SimMessage("assistant", None, [{"id": item.get("call_id"), "function": function}])
            case "function_call_output":
                yield SimMessage("tool", _content(item.get("output")))


def _content(given: Any) -> str:
    parts = given if isinstance(given, list) else [{"text": given or ""}]
    return "\n".join(str(part.get("text", "")) for part in parts)


# ---- answers


@dataclass(frozen=True, slots=True)
class ResponsesGeneration(Generation):
    """The same answer in the format of Responses."""

    def opening(self, voice: Voice) -> list[bytes]:
        """The two events before any token."""
        return _EventWriter(self, voice, 0).script()[0]

    def token_events(self, voice: Voice) -> Iterator[bytes]:
        """The events of each token: its delta, and the items and parts it opens."""
        return iter(_EventWriter(self, voice, 0).script()[1])

    def closing(self, voice: Voice, cached: int) -> list[bytes]:
        """The events after the last token; there is no `[DONE]`."""
        return _EventWriter(self, voice, cached).script()[2]

    def whole(self, voice: Voice, cached: int) -> bytes:
        """The answer as one JSON body."""
        writer = _EventWriter(self, voice, cached)
        writer.script()
        return _ENCODE(writer.response)


class _EventWriter:
    """Writes the events of an answer, numbered."""

    def __init__(self, generation: Generation, voice: Voice, cached: int) -> None:
        self._generation = generation
        self._number = 0
        self._usage = None if voice.usage == "none" else _usage(generation.usage(cached))
        self.response: dict[str, Any] = {
            "id": generation.id,
            "object": "response",
            "created_at": voice.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": voice.model,
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }

    def script(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """The events before the tokens, with each token, and after them."""
        opening = [self._write(kind, response=self.response) for kind in ("response.created", "response.in_progress")]
        events: list[bytes] = []
        before = b""
        for (kind, _), run in groupby(self._generation.deltas, _run):
            deltas = list(run)
            item = self._item(kind, deltas[0])
            before += self._begin(item)
            for delta in deltas:
                events.append(before + self._add(item, delta))
                before = b""
            before = self._finish(item)
        return opening, events, [before + self._end()]

    def _item(self, kind: str, delta: dict[str, Any]) -> dict[str, Any]:
        item: dict[str, Any] = {"id": f"{kind}-{len(self.response['output'])}", "type": kind, "status": "in_progress"}
        if kind == "function_call":
            call = delta["tool_calls"][0]
            return item | {"call_id": call["id"], "name": call["function"]["name"], "arguments": ""}
        return item | ({"summary": [], "content": []} if kind == "reasoning" else {"role": "assistant", "content": []})

    def _begin(self, item: dict[str, Any]) -> bytes:
        added = self._write("response.output_item.added", output_index=self._index, item=item)
        if item["type"] == "function_call":
            return added
        item["content"].append(_part(item))
        place = {"item_id": item["id"], "output_index": self._index, "content_index": 0}
        return added + self._write("response.content_part.added", **place, part=item["content"][0])

    def _add(self, item: dict[str, Any], delta: dict[str, Any]) -> bytes:
        place = {"item_id": item["id"], "output_index": self._index}
        if item["type"] == "function_call":
            piece = delta["tool_calls"][0]["function"]["arguments"]
            item["arguments"] += piece
            return self._write("response.function_call_arguments.delta", **place, delta=piece) if piece else b""
        piece = delta.get("content") or delta.get("reasoning_content", "")
        item["content"][0]["text"] += piece
        more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
        kind = item["content"][0]["type"]
        return self._write(f"response.{kind}.delta", **place, content_index=0, delta=piece, **more)

    def _finish(self, item: dict[str, Any]) -> bytes:
        place = {"item_id": item["id"], "output_index": self._index}
        if item["type"] == "function_call":
            call = {"name": item["name"], "arguments": item["arguments"]}
            events = self._write("response.function_call_arguments.done", **place, **call)
        else:
            part = item["content"][0]
            more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            events = self._write(f"response.{part['type']}.done", **place, content_index=0, text=part["text"], **more)
            events += self._write("response.content_part.done", **place, content_index=0, part=part)
        item["status"] = "completed"
        events += self._write("response.output_item.done", output_index=self._index, item=item)
        self.response["output"].append(item)
        return events

    def _end(self) -> bytes:
        cut = self._generation.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        self.response |= {"status": status, "usage": self._usage}
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        return self._write(f"response.{status}", response=self.response)

    @property
    def _index(self) -> int:
        return len(self.response["output"])

    def _write(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _ENCODE(body))


def _run(delta: dict[str, Any]) -> tuple[str, int]:
    """Which item a token belongs to."""
    if "tool_calls" in delta:
        return "function_call", delta["tool_calls"][0]["index"]
    return ("reasoning" if "reasoning_content" in delta else "message"), 0


def _part(item: dict[str, Any]) -> dict[str, Any]:
    if item["type"] == "reasoning":
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Chat's usage with the field names of this API."""
    thought = usage.get("completion_tokens_details", {"reasoning_tokens": 0})
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": thought,
        "total_tokens": usage["total_tokens"],
    }
