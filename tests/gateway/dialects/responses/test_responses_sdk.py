"""The gateway's output read by OpenAI's official SDK: stream accumulator, types and typed errors. No network."""

import json

import httpx2  # the SDK's HTTP client
import openai
import pydantic
import pytest
from coding_agent import TOOLS
from fakes.chat_completions import USAGE, answers, call, chunk, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from responses_grammar import events

from gateway import errors
from gateway.dialects.responses import request, response
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.stream import ResponsesStream
from gateway.dialects.responses.tools import ClientTool
from gateway.http import sse

HI = {"model": "m", "input": "hi"}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FULL = {
    **HI,
    "instructions": "be nice",
    "tools": [*TOOLS, {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}],
    "tool_choice": {"type": "function", "name": "weather"},
    "text": {"format": {"type": "json_schema", "name": "city", "schema": WEATHER}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "metadata": {"a": "b"},
    "temperature": 0.5,
    "top_p": 1,
    "max_output_tokens": 100,
    "max_tool_calls": 3,
    "truncation": "auto",
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "p",
    "store": True,
}
EVENT = pydantic.TypeAdapter(ResponseStreamEvent)
BROKE_OFF = errors.UpstreamConnectionError("the neuron broke off")


def context_of(body=HI):
    return request.translate(json.dumps(body).encode()).context("req-1", "lab/m")


def client(body, status=200, content_type="application/json", cut=None):
    """The SDK with a fixed response, cut in two pieces at `cut`; `client.sent` has the bodies it sent."""
    sent = []

    def handle(request):
        sent.append(request.content)
        content = body if cut is None else iter([body[:cut], body[cut:]])
        return httpx2.Response(status, content=content, headers={"content-type": content_type})

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    sdk = openai.OpenAI(
        api_key="k",
        base_url="http://gateway/v1",
        max_retries=0,
        http_client=transport,
        _strict_response_validation=True,
    )
    sdk.sent = sent
    return sdk


def accumulated(stream, cut=None, **more):
    sdk = client(stream, content_type="text/event-stream", cut=cut)
    with sdk.responses.stream(**{**HI, **more}) as events:
        return events.get_final_response()


def translated(datas, body=HI):
    translator = ResponsesStream(context_of(body))
    return b"".join(map(translator.feed, datas)) + translator.finish()


@settings(max_examples=60, deadline=None)
@given(answers())
def test_every_event_has_one_of_the_sdks_types(answer):
    """Validated strictly: field types, required fields, and no unknown event."""
    for event in events(translated(answer.datas)):
        EVENT.validate_json(json.dumps(event), strict=True)


@settings(max_examples=40, deadline=None)
@given(answers())
def test_sdk_accumulates_any_stream_to_the_models_answer(answer):
    """Text, reasoning, arguments, usage and status, for any mixture of chunks."""
    stream = translated(answer.datas)
    if answer.finish_reason == "length":
        with pytest.raises(RuntimeError, match=r"response\.completed"):  # so does the SDK with OpenAI itself
            accumulated(stream)
        return
    message = accumulated(stream)

    assert "".join(message.output_text.split()) == "".join(answer.text.split())
    thoughts = [part.text for item in message.output if item.type == "reasoning" for part in item.content]
    assert "".join(thoughts) == answer.thought
    calls = [item for item in message.output if item.type == "function_call"]
    assert [(item.name, json.loads(item.arguments)) for item in calls] == [
        (name, json.loads(arguments)) for name, arguments in answer.calls
    ]
    assert message.status == "completed"
    if answer.usage is not None:
        assert (message.usage.input_tokens, message.usage.output_tokens) == (40, 7)


@settings(max_examples=10, deadline=None)
@given(answers(), st.data())
def test_sdk_accumulates_the_same_wherever_the_bytes_are_cut(answer, data):
    """At any byte of the gateway's stream, and of the neuron's."""
    datas = [data.replace(b'"length"', b'"stop"') for data in answer.datas]
    stream = translated(datas)
    raw = b"".join(map(sse.write, datas))
    at = data.draw(st.integers(0, len(raw)))
    reader, translator = sse.Reader(), ResponsesStream(context_of())
    again = b"".join(translator.feed(event.data) for part in (raw[:at], raw[at:]) for event in reader.feed(part))

    assert again + translator.finish() == stream
    assert accumulated(stream, cut=data.draw(st.integers(0, len(stream)))) == accumulated(stream)


def test_sdk_decodes_a_stream_cut_at_every_byte():
    """A stream with every type of item, cut at each byte in turn."""
    deltas = [{"reasoning_content": "Hm."}, {"content": "Tbilisi, ü"}, call(0, "call_0", "weather", '{"city": "ü"}')]
    stream = translated([*map(chunk, deltas), chunk({}, "tool_calls", usage=USAGE)])
    expected = [(event["type"], event) for event in events(stream)]
    sdk = client(b"")

    assert [item.type for item in accumulated(stream).output] == ["reasoning", "message", "function_call"]
    for cut in range(len(stream)):
        decoded = sdk._make_sse_decoder().iter_bytes(iter([stream[:cut], stream[cut:]]))
        assert [(event.event, event.json()) for event in decoded] == expected


def test_sdk_reads_the_same_response_whole_and_streamed():
    """Both translations of one answer are equal, for a request that sets every parameter."""
    calls = [call(i, f"call_{i}", "weather", json.dumps({"city": f"{i}"}))["tool_calls"][0] for i in (0, 1)]
    calls.append(call(2, "call_2", "apply_patch", '{"input": "*** a"}')["tool_calls"][0])
    calls.append(call(3, "call_3", "mcp__docs__search", "{}")["tool_calls"][0])
    chat_message = {"reasoning_content": "Hm.", "content": "Looking.", "tool_calls": calls}
    stream = [
        *(chunk({key: value}) for key, value in chat_message.items()),
        chunk({}, "tool_calls"),
        chunk(choices=[], usage=USAGE),
    ]

    streamed = accumulated(translated(stream, FULL))
    created = client(response.translate(whole(chat_message, "tool_calls"), context_of(FULL))).responses.create(**HI)

    assert streamed.model_dump(exclude_none=True) == created.model_dump(exclude_none=True)
    kinds = ["reasoning", "message", "function_call", "function_call", "custom_tool_call", "function_call"]
    assert [item.type for item in created.output] == kinds
    assert created.output[4].input == "*** a"
    assert (created.output[5].name, created.output[5].namespace) == ("search", "mcp__docs__")


def test_response_repeats_the_requests_parameters():
    """In the SDK's types, validated strictly. What the gateway cannot do is reported as not done."""
    body = response.translate(whole({"content": "{}"}), context_of(FULL))
    parsed = Response.model_validate_json(body, strict=True)

    assert (parsed.instructions, parsed.metadata, parsed.user) == ("be nice", {"a": "b"}, "u")
    assert (parsed.temperature, parsed.top_p, parsed.max_output_tokens, parsed.max_tool_calls) == (0.5, 1, 100, 3)
    assert (parsed.safety_identifier, parsed.prompt_cache_key) == ("s", "p")
    assert (parsed.text.format.type, parsed.text.format.name, parsed.text.verbosity) == ("json_schema", "city", "low")
    assert parsed.tool_choice.name == "weather"
    assert [tool.type for tool in parsed.tools] == ["function", "function", "custom", "namespace", "function"]
    assert (parsed.tools[4].parameters, parsed.tools[4].strict) == (WEATHER, True)
    assert (parsed.reasoning.effort, parsed.reasoning.summary) == ("low", None)
    assert (parsed.truncation, parsed.background, parsed.previous_response_id) == ("disabled", False, None)
    assert json.loads(body)["store"] is False


def test_sdk_parses_structured_output():
    """`responses.parse` and its stream, with a pydantic model."""

    class City(pydantic.BaseModel):
        name: str

    chat_message = {"content": '{"name": "Tbilisi"}'}
    parsed = client(response.translate(whole(chat_message), context_of())).responses.parse(**HI, text_format=City)
    streamed = accumulated(translated([chunk(chat_message), chunk({}, "stop")]), text_format=City)

    assert parsed.output_parsed == streamed.output_parsed == City(name="Tbilisi")


def test_sdk_output_sent_back_becomes_the_next_prompt():
    """The round trip from an answer through the history into the next request."""
    chat_message = {
        "reasoning_content": "Hm.",
        "content": "Looking.",
        "tool_calls": call(0, "call_0", "now", "{}")["tool_calls"],
    }
    sdk = client(response.translate(whole(chat_message, "tool_calls"), context_of()))
    first = sdk.responses.create(**HI)
    history = [{"role": "user", "content": "hi"}, *first.output]
    history.append({"type": "function_call_output", "call_id": "call_0", "output": "noon"})
    sdk.responses.create(model="m", input=history)
    backend = request.Backend(reasoning_content=True)

    sent = json.loads(request.translate(sdk.sent[1]).encode("m", backend))
    assert sent["messages"] == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "noon"},
    ]


@pytest.mark.parametrize("begun", [False, True])
def test_sdk_raises_on_an_error_in_the_stream(begun):
    """After half of an answer or before any event, with either way of reading a stream."""
    translator = ResponsesStream(context_of())
    stream = sse.KEEP_ALIVE + (translator.feed(chunk({"content": "half"})) if begun else b"")
    stream += translator.fail(BROKE_OFF)

    with pytest.raises(openai.APIError, match="the neuron broke off"):
        accumulated(stream)
    with pytest.raises(openai.APIError, match="the neuron broke off") as raised:
        list(client(stream, content_type="text/event-stream").responses.create(**HI, stream=True))
    assert raised.value.code == "upstream_connection_error"


@pytest.mark.parametrize(
    "error",
    [BROKE_OFF, errors.BadRequest("no"), errors.Overloaded("full"), errors.DeadlineExceeded("late", param="idle")],
)
def test_error_events_have_the_sdks_types(error):
    """`error` and `response.failed`."""
    translator = ResponsesStream(context_of())
    translator.feed(chunk({"content": "half"}))
    for event in events(translator.fail(error)):
        EVENT.validate_json(json.dumps(event), strict=True)


def test_sdk_reads_calls_of_client_run_tools():
    """In the SDK's types for these items."""
    kinds = ("shell", "local_shell", "apply_patch")
    client_tools = {kind: ClientTool(kind, kind=kind) for kind in kinds}
    translator = ResponsesStream(
        ResponsesContext(
            "r", "m", request_fields=context_of().request_fields, client_tools=client_tools, secret_key=bytes(32)
        )
    )
    patch = '{"type": "create_file", "path": "a", "diff": "+x"}'
    datas = [
        chunk({"reasoning_content": "Hm."}),
        chunk(call(0, "c0", "shell", '{"commands": ["ls"]}')),
        chunk(call(1, "c1", "local_shell", '{"command": ["ls"]}')),
        chunk(call(2, "c2", "apply_patch", patch)),
        chunk({}, "stop"),
    ]
    stream = b"".join(map(translator.feed, datas)) + translator.finish()
    for event in events(stream):
        EVENT.validate_json(json.dumps(event), strict=True)

    thought, *calls = accumulated(stream).output
    assert thought.encrypted_content
    assert [item.type for item in calls] == ["shell_call", "local_shell_call", "apply_patch_call"]
    assert calls[0].action.commands == calls[1].action.command == ["ls"]
    assert (calls[2].operation.type, calls[2].operation.diff) == ("create_file", "+x")


def test_sdk_reads_calls_of_custom_tools_and_namespaces():
    """In the SDK's types, under the client's own names."""
    client_tools = {"patch": ClientTool("patch", kind="custom"), "a__f": ClientTool("f", "a")}
    translator = ResponsesStream(
        ResponsesContext("r", "m", request_fields=context_of().request_fields, client_tools=client_tools)
    )
    datas = [chunk(call(0, "c0", "patch", '{"input": "x"}')), chunk(call(1, "c1", "a__f", "{}")), chunk({}, "stop")]
    stream = b"".join(map(translator.feed, datas)) + translator.finish()
    for event in events(stream):
        EVENT.validate_json(json.dumps(event), strict=True)

    output = accumulated(stream).output
    assert [(item.type, item.call_id) for item in output] == [("custom_tool_call", "c0"), ("function_call", "c1")]
