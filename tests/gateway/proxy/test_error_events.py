"""Errors that a neuron reports inside a 200: clients get their text, and they count as under their own status."""

import dataclasses
import json

import pytest
import trio
from fakes.chat_completions import chunk
from fakes.in_memory import BODY, SMALL, InMemoryGateway
from fakes.scripted import DONE, answering, chunked, delta, read_request, with_length
from structlog.testing import capture_logs

from catalogue.models import Alias
from gateway.config.settings import RetrySettings, Settings

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
REQUESTS = {CHAT: BODY, MESSAGES: {**BODY, "max_tokens": 9}, RESPONSES: {"model": "helexa/small", "input": "hi"}}
TEXT = "CUDA out of memory"
FORMS = {
    "object": b'data: {"error":{"message":"CUDA out of memory","code":500}}\n\n',
    "text": b'data: {"error":"CUDA out of memory"}\n\n',
    "flat": b'data: {"object":"error","message":"CUDA out of memory","type":"InternalServerError","code":500}\n\n',
    "flat without a code": b'data: {"object":"error","message":"CUDA out of memory"}\n\n',
    "typed": b'data: {"type":"error","message":"CUDA out of memory"}\n\n',
    "named": b'data: {"type":"InternalServerError","message":"CUDA out of memory"}\n\n',
    "status": b'data: {"status_code":500,"message":"CUDA out of memory"}\n\n',
    "detail": b'data: {"detail":"CUDA out of memory"}\n\n',
    "detail, empty choices": b'data: {"choices":[],"detail":"CUDA out of memory"}\n\n',
    "event": b'event: error\ndata: {"message":"CUDA out of memory"}\n\n',
    "event with text": b"event: error\ndata: CUDA out of memory\n\n",
}


def before(nursery, *events, settings=None, whole=None, **more):
    """A gateway in front of an engine that sends each event by itself."""

    async def engine(stream):
        await read_request(stream)
        if whole is not None:
            await stream.send_all(with_length(whole))
            return
        for number, event in enumerate(events):
            sent = chunked(event)
            head, _, body = sent.partition(b"\r\n\r\n")
            await stream.send_all(head + b"\r\n\r\n" if number == 0 else b"")
            await stream.send_all(body.removesuffix(b"0\r\n\r\n"))
            await trio.sleep(0.01)
        await stream.send_all(b"0\r\n\r\n")

    return InMemoryGateway(nursery, {"beast": engine}, settings, **more)


async def asked(gateway, path, *, stream=True):
    """The answer, and the log's event."""
    with capture_logs() as logs:
        answer = await gateway.client().ask({**REQUESTS[path], "stream": stream}, path)
        await gateway.idle()
    [event] = [log for log in logs if log["event"] == "request"]
    return answer, event


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_translated_stream_keeps_the_text_of_its_error(autojump_clock, nursery, path, form):
    """In every form in which engines write it; nothing follows."""
    answer, event = await asked(before(nursery, delta("Tbilisi"), FORMS[form], DONE), path)

    assert answer.status == 200
    assert b"Tbilisi" in answer.body
    assert TEXT.encode() in answer.body
    assert not any(end in answer.body for end in (b"message_stop", b"response.completed"))
    assert (event["outcome"], event["message"]) == ("error", TEXT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_translated_stream_that_begins_with_an_error_is_an_error_response(autojump_clock, nursery, path, form):
    """Nothing was sent yet; with the text as well."""
    settings = Settings(retries=RetrySettings(attempts=0))
    answer, _ = await asked(before(nursery, FORMS[form], settings=settings), path)

    assert answer.status >= 500
    assert TEXT in answer.error["message"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", REQUESTS)
async def test_stream_that_is_assembled_keeps_the_text_of_its_error(autojump_clock, nursery, path, form):
    """The client asked for a whole answer."""
    settings = Settings(retries=RetrySettings(attempts=0))
    gateway = before(nursery, delta("x"), FORMS[form], settings=settings, traits={"kind": "openai"})
    answer, _ = await asked(gateway, path, stream=False)

    assert answer.status == 502
    assert TEXT in answer.error["message"]


@pytest.mark.parametrize("form", [form for form in FORMS if "event" not in form])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@pytest.mark.parametrize("stream", [True, False])
async def test_whole_error_under_a_200_keeps_its_text(autojump_clock, nursery, path, form, stream):
    """Where a completion was expected."""
    whole = FORMS[form][len(b"data: ") :].strip()
    gateway = before(nursery, whole=whole, settings=Settings(retries=RetrySettings(attempts=0)))
    answer, _ = await asked(gateway, path, stream=stream)

    assert answer.status == 502
    assert TEXT in answer.error["message"]


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"message":"still loading"}\n\n',
        b'data: {"type":"ping"}\n\n',
        b'data: {"object":"chat.completion.chunk","choices":[],"message":"x"}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"s"}}],"detail":"x","code":1,"message":"y"}\n\n',
    ],
)
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_other_events_are_no_errors(autojump_clock, nursery, path, event):
    """Engines send progress and more fields than chat completions has."""
    end = b"data: %b\n\n" % chunk({}, "stop")
    _, logged = await asked(before(nursery, delta("Tbili"), event, delta("si"), end, DONE), path)

    assert logged["outcome"] == "ok"


# Streams that pass through...


PASSED = {
    **dict.fromkeys(FORMS, "upstream_connection_error"),
    "overloaded": "service_unavailable",
    "context": "context_length_exceeded",
    "bad request": "bad_request",
}
EVENTS = {
    **FORMS,
    "overloaded": b'data: {"error":{"message":"busy","code":503}}\n\n',
    "context": b'data: {"error":{"message":"prompt is too long","code":400}}\n\n',
    "bad request": b'data: {"error":{"message":"no","code":400}}\n\n',
}


@pytest.mark.parametrize("last", [b"", DONE], ids=["", "done"])
@pytest.mark.parametrize("form", EVENTS)
async def test_error_event_that_passes_through_is_an_error_in_metrics(autojump_clock, nursery, form, last):
    """With its code; its bytes are the neuron's, and nothing is added."""
    body = delta("Tbilisi") + EVENTS[form] + last
    gateway = before(nursery, body)
    answer, event = await asked(gateway, CHAT)

    assert (answer.status, answer.body) == (200, body)
    assert event["outcome"] == "error"
    samples = gateway.metrics.expose().decode()
    assert f'cortex_request_errors_total{{code="{PASSED[form]}",model="{SMALL}",node="beast"}} 1.0' in samples


NATIVE = {
    MESSAGES: b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n',
    RESPONSES: b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"server_error",'
    b'"message":"busy"}}}\n\n',
}


@pytest.mark.parametrize("path", NATIVE)
async def test_error_event_of_a_dialect_that_the_neuron_speaks_is_one_too(autojump_clock, nursery, path):
    """In Anthropic's form, and as a failed response."""
    traits = {"dialects": ("openai", "anthropic", "responses")}
    answer, event = await asked(before(nursery, NATIVE[path], traits=traits), path)

    assert (answer.status, answer.body) == (200, NATIVE[path])
    assert (event["outcome"], event["message"]) == ("error", "busy")


@pytest.mark.parametrize("traits", [{}, {"kind": "openai"}, {"kind": "openai", "engine": "vllm"}], ids=str)
@pytest.mark.parametrize("echo", ["model", "alias"])
async def test_every_way_through_counts_the_error(autojump_clock, nursery, traits, echo):
    """Whatever of the stream is changed on its way."""
    alias = dataclasses.replace(Alias.plain("helexa/small", SMALL), echo=echo)
    answer, event = await asked(before(nursery, delta("Tbilisi") + FORMS["flat"], traits=traits, alias=alias), CHAT)

    assert answer.body.endswith(FORMS["flat"])
    assert event["outcome"] == "error"


def breaker_of(gateway):
    return gateway.fleet.nodes["beast"].models[SMALL].breaker


@pytest.mark.parametrize(("form", "is_forgiven"), [("object", False), ("overloaded", False), ("bad request", True)])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_error_event_counts_for_health_as_its_status_would(autojump_clock, nursery, path, form, is_forgiven):
    """A refusal shows that the neuron is up; an answer that failed does not forgive earlier failures."""
    gateway = before(nursery, delta("Tbilisi"), EVENTS[form])
    gateway.fleet.at_fault("beast", SMALL, "it broke off")
    await asked(gateway, path)

    assert breaker_of(gateway).clean is is_forgiven
    assert not gateway.fleet.nodes["beast"].models[SMALL].proven


async def test_overload_reported_in_a_whole_answer_is_tried_elsewhere(autojump_clock, nursery):
    """As a 503 is."""
    busy = answering(with_length(b'{"error":{"message":"busy","code":503}}'))
    good = answering(
        with_length(json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}).encode())
    )
    gateway = InMemoryGateway(nursery, {"a": busy, "b": good})
    answers = [await gateway.client().ask(REQUESTS[MESSAGES], MESSAGES) for _ in range(2)]

    assert [answer.status for answer in answers] == [200, 200]
