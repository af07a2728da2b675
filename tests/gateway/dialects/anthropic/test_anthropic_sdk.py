"""The gateway's output read by Anthropic's official SDK: stream accumulator, types and typed errors. No network."""

import json

import anthropic
import httpx2  # the SDK's HTTP client
import pytest
from fakes.chat_completions import USAGE, answers, call, chunk, whole
from hypothesis import given, settings

from gateway import errors
from gateway.config.engine_traits import Backend
from gateway.dialects.anthropic import errors as dialect_errors
from gateway.dialects.anthropic import request as dialect_request
from gateway.dialects.anthropic import response
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.anthropic.signature import is_genuine
from gateway.dialects.anthropic.stream import PING, MessagesStream

CONTEXT = MessagesContext("req-1", "lab/m", input_tokens=12)
HI = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def client(body, status=200, content_type="application/json"):
    """The SDK with a fixed response; `client.sent` has the bodies it sent."""
    sent = []

    def handle(request):
        sent.append(request.content)
        return httpx2.Response(status, content=body, headers={"content-type": content_type})

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    sdk = anthropic.Anthropic(api_key="k", base_url="http://gateway", max_retries=0, http_client=transport)
    sdk.sent = sent
    return sdk


def accumulated(stream):
    with client(stream, content_type="text/event-stream").messages.stream(**HI) as events:
        return events.get_final_message()


def translated(datas):
    translator = MessagesStream(CONTEXT)
    return b"".join(map(translator.feed, datas)) + translator.finish()


@settings(max_examples=40, deadline=None)
@given(answers())
def test_sdk_accumulates_any_stream_to_the_models_answer(answer):
    """Text, thinking, parsed input, usage and stop reason, for any mixture of chunks."""
    message = accumulated(translated(answer.datas))

    blocks = {
        kind: [block for block in message.content if block.type == kind] for kind in ("text", "thinking", "tool_use")
    }
    assert "".join("".join(block.text for block in blocks["text"]).split()) == "".join(answer.text.split())
    assert "".join(block.thinking for block in blocks["thinking"]) == answer.thought
    assert all(is_genuine(block.thinking, block.signature) for block in blocks["thinking"])
    assert [(block.name, block.input) for block in blocks["tool_use"]] == [
        (name, json.loads(arguments)) for name, arguments in answer.calls
    ]
    assert message.stop_reason is not None
    if answer.usage is not None:
        assert (message.usage.input_tokens, message.usage.output_tokens) == (10, 7)


def test_sdk_reads_the_same_message_whole_and_streamed():
    """Both translations of one answer are equal."""
    calls = [call(i, f"call_{i}", "read", json.dumps({"path": f"/{i}"}))["tool_calls"][0] for i in (0, 1)]
    chat_message = {"reasoning_content": "Hm.", "content": "Looking.", "tool_calls": calls}
    stream = [
        *(chunk({key: value}) for key, value in chat_message.items()),
        chunk({}, "tool_calls"),
        chunk(choices=[], usage=USAGE),
    ]

    streamed = accumulated(translated(stream))
    created = client(response.translate(whole(chat_message, "tool_calls"), CONTEXT)).messages.create(**HI)

    assert streamed.model_dump(exclude_none=True) == created.model_dump(exclude_none=True)
    assert [block.type for block in created.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert created.content[3].input == {"path": "/1"}


def test_sdk_message_sent_back_has_its_thinking():
    """The round trip from an answer through the history into the next request."""
    chat_message = {
        "reasoning_content": "Hm.",
        "content": "Looking.",
        "tool_calls": call(0, "call_0", "now", "{}")["tool_calls"],
    }
    sdk = client(response.translate(whole(chat_message, "tool_calls"), CONTEXT))
    message = sdk.messages.create(**HI)
    history = [*HI["messages"], message.to_param()]
    sdk.messages.create(**{**HI, "messages": history})
    backend = Backend(reasoning_content=True)

    sent = json.loads(dialect_request.translate(sdk.sent[1]).encode("m", backend))
    assert sent["messages"][1] == {
        "role": "assistant",
        "content": "Looking.",
        "reasoning_content": "Hm.",
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
    }


def test_sdk_raises_on_an_error_in_the_stream():
    """After half of an answer and pings."""
    translator = MessagesStream(CONTEXT)
    stream = PING + translator.feed(chunk({"content": "half"})) + PING
    stream += translator.fail(errors.UpstreamConnectionError("the neuron broke off"))

    with pytest.raises(anthropic.APIStatusError, match="the neuron broke off"):
        accumulated(stream)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (errors.BadRequest, anthropic.BadRequestError),
        (errors.InvalidApiKey, anthropic.AuthenticationError),
        (errors.ModelNotFound, anthropic.NotFoundError),
        (errors.ServiceUnavailable, anthropic.InternalServerError),
    ],
)
def test_sdk_raises_its_typed_errors(error, raised):
    """By status, with the gateway's message."""
    with pytest.raises(raised, match="what is wrong"):
        client(dialect_errors.body(error("what is wrong"), "r"), error.status).messages.create(**HI)


def test_sdk_reads_a_token_count():
    """As the result of `count_tokens`."""
    counted = client(response.token_count_body(42)).messages.count_tokens(model="m", messages=HI["messages"])
    assert counted.input_tokens == 42
