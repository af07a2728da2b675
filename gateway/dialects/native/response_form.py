"""A response of OpenAI's Responses API: read from its stream, and written as one. No I/O.

Events: https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from gateway.dialects import upstream_errors
from gateway.dialects.loose_json import JsonObject
from gateway.dialects.native.native_answer import decode_answer, decode_events
from gateway.errors import UpstreamConnectionError
from gateway.http import sse

__all__ = ["ResponseAssembler", "response_stream"]


class ResponseAssembler:
    """Assembles one response. The last event of a stream has all of it; some engines leave its output empty."""

    __slots__ = ("_items", "_response")

    def __init__(self) -> None:
        self._response: JsonObject | None = None
        self._items: list[object] = []

    def feed(self, events: Sequence[sse.Event]) -> None:
        """Take in events of the stream.

        Raises:
            UpstreamMalformedResponse: One is not a JSON object.
            GatewayError: The upstream reports an error in one, or the response failed.
        """
        for event in decode_events(events):
            match event:
                case {"type": "response.output_item.done", "item": item}:
                    self._items.append(item)
                case {"type": "response.completed" | "response.incomplete", "response": dict() as response}:
                    self._response = response
                case {"type": "response.failed"}:
                    raise upstream_errors.from_stream(_failure_of(event.get("response")))

    def body(self) -> bytes:
        """The whole response. Raises UpstreamConnectionError if the stream ended before it."""
        if self._response is None:
            raise UpstreamConnectionError("the neuron's stream broke off without an end")
        return msgspec.json.encode({**self._response, "output": self._response.get("output") or self._items})


def _failure_of(response: object) -> object:
    error = response.get("error") if isinstance(response, dict) else None
    return error or {"message": "the neuron's response failed"}


def response_stream(body: bytes) -> bytes:
    """The stream of a whole response. Raises GatewayError as `decode_answer`, or if the response failed."""
    response = decode_answer(body, "a response", "output")
    if response.get("status") == "failed":
        raise upstream_errors.from_stream(_failure_of(response))
    return b"".join(
        [
            sse.write(msgspec.json.encode({**event, "sequence_number": number}), event["type"].encode())
            for number, event in enumerate(_events(response))
        ]
    )


def _events(response: JsonObject) -> Iterator[JsonObject]:
    started = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    for index, item in enumerate(response["output"]):
        place = {"item_id": item.get("id"), "output_index": index}
        empty, inside = _in_pieces(item, place)
        yield {"type": "response.output_item.added", "output_index": index, "item": empty}
        yield from inside
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    end = "incomplete" if response.get("status") == "incomplete" else "completed"
    yield {"type": f"response.{end}", "response": response}


_LISTS = {"content": ("content_part", "content_index"), "summary": ("reasoning_summary_part", "summary_index")}
_PARTS = {
    "output_text": ("output_text", "text"),
    "refusal": ("refusal", "refusal"),
    "reasoning_text": ("reasoning_text", "text"),
    "summary_text": ("reasoning_summary_text", "text"),
}
"""By the type of a part: the name of its events, and the member that has its text."""
_TEXTS = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
    "mcp_call": ("mcp_call_arguments", "arguments"),
}
"""By the type of an item: the same for its own text."""


def _in_pieces(item: JsonObject, place: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    """An item as it is added, and the events of its parts and of its text. Of another item nothing is left out."""
    empty = {name: value for name, value in item.items() if name != "encrypted_content"}  # it comes with the whole item
    if "status" in item:
        empty["status"] = "in_progress"
    events: list[JsonObject] = []
    for name, (event, index_name) in _LISTS.items():
        parts = item.get(name)
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            continue
        empty[name] = []
        for index, part in enumerate(parts):
            at = {**place, index_name: index}
            events += _part_events(part, event, at)
    text_event, member = _TEXTS.get(str(item.get("type")), ("", ""))
    if isinstance(item.get(member), str):
        empty[member] = ""
        events.append({"type": f"response.{text_event}.delta", **place, "delta": item[member]})
        events.append({"type": f"response.{text_event}.done", **place, "name": item.get("name"), member: item[member]})
    return empty, events


def _part_events(part: JsonObject, event: str, at: JsonObject) -> list[JsonObject]:
    text_event, member = _PARTS.get(str(part.get("type")), ("", ""))
    if not isinstance(part.get(member), str):
        return [
            {"type": f"response.{event}.added", **at, "part": part},
            {"type": f"response.{event}.done", **at, "part": part},
        ]
    logprobs: JsonObject = {"logprobs": []} if text_event == "output_text" else {}
    return [
        {"type": f"response.{event}.added", **at, "part": {**part, member: ""}},
        {"type": f"response.{text_event}.delta", **at, "delta": part[member], **logprobs},
        {"type": f"response.{text_event}.done", **at, member: part[member], **logprobs},
        {"type": f"response.{event}.done", **at, "part": part},
    ]
