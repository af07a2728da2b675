"""Messages of an engine that speaks them, converted to the other form."""

import json

import pytest
from anthropic_grammar import read_stream
from fakes.chat_completions import USAGE, call, chunk, whole

from gateway import errors
from gateway.dialects.anthropic import response
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.anthropic.stream import MessagesStream
from gateway.dialects.native.message_form import MessageAssembler, message_stream
from gateway.http import sse

CONTEXT = MessagesContext("r", "m", answer_id="r", show_thinking=True)
CALLS = [{"id": f"c{at}", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}} for at in range(2)]
WHOLE = response.translate(whole({"content": "Tbilisi", "reasoning_content": "hm", "tool_calls": CALLS}), CONTEXT)


def assembled(*streams):
    assembler, reader = MessageAssembler(), sse.Reader()
    for stream in streams:
        assembler.feed(reader.feed(stream))
    return json.loads(assembler.body())


def streamed(*datas):
    stream = MessagesStream(CONTEXT)
    return b"".join(stream.feed(data) for data in datas) + stream.finish()


def test_message_becomes_a_stream_and_the_stream_the_message():
    """With thinking, its signature, text, calls, stop reason and usage."""
    stream = message_stream(WHOLE)
    read_back = read_stream(stream)

    assert read_back.stopped
    assert (read_back.joined("text", "text"), read_back.joined("thinking", "thinking")) == ("Tbilisi", "hm")
    assert read_back.calls == [("f", '{"x":1}')] * 2
    assert assembled(stream) == json.loads(WHOLE)


def test_stream_is_put_together_wherever_it_is_split():
    """Of blocks in pieces."""
    deltas = [{"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "Tbi"}, {"content": "lisi"}]
    calls = [call(0, "c0", "f", '{"x"'), call(0, arguments=":1}"), call(1, "c1", "f", '{"x":1}')]
    stream = streamed(*map(chunk, deltas), *map(chunk, calls), chunk({}, "tool_calls", usage=USAGE))
    expected = {**json.loads(WHOLE), "usage": assembled(stream)["usage"]}

    for cut in range(0, len(stream), 7):
        assert assembled(stream[:cut], stream[cut:]) == expected


BLOCKS = [
    {"type": "text", "text": "x", "citations": [{"cited_text": "a"}, {"cited_text": "b"}]},
    {"type": "redacted_thinking", "data": "abc"},
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
    {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"url": "u"}]},
    {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    {"type": "novelty", "x": 1},
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["type"])
def test_block_of_any_type_survives(block):
    """Engines have more than the gateway's own translation makes."""
    message = {"type": "message", "content": [block], "stop_reason": "end_turn", "stop_sequence": None, "usage": {}}
    body = json.dumps(message).encode()

    assert {**assembled(message_stream(body)), "usage": {}} == message


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"content":"x"}', b'{"content":[1]}', WHOLE[:-9]], ids=repr
)
def test_what_is_no_message_is_a_502(body):
    """A client would see no event and no error."""
    with pytest.raises(errors.UpstreamMalformedResponse, match="neither an event stream nor a message"):
        message_stream(body)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"", errors.UpstreamMalformedResponse),
        (b'data: {"type":"ping"}\n\n', errors.UpstreamMalformedResponse),
        (b"data: <html>\n\n", errors.UpstreamMalformedResponse),
        (b"data: [1]\n\n", errors.UpstreamMalformedResponse),
        (message_stream(WHOLE).partition(b"event: message_delta")[0], errors.UpstreamConnectionError),
        (
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n',
            errors.ServiceUnavailable,
        ),
        (message_stream(WHOLE).replace(b'{\\"x\\":1}', b'{\\"x\\":'), errors.UpstreamMalformedResponse),
    ],
)
def test_stream_that_is_no_whole_message_is_an_error(stream, error):
    """A part is never passed as the whole."""
    with pytest.raises(error):
        assembled(stream)


def test_error_in_place_of_a_message_keeps_its_text():
    """And its kind."""
    with pytest.raises(errors.ServiceUnavailable, match="busy"):
        message_stream(b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}')
