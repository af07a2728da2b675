"""A message of Anthropic's API: put together from its stream, and written as one. No I/O.

Grammar: https://docs.anthropic.com/en/api/messages-streaming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gateway.dialects.loose_json import JsonObject
from gateway.dialects.native.native_answer import decode_answer, decode_events
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http import sse

__all__ = ["MessageAssembler", "message_stream"]

_TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
"""The member of a block, and of the delta, that a delta of this type adds to."""


class MessageAssembler:
    """Assembles one message."""

    __slots__ = ("_blocks", "_inputs", "_message", "_stopped")

    def __init__(self) -> None:
        self._message: JsonObject | None = None
        self._blocks: dict[Any, JsonObject] = {}
        self._inputs: dict[Any, list[str]] = {}  # pieces of JSON
        self._stopped = False

    def feed(self, events: Sequence[sse.Event]) -> None:
        """Take in events of the stream.

        Raises:
            UpstreamMalformedResponse: One is not an event of a message.
            GatewayError: The upstream reports an error in one.
        """
        for event in decode_events(events):
            index = event.get("index")
            match event:
                case {"type": "message_start", "message": dict() as message}:
                    self._message = message
                case {"type": "content_block_start", "content_block": dict() as block}:
                    self._blocks[index] = block
                case {"type": "content_block_delta", "delta": dict() as delta} if index in self._blocks:
                    self._take_delta(index, delta)
                case {"type": "message_delta"} if self._message is not None:
                    self._message |= event.get("delta") or {}
                    self._message["usage"] = {**(self._message.get("usage") or {}), **(event.get("usage") or {})}
                case {"type": "message_stop"}:
                    self._stopped = True

    def _take_delta(self, index: object, delta: JsonObject) -> None:
        block, type_ = self._blocks[index], delta.get("type")
        if type_ == "input_json_delta":
            self._inputs.setdefault(index, []).append(str(delta.get("partial_json") or ""))
        elif type_ == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta.get("citation")]
        elif isinstance(type_, str) and (name := _TEXTS.get(type_)) is not None:
            block[name] = str(block.get(name) or "") + str(delta.get(name) or "")

    def body(self) -> bytes:
        """The whole message.

        Raises:
            UpstreamConnectionError: The stream ended before the message did.
            UpstreamMalformedResponse: The stream had no message, or a call with malformed input.
        """
        if self._message is None:
            raise UpstreamMalformedResponse("the neuron's stream has no message")
        if not self._stopped and self._message.get("stop_reason") is None:
            raise UpstreamConnectionError("the neuron's stream broke off without an end")
        for index, pieces in self._inputs.items():
            try:
                self._blocks[index]["input"] = msgspec.json.decode("".join(pieces) or "{}")
            except msgspec.DecodeError as error:
                raise UpstreamMalformedResponse(f"the neuron sent a call whose input is not JSON: {error}") from None
        return msgspec.json.encode({**self._message, "content": list(self._blocks.values())})


def message_stream(body: bytes) -> bytes:
    """The stream of a whole message. Raises GatewayError as `decode_answer`."""
    message = decode_answer(body, "a message", "content")
    return b"".join([sse.write(msgspec.json.encode(event), event["type"].encode()) for event in _events(message)])


def _events(message: JsonObject) -> Iterator[JsonObject]:
    usage = message.get("usage") or {}
    started = {
        **message,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 0},
    }
    yield {"type": "message_start", "message": started}
    for index, block in enumerate(message["content"]):
        empty, deltas = _in_pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    end = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": end, "usage": usage}
    yield {"type": "message_stop"}


def _in_pieces(block: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    """A block as it starts, and its deltas. A block of another type starts whole."""
    empty, deltas = dict(block), []
    for type_, name in _TEXTS.items():
        if isinstance(block.get(name), str):
            empty[name] = ""
            deltas += [{"type": type_, name: block[name]}] if block[name] else []
    for citation in block.get("citations") or ():
        empty["citations"] = []
        deltas.append({"type": "citations_delta", "citation": citation})
    if isinstance(block.get("input"), dict):
        empty["input"] = {}
        deltas.append({"type": "input_json_delta", "partial_json": msgspec.json.encode(block["input"]).decode()})
    return empty, deltas
