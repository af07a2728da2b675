"""Responses of an engine that speaks them, converted to the other form."""

import json

import pytest
from fakes.chat_completions import USAGE, call, chunk, whole
from responses_grammar import read_stream

from gateway import errors
from gateway.dialects.native.response_form import ResponseAssembler, response_stream
from gateway.dialects.responses import response
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.stream import ResponsesStream
from gateway.http import sse

CONTEXT = ResponsesContext("r", "m")
CALLS = [{"id": f"c{at}", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}} for at in range(2)]
ANSWER = {"content": "Tbilisi", "refusal": "no", "reasoning_content": "hm", "tool_calls": CALLS}
WHOLE = response.translate(whole(ANSWER, "tool_calls"), CONTEXT)
CUT = response.translate(whole({"content": "Tbi"}, "length"), CONTEXT)


def assembled(*streams):
    assembler, reader = ResponseAssembler(), sse.Reader()
    for stream in streams:
        assembler.feed(reader.feed(stream))
    return json.loads(assembler.body())


@pytest.mark.parametrize("body", [WHOLE, CUT], ids=["completed", "incomplete"])
def test_response_becomes_a_stream_and_the_stream_the_response(body):
    """With reasoning, text, calls, status and usage."""
    stream = response_stream(body)
    read_back = read_stream(stream)

    assert read_back.completed
    assert read_back.response == assembled(stream) == json.loads(body)
    assert read_back.joined("output_text").startswith("Tbi")


def test_stream_is_put_together_wherever_it_is_split():
    """From its last event, and from its items where an engine leaves that empty."""
    machine = ResponsesStream(CONTEXT)
    datas = [
        *map(chunk, ({"reasoning_content": "hm"}, {"content": "Tbi"}, {"content": "lisi"}, call(0, "c", "f", "{}")))
    ]
    stream = b"".join(machine.feed(data) for data in [*datas, chunk({}, "tool_calls", usage=USAGE)])
    last = stream.rindex(b"event: response.completed")
    final = json.loads(stream[last:].partition(b"data: ")[2])
    final["response"]["output"], output = [], final["response"]["output"]
    without_output = stream[:last] + sse.write(json.dumps(final).encode(), b"response.completed")

    assert assembled(without_output)["output"] == output
    for cut in range(0, len(stream), 7):
        assert assembled(stream[:cut], stream[cut:]) == {**final["response"], "output": output}


ITEMS = [
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "e"},
    {"type": "custom_tool_call", "id": "c", "call_id": "c", "name": "f", "input": "x"},
    {"type": "web_search_call", "id": "w", "status": "completed", "action": {"query": "q"}},
    {"type": "message", "id": "m", "content": [{"type": "novelty", "x": 1}]},
    {"type": "novelty"},
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item["type"])
def test_item_of_any_type_survives(item):
    """Engines have more than the gateway's own translation makes."""
    body = json.dumps({"object": "response", "status": "completed", "output": [item]}).encode()
    stream = response_stream(body)
    datas = [json.loads(event.data) for event in sse.Reader().feed(stream)]

    assert assembled(stream) == json.loads(body)
    assert [data["sequence_number"] for data in datas] == list(range(len(datas)))
    assert [data["item"] for data in datas if data["type"] == "response.output_item.done"] == [item]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"output":"x"}', WHOLE[:-9]], ids=repr)
def test_what_is_no_response_is_a_502(body):
    """A client would see no event and no error."""
    with pytest.raises(errors.UpstreamMalformedResponse, match="neither an event stream nor a response"):
        response_stream(body)


FAILED = b'{"type":"response.failed","response":{"error":{"code":"server_error","message":"oh"}}}'


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"", errors.UpstreamConnectionError),
        (b"data: <html>\n\n", errors.UpstreamMalformedResponse),
        (response_stream(WHOLE).partition(b"event: response.completed")[0], errors.UpstreamConnectionError),
        (b"data: %b\n\n" % FAILED, errors.UpstreamConnectionError),
        (b'event: error\ndata: {"type":"error","code":"429","message":"busy"}\n\n', errors.ServiceUnavailable),
    ],
)
def test_stream_that_is_no_whole_response_is_an_error(stream, error):
    """A part is never passed as the whole."""
    with pytest.raises(error):
        assembled(stream)


def test_failed_response_is_an_error():
    """Not a stream that ends well."""
    with pytest.raises(errors.UpstreamConnectionError, match="oh"):
        response_stream(b'{"status":"failed","output":[],"error":{"code":"server_error","message":"oh"}}')
