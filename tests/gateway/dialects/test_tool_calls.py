"""Tool calls, assembled by the meters: can a client use the calls of an answer?"""

import json

import msgspec
import pytest
from fakes.framed import MeteredStream

from gateway.dialects import tool_calls
from gateway.dialects.chat_chunks import Function, ToolCall
from gateway.dialects.tool_calls import ToolCalls
from gateway.telemetry.meter import BodyMeter, StreamMeter


def deltas(*calls):
    """A chat stream with these calls, each (index, name or None, piece of arguments)."""
    for index, name, arguments in calls:
        function = {"arguments": arguments} | ({"name": name} if name else {})
        delta = {"tool_calls": [{"index": index, "function": function}]}
        yield b"data: " + msgspec.json.encode({"choices": [{"delta": delta, "finish_reason": None}]}) + b"\n\n"
    yield b'data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n'


def stream(chunks):
    metered = MeteredStream(StreamMeter(ToolCalls()))
    for chunk in chunks:
        metered.feed(chunk, 1.0)
    return metered.meter


@pytest.mark.parametrize(
    ("calls", "valid"),
    [
        ([(0, "get", '{"city": "Tbilisi"}')], True),
        ([(0, "get", '{"ci'), (0, None, 'ty": "T'), (0, None, 'bilisi"}')], True),
        ([(0, "get", '{"a"'), (1, "put", '{"b"'), (0, None, ":1}"), (1, None, ":2}")], True),
        ([(0, "get", '{"a":1}'), (1, "put", '{"b":')], False),
        ([(0, "get", "")], True),
        ([(0, "get", "[1]")], False),
        ([(0, "get", "city = Tbilisi")], False),
        ([(0, None, "{}")], False),
        ([(0, "get", '{"a": 1}{"a": 1}')], False),
    ],
)
def test_calls_of_a_stream_are_assembled_by_index(calls, valid):
    """Split anywhere, interleaved, incomplete: a call is valid if a client can parse it."""
    meter = stream(deltas(*calls))

    assert meter.tool_calls.valid is valid
    assert meter.finish_reason == "tool_calls"


def test_answer_without_calls_is_neither_valid_nor_invalid():
    """There is no call to judge."""
    meter = stream([b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'])

    assert meter.tool_calls.valid is None
    assert meter.finish_reason == "stop"


def test_stream_with_collected_calls_is_never_skimmed():
    """A call in an event with text is found."""
    event = b'data: {"choices":[{"delta":{"content":"x","tool_calls":[{"index":0,"function":{"name":"f"}}]}}]}\n\n'
    text = b'data: {"choices":[{"index":0,"delta":{"content":"y"},"finish_reason":null}]}\n\n'

    assert stream([text, text, event]).tool_calls.valid is True


@pytest.mark.parametrize(
    ("answer", "reason", "valid"),
    [
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]}, "length", None),
        (
            {
                "choices": [
                    {
                        "message": {"tool_calls": [{"function": {"name": "f", "arguments": '{"a":1}'}}]},
                        "finish_reason": "tool_calls",
                    }
                ]
            },
            "tool_calls",
            True,
        ),
        ({"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}}]}, None, False),
        ({"choices": [{"message": {"tool_calls": [{"function": None}]}}]}, None, False),
        ({"choices": [{"message": {"tool_calls": "odd"}}]}, None, None),
        ({"choices": [{"text": "x", "finish_reason": "stop"}]}, "stop", None),
        (
            {"status": "completed", "output": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
            "completed",
            True,
        ),
        ({"data": []}, None, None),
    ],
)
def test_calls_of_a_whole_answer(answer, reason, valid):
    """Chat, completions, Responses, and an answer of another kind."""
    meter = BodyMeter(ToolCalls())
    meter.feed(json.dumps(answer).encode())
    meter.finish()

    assert (meter.finish_reason, meter.tool_calls.valid) == (reason, valid)


def test_whole_answer_without_collected_calls_is_read_for_usage_only():
    """Nothing else is decoded."""
    meter = BodyMeter()
    meter.feed(b'{"choices":[{"message":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}')
    meter.finish()

    assert meter.finish_reason is None
    assert meter.usage.prompt_tokens == 3


def test_calls_of_a_responses_stream():
    """They are complete in the event that ends each item."""
    item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":'}
    events = [{"type": "response.output_item.done", "item": item}, {"type": "response.completed", "response": {}}]

    meter = stream(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)

    assert meter.tool_calls.valid is False
    assert meter.finish_reason == "completed"


def test_calls_over_the_limit_are_not_kept(monkeypatch):
    """Beyond the limit a call is neither kept nor judged."""
    monkeypatch.setattr(tool_calls, "ARGUMENTS_LIMIT_CHARACTERS", 200)
    long = ToolCalls()
    for _ in range(50):
        long.collect([ToolCall(0, None, Function("f", "xxxxxxxxxx"))])
    many = ToolCalls()
    for index in range(1000):
        many.collect([ToolCall(index, None, Function("f", "{}"))])

    assert (long.valid, many.valid) == (None, None)
    assert len(long.first.arguments) <= 200
    assert len(many) == tool_calls.CALLS_LIMIT


@pytest.mark.parametrize("calls", [None, "x", [None], [{"index": {}}], [{"index": 0, "function": {"arguments": {}}}]])
def test_malformed_calls_raise_nothing(calls):
    """Whatever an engine sends."""
    event = {"choices": [{"delta": {"tool_calls": calls}}], "type": "response.output_item.done", "item": calls}
    odd = stream([b"data: " + msgspec.json.encode(event) + b"\n\n"]).tool_calls
    odd.collect_item(calls)

    assert odd.valid in {None, False}


def test_calls_without_index_are_told_apart_as_the_translators_do():
    """In a stream by another id with a name; in one message by their order."""
    started = [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]
    other = [{"id": "b", "function": {"name": "g", "arguments": '{"x":'}}]
    rest = [{"function": {"arguments": "1}"}}]
    pieces = [msgspec.json.encode({"choices": [{"delta": {"tool_calls": part}}]}) for part in (started, other, rest)]
    calls = stream([b"data: " + piece + b"\n\n" for piece in pieces]).tool_calls

    assert [(call.name, call.arguments) for call in calls.in_order()] == [("f", "{}"), ("g", '{"x":1}')]

    message = ToolCalls()
    message.collect([ToolCall(None, None, Function("f", "{}")), ToolCall(None, None, Function("g", "{}"))])
    assert [call.name for call in message.in_order()] == ["f", "g"]
