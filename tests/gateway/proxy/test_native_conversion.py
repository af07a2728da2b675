"""An engine that speaks the client's dialect in another form than it was asked for: the client gets its form."""

import dataclasses
import json

import pytest
from fakes.answer_forms import CHAT, ENGINE, EXPECTED, NONSENSE, REQUESTS, SETTINGS, WHOLE, content
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import chunked, read_request, with_length

from catalogue.models import Alias
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.native.message_form import message_stream
from gateway.dialects.native.response_form import response_stream
from gateway.dialects.responses import response as responses_response
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.fleet.reports import ModelReport, NodeReport

# Engines that speak the client's dialect...


SPOKEN = ("openai", "anthropic", "responses")
MESSAGE = messages_response.translate(WHOLE, MessagesContext("r", "m", show_thinking=True))
RESPONSE = responses_response.translate(WHOLE, ResponsesContext("r", "m"))
NATIVE = {
    "/v1/messages": (MESSAGE, message_stream(MESSAGE)),
    "/v1/responses": (RESPONSE, response_stream(RESPONSE)),
}


async def asked_natively(nursery, path, reply, *, stream, seen=None, alias=None, **traits):
    """The engine speaks all dialects: by the neuron's settings, or as it reports for the model."""

    async def engine(connection):
        request = await read_request(connection)
        if seen is not None:
            seen.append(request)
        await connection.send_all(reply)

    spoken = {} if traits.pop("reported", False) else {"dialects": SPOKEN, **ENGINE}
    gateway = InMemoryGateway(nursery, {"beast": engine}, SETTINGS, traits={**spoken, **traits}, alias=alias)
    if not spoken:
        report = ModelReport(SMALL, "loaded", url="http://beast:13131", engine="vllm", dialects=SPOKEN)
        gateway.fleet.answered("beast", NodeReport((report,), devices=()))
    answer = await gateway.client().ask({**REQUESTS[path], "stream": stream}, path)
    await gateway.idle()
    return answer


@pytest.mark.parametrize("reported", [False, True], ids=["configured", "reported"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole asked", "stream asked"])
@pytest.mark.parametrize("form", ["json", "json labelled as a stream", "stream", "stream labelled as json"])
@pytest.mark.parametrize("path", NATIVE)
async def test_native_answer_has_the_form_that_the_client_asked_for(
    autojump_clock, nursery, path, form, stream, reported
):
    """Converted if it has the other one, and byte for byte as it is if it has not."""
    whole_answer, streamed = NATIVE[path]
    kind = "text/event-stream" if form in {"stream", "json labelled as a stream"} else "application/json"
    body = streamed if form.startswith("stream") else whole_answer
    seen = []
    answer = await asked_natively(
        nursery, path, with_length(body, kind=kind), stream=stream, seen=seen, reported=reported
    )

    assert seen[0].startswith(f"POST {path} ".encode())
    assert answer.status == 200
    assert answer.headers["content-type"] == ("text/event-stream" if stream else "application/json")
    assert content(path, answer) == EXPECTED
    if form.startswith("stream") is stream:
        assert answer.body == body


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("path", NATIVE)
async def test_native_answer_that_cannot_be_converted_to_a_stream_is_a_502(autojump_clock, nursery, path, name):
    """An SDK would see no event and no error."""
    answer = await asked_natively(nursery, path, NONSENSE[name], stream=True)

    assert answer.status == 502
    assert "neither an event stream nor a" in answer.error["message"]


@pytest.mark.parametrize("path", NATIVE)
async def test_native_stream_without_an_end_ends_in_an_error(autojump_clock, nursery, path):
    """In the client's dialect; for a client that asked for no stream it is a 502."""
    _, streamed = NATIVE[path]
    cut = streamed[: streamed.index(b"lisi") + 40].rpartition(b"event: ")[0]
    answer = await asked_natively(nursery, path, chunked(cut), stream=True)
    assembled = await asked_natively(nursery, path, chunked(cut), stream=False)

    assert answer.status == 200
    assert answer.body.startswith(cut)
    assert b"broke off without an end" in answer.body.removeprefix(cut)
    assert assembled.status == 502


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", NATIVE)
async def test_converted_native_answer_carries_the_alias(autojump_clock, nursery, path, stream):
    """`echo = "alias"` holds for it, too."""
    alias = dataclasses.replace(Alias.plain("helexa/small", SMALL), echo="alias")
    body = NATIVE[path][0 if stream else 1]
    reply = with_length(body, kind="application/json" if stream else "text/event-stream")
    answer = await asked_natively(nursery, path, reply, stream=stream, alias=alias)

    assert b'"model":"helexa/small"' in answer.body


@pytest.mark.parametrize("path", NATIVE)
async def test_native_plain_request_is_asked_for_as_a_stream(autojump_clock, nursery, path):
    """Of an engine that stops only streams when its client leaves."""
    seen = []
    reply = chunked(NATIVE[path][1])
    answer = await asked_natively(nursery, path, reply, stream=False, seen=seen, engine="transformers")

    assert json.loads(seen[0].partition(b"\r\n\r\n")[2])["stream"] is True
    assert content(path, answer) == EXPECTED


async def test_tokens_are_never_asked_for_as_a_stream(autojump_clock, nursery):
    """An engine that counts gets the request as it is."""
    seen = []
    path = "/v1/messages/count_tokens"
    REQUESTS[path] = {**CHAT}
    reply = with_length(b'{"input_tokens":5}')
    try:
        answer = await asked_natively(nursery, path, reply, stream=False, seen=seen, engine="transformers")
    finally:
        del REQUESTS[path]

    assert json.loads(answer.body) == {"input_tokens": 5}
    assert b'"stream":true' not in seen[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", NATIVE)
async def test_native_answers_of_neurons_pass_byte_for_byte(autojump_clock, nursery, path, stream):
    """Whatever their form."""
    for body, kind in zip(NATIVE[path], ("application/json", "text/event-stream"), strict=True):
        answer = await asked_natively(nursery, path, with_length(body, kind=kind), stream=stream, kind="neuron")

        assert (answer.status, answer.body) == (200, body)
