r"""Reads the chunks of a chat stream for a translator, and puts together characters that were cut in two.

Engines that stream byte-level tokens may send the halves of a surrogate pair in two chunks: `\ud83d`, then `\ude00`. A
half that ends a text waits for the next piece of that text. One that stays alone becomes U+FFFD.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgspec

from gateway.dialects import upstream_errors
from gateway.dialects.chat_chunks import SMALL_EVENT_BYTES, Choice, Chunk, Delta, text_of
from gateway.dialects.translation.bounds import excess_of
from gateway.errors import UpstreamMalformedResponse

__all__ = ["ChunkReader", "decode_with_halves", "join_halves"]

_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")

_Key = tuple[int, str] | tuple[int, str, int]


class ChunkReader:
    """Reads one stream."""

    __slots__ = ("_halves",)

    def __init__(self) -> None:
        self._halves: dict[_Key, str] = {}  # by choice, field and, for a tool call, its index

    def read(self, data: bytes) -> Chunk:
        """Decode the data of one event.

        Raises:
            UpstreamMalformedResponse: It is not a chunk of a chat completion.
            GatewayError: The upstream reports an error in it.
        """
        is_odd = False
        if len(data) > SMALL_EVENT_BYTES and (excess := excess_of(data)) is not None:
            raise UpstreamMalformedResponse(f"the neuron sent an event with {excess}")
        try:
            chunk = _decoder.decode(data)
        except msgspec.ValidationError as error:
            raise _invalid(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            is_odd = True
            chunk = _decode_odd(data)
        if (chunk.error or not chunk.choices) and (reported := chunk.reported_error) is not None:
            raise upstream_errors.from_stream(reported)
        if is_odd or self._halves:
            for choice in chunk.choices or ():
                self._join(choice)
        return chunk

    def rest(self) -> Delta | None:
        """The halves of the first choice that stayed alone, as U+FFFD; None if there are none. Call it at the end."""
        halves, self._halves = self._halves, {}
        rest = Delta()
        for choice, field, *_ in halves:
            if choice == 0 and field != "arguments":
                setattr(rest, field, _ALONE)
        return rest if halves else None

    def _join(self, choice: Choice) -> None:
        delta, number = choice.delta, choice.index or 0
        if delta is None:
            return
        # Text of another field, or the end, shows that the other half will not come.
        is_last = delta.is_generated or choice.finish_reason is not None
        for field in _TEXT_FIELDS:
            value = getattr(delta, field)
            if value or (is_last and (number, field) in self._halves):
                setattr(delta, field, self._joined((number, field), text_of(value)))
        for position, call in enumerate(delta.tool_calls or ()):
            if call.function is not None and (text := call.function.text):
                index = position if call.index is None else call.index
                call.function.arguments = self._joined((number, "arguments", index), text)

    def _joined(self, key: _Key, text: str) -> str:
        text = self._halves.pop(key, "") + text
        if text and _is_first_half(text[-1]):
            self._halves[key] = text[-1]
            text = text[:-1]
        return join_halves(text)


_ALONE = "\ufffd"


def _is_first_half(character: str) -> bool:
    return "\ud800" <= character <= "\udbff"


def join_halves(text: str) -> str:
    """The text with surrogate pairs as characters, and halves that are alone as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def decode_with_halves(data: bytes) -> Any:
    """Decode JSON of which msgspec decodes nothing because of half a pair. Strings may contain halves.

    Raises:
        ValueError: It is not JSON, nested too deeply, or not UTF-8.
    """
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _decode_odd(data: bytes) -> Chunk:
    try:
        return msgspec.convert(decode_with_halves(data), Chunk)
    except (ValueError, msgspec.ValidationError) as error:
        raise _invalid(error) from None


def _invalid(error: Exception) -> UpstreamMalformedResponse:
    return UpstreamMalformedResponse(f"the neuron sent an invalid chat completion chunk: {error}")


_decoder = msgspec.json.Decoder(Chunk)
