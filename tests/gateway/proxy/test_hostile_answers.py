"""Bytes that no correct neuron sends: passed through verbatim, or an error in the client's dialect; never a 500."""

import dataclasses
import json

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, answering, chunked, delta, with_length
from structlog.testing import capture_logs

from catalogue.models import Alias
from gateway.config.settings import RetrySettings, Settings
from gateway.telemetry.attempt_record import QUOTE_REMOVED
from gateway.telemetry.explain import explain_requests

pytestmark = pytest.mark.usefixtures("fresh_loggers")

SETTINGS = Settings(retries=RetrySettings(attempts=0))
CHAT = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}
REQUESTS = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/v1/responses": {"model": "helexa/small", "input": "What is the capital of Georgia?"},
}
TRANSLATED = ["/v1/messages", "/v1/responses"]


async def asked(nursery, reply, path, *, stream=False, alias=None):
    gateway = InMemoryGateway(nursery, {"beast": answering(reply, then_close=True)}, SETTINGS, alias=alias)
    answer = await gateway.client().ask({**REQUESTS[path], "stream": stream}, path)
    await gateway.idle()
    return answer


NOT_UTF8 = [
    b'{"choices":[{"message":{"content":"\xff"},"finish_reason":"stop"}]}',
    b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"\xff":1}}',
    b'{"choices":[{"message":{"\xc3\x28":"x"}}],"\xff":1}',
]
DEEP = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"a":' + b"[" * 100_000


@pytest.mark.parametrize("body", [*NOT_UTF8, DEEP], ids=["content", "usage", "key", "deep"])
@pytest.mark.parametrize("echo", [False, True])
async def test_whole_answer_passes_verbatim(autojump_clock, nursery, body, echo):
    """Metering and renaming find nothing in it."""
    alias = dataclasses.replace(Alias.plain("helexa/small", SMALL), echo="alias") if echo else None

    answer = await asked(nursery, with_length(body), "/v1/chat/completions", alias=alias)

    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize("body", [*NOT_UTF8, DEEP], ids=["content", "usage", "key", "deep"])
@pytest.mark.parametrize("path", TRANSLATED)
async def test_translated_whole_answer_is_a_502(autojump_clock, nursery, body, path):
    """What the client would get is not what the model said."""
    answer = await asked(nursery, with_length(body), path)

    assert answer.status == 502
    assert "not a chat completion" in answer.error["message"]


EVENTS = {
    "content": b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n',
    "usage": b'data: {"choices":[],"usage":{"\xff":1}}\n\n',
    "key": b'data: {"choices":[{"delta":{"\xc3\x28":"x"}}]}\n\n',
    "deep": b"data: " + b"[" * 100_000 + b"\n\n",
    "deep and unfinished": b"data: " + b"[" * 100_000,
    "deep in an object": b'data: {"usage":' + b'{"a":' * 100_000,
}


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("echo", [False, True])
async def test_stream_passes_verbatim(autojump_clock, nursery, name, echo):
    """An event that ends with the body and is not JSON is broken, so an error event follows it; others are passed."""
    alias = dataclasses.replace(Alias.plain("helexa/small", SMALL), echo="alias") if echo else None
    is_finished = EVENTS[name].endswith(b"\n\n")
    chunks = [delta("Tbilisi"), EVENTS[name], *([DONE] if is_finished else [])]

    answer = await asked(nursery, chunked(*chunks), "/v1/chat/completions", stream=True, alias=alias)

    assert answer.status == 200
    assert answer.body.startswith(delta("Tbilisi"))
    if is_finished:
        assert answer.body == b"".join(chunks)
    else:
        assert b"upstream_malformed_response" in answer.body
        assert DONE not in answer.body


@pytest.mark.parametrize("name", ["content", "deep", "deep and unfinished", "deep in an object"])
@pytest.mark.parametrize("path", TRANSLATED)
async def test_translated_stream_ends_in_an_error_event(autojump_clock, nursery, name, path):
    """After what was whole, and with no normal end; a 502 if the client has seen nothing yet."""
    answer = await asked(nursery, chunked(delta("Tbilisi"), EVENTS[name]), path, stream=True)

    if answer.status == 502:
        assert "invalid chat completion chunk" in answer.error["message"]
        return
    assert answer.status == 200
    assert b"Tbilisi" in answer.body
    assert b"event: error" in answer.body
    assert b"message_stop" not in answer.body
    assert b"response.completed" not in answer.body


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("missing", [1, 2])
async def test_stream_cut_inside_the_end_of_its_terminator_is_whole(autojump_clock, nursery, path, missing):
    """Everything that the client needs has come; no error event follows."""
    finish = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    reply = chunked(delta("Tbilisi"), finish, DONE[:-missing], end=b"")
    with capture_logs() as logs:
        answer = await asked(nursery, reply, path, stream=True)

    assert b'"error":{' not in answer.body
    if path == "/v1/chat/completions":
        assert answer.body == delta("Tbilisi") + finish + DONE[:-missing]
    else:
        assert b"message_stop" in answer.body or b"response.completed" in answer.body
    assert [entry["outcome"] for entry in logs if entry["event"] == "request"] == ["ok"]


@pytest.mark.parametrize("path", REQUESTS)
async def test_stream_cut_inside_its_terminator_is_an_error(autojump_clock, nursery, path):
    """`[DON` is no end."""
    answer = await asked(nursery, chunked(delta("Tbilisi"), DONE[:-4], end=b""), path, stream=True)

    assert b"error" in answer.body


OVERFLOWS = {
    "llama.cpp": {
        "error": {
            "code": 400,
            "message": "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 9000,
            "n_ctx": 4096,
        }
    },
    "older llama.cpp": {
        "error": {
            "code": 400,
            "message": "the request exceeds the available context size. try increasing the context size",
            "type": "invalid_request_error",
        }
    },
    "vLLM": {
        "object": "error",
        "message": "This model's maximum context length is 4096 tokens. However, your request has 9000 input tokens.",
        "type": "BadRequestError",
        "code": 400,
    },
    "vLLM, long": {
        "error": {
            "message": "The decoder prompt (length 9000) is longer than the maximum model length of 4096.",
            "type": "BadRequestError",
            "code": 400,
        }
    },
    "SGLang": {
        "object": "error",
        "message": "The input (9000 tokens) is longer than the model's context length (4096 tokens).",
        "type": "BadRequestError",
        "code": 400,
    },
    "TabbyAPI": {"detail": "Prompt length 9000 is greater than max_seq_len 4096"},
    "flat": {"error": "prompt is too long: 9000 tokens > 4096 maximum"},
    "OpenAI": {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}},
}


@pytest.mark.parametrize("engine", OVERFLOWS)
@pytest.mark.parametrize("status", ["400 Bad", "500 Oh"])
async def test_prompt_that_is_too_long_is_told_in_the_words_of_each_dialect(autojump_clock, nursery, engine, status):
    """Coding agents compact a conversation on the code, or on the words."""
    text = OVERFLOWS[engine]
    body = json.dumps(text).encode()

    chat = await asked(nursery, with_length(body, status=status), "/v1/chat/completions")
    messages = await asked(nursery, with_length(body, status=status), "/v1/messages")
    responses = await asked(nursery, with_length(body, status=status), "/v1/responses")

    assert chat.status == messages.status == responses.status == int(status[:3])
    assert engine == "flat" or chat.body == body
    assert messages.error["message"].startswith("prompt is too long")
    assert responses.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("engine", OVERFLOWS)
async def test_prompt_that_is_too_long_is_told_inside_a_stream(autojump_clock, nursery, engine):
    """Engines that stream their answer's errors."""
    text = OVERFLOWS[engine]
    event = b"data: " + json.dumps({"error": text.get("error", text)}).encode() + b"\n\n"

    messages = await asked(nursery, chunked(delta("x"), event), "/v1/messages", stream=True)
    responses = await asked(nursery, chunked(delta("x"), event), "/v1/responses", stream=True)

    assert b"prompt is too long" in messages.body
    assert b'"code":"context_length_exceeded"' in responses.body


@pytest.mark.parametrize(
    "text",
    ["temperature must be at most 2", "unknown parameter: context_shift", "the context is missing", "n too large"],
)
async def test_other_refusals_are_not_about_the_prompts_length(autojump_clock, nursery, text):
    """An agent would compact in vain."""
    body = json.dumps({"error": {"message": text, "type": "invalid_request_error"}}).encode()

    assert (await asked(nursery, with_length(body, status="400 Bad"), "/v1/messages")).error["message"] == text
    assert (await asked(nursery, with_length(body, status="400 Bad"), "/v1/responses")).body == body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("status", ["400 Bad", "422 No", "500 Oh", "200 OK"])
@pytest.mark.parametrize(
    ("text", "is_quote"),
    [
        ("invalid: What is the capital of Georgia?", True),
        ("bad input near 'is the capital of Geor'... at 12", True),
        ("no such parameter", False),
    ],
)
async def test_error_that_quotes_the_prompt_is_not_kept(autojump_clock, nursery, text, is_quote, status, path, stream):
    """The client gets it; `cortex explain` keeps no prompts."""
    if status == "200 OK" and path == "/v1/chat/completions":
        return  # passes through unread
    body = json.dumps({"error": {"message": text, "type": "invalid_request_error", "code": 400}}).encode()
    reply = with_length(body, status=status)
    if status == "200 OK" and stream:
        reply = chunked(delta("x"), b"data: " + body + b"\n\n")
    gateway = InMemoryGateway(nursery, {"beast": answering(reply, then_close=True)}, SETTINGS)
    answer = await gateway.client().ask({**REQUESTS[path], "stream": stream}, path, headers=("x-request-id: mine",))
    await gateway.idle()

    kept = json.dumps(explain_requests("mine", gateway.request_log, lambda *_: [], trio.current_time()))
    assert text.encode() in answer.body
    assert (QUOTE_REMOVED in kept) is is_quote
    assert (text in kept) is not is_quote
