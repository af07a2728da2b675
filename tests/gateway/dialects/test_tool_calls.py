"""gateway.dialects.tool_calls, as the meters feed it: can a client use the calls of an answer?"""

import json

import msgspec
import pytest

from gateway.dialects import tool_calls
from gateway.dialects.tool_calls import ToolCalls
from gateway.telemetry.meter import BodyMeter, StreamMeter


def deltas(*calls):
    """A chat stream that makes these calls, each a list of (index, name or None, piece of arguments)."""
    for index, name, arguments in calls:
        function = {"arguments": arguments} | ({"name": name} if name else {})
        delta = {"tool_calls": [{"index": index, "function": function}]}
        yield b"data: " + msgspec.json.encode({"choices": [{"delta": delta, "finish_reason": None}]}) + b"\n\n"
    yield b'data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n'


def stream(chunks, **more):
    meter = StreamMeter(ToolCalls(), **more)
    for chunk in chunks:
        meter.feed(chunk, 1.0)
    return meter


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
def test_calls_of_a_stream_are_put_together_by_index(calls, valid):
    """Split anywhere, interleaved, in vain: valid is what a client can parse."""
    meter = stream(deltas(*calls))

    assert meter.tool_calls.valid is valid
    assert meter.finish_reason == "tool_calls"


def test_answer_without_calls_is_not_judged():
    """There is nothing to be valid."""
    meter = stream([b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'])

    assert meter.tool_calls.valid is None
    assert meter.finish_reason == "stop"


def test_watched_stream_misses_no_call_beside_text():
    """Events that would be skimmed for speed are read when somebody compares."""
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
    """Chat, completions, Responses, and what has neither."""
    meter = BodyMeter(ToolCalls())
    meter.feed(json.dumps(answer).encode())
    meter.finish()

    assert (meter.finish_reason, meter.tool_calls.valid) == (reason, valid)


def test_whole_answer_nobody_watches_is_read_for_usage_only():
    """What is not asked for is not decoded."""
    meter = BodyMeter()
    meter.feed(b'{"choices":[{"message":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}')
    meter.finish()

    assert meter.finish_reason is None
    assert meter.usage.prompt_tokens == 3


def test_calls_of_a_responses_stream():
    """Whole, in the event that ends each item."""
    item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":'}
    events = [{"type": "response.output_item.done", "item": item}, {"type": "response.completed", "response": {}}]

    meter = stream(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)

    assert meter.tool_calls.valid is False
    assert meter.finish_reason == "completed"


def test_endless_calls_are_not_kept(monkeypatch):
    """A limit on what is kept of an answer; beyond it nobody judges."""
    monkeypatch.setattr(tool_calls, "ARGUMENTS_LIMIT_BYTES", 100)
    long = ToolCalls()
    for _ in range(50):
        long.feed([{"index": 0, "function": {"name": "f", "arguments": "xxxxxxxxxx"}}])
    many = ToolCalls()
    for index in range(1000):
        many.feed([{"index": index, "function": {"name": "f", "arguments": "{}"}}])

    assert (long.valid, many.valid) == (None, None)
    assert sum(map(len, long._arguments[0])) <= 100
    assert len(many._arguments) == tool_calls.CALLS_LIMIT


@pytest.mark.parametrize("calls", [None, "x", [None], [{"index": {}}], [{"index": 0, "function": {"arguments": {}}}]])
def test_odd_calls_hurt_nobody(calls):
    """Whatever an engine says, it is not raised."""
    odd = ToolCalls()
    odd.feed(calls)
    odd.feed_function_call(calls)

    assert odd.valid in {None, False}
