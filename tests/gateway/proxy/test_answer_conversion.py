"""A neuron that answers in another form than it was asked for: the client gets the form that it asked for."""

import dataclasses
import json

import pytest
import trio
from fakes.chat_completions import USAGE, chunk, whole
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, answering, chunked, read_request, with_length
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Alias
from gateway.config.settings import RetrySettings, Settings
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.native.message_form import message_stream
from gateway.dialects.native.response_form import response_stream
from gateway.dialects.responses import response as responses_response
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.fleet.reports import ModelReport, NodeReport

SETTINGS = Settings(retries=RetrySettings(attempts=0))
ENGINE = {"kind": "openai"}
CHAT = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}
REQUESTS = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/v1/responses": {"model": "helexa/small", "input": "What is the capital of Georgia?"},
}
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"y":2}'}},
]
WHOLE = whole({"content": "Tbilisi", "reasoning_content": "hm", "tool_calls": CALLS}, "tool_calls")


def events_of(*datas):
    return b"".join(b"data: %b\n\n" % data for data in datas)


STREAM = events_of(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "hm"}),
    chunk({"content": "Tbi"}),
    chunk({"content": "lisi"}),
    *(chunk({"tool_calls": [{**call, "index": at}]}) for at, call in enumerate(CALLS)),
    chunk({}, "tool_calls"),
    chunk(choices=[], usage=USAGE),
    b"[DONE]",
)


async def asked(nursery, reply, path, *, stream, traits=ENGINE, alias=None):
    neurons = {"beast": answering(reply, then_close=True)}
    gateway = InMemoryGateway(nursery, neurons, SETTINGS, traits=traits, alias=alias)
    answer = await gateway.client().ask({**REQUESTS[path], "stream": stream}, path)
    await gateway.idle()
    return answer


def content(path, answer):
    """Text, reasoning and calls, of a whole answer or of a stream of any dialect."""
    if answer.headers["content-type"] == "application/json":
        return content_of_whole(path, json.loads(answer.body))
    datas = [line[len("data: ") :] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(data) for data in datas if data != "[DONE]"]
    if path == "/v1/chat/completions":
        assert datas[-1] == "[DONE]"
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
        return (
            "".join(delta.get("content") or "" for delta in deltas),
            "".join(delta.get("reasoning_content") or "" for delta in deltas),
            [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls],
        )
    if path == "/v1/responses":
        assert events[-1]["type"] == "response.completed"
        return content_of_whole(path, events[-1]["response"])
    assert events[-1]["type"] == "message_stop"
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    for event in events:
        if event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            for name in ("text", "thinking"):
                block[name] = block.get(name, "") + delta.get(name, "")
            block["input"] = (block.get("input") or "") + delta.get("partial_json", "")
    for block in blocks:
        block["input"] = json.loads(block["input"] or "{}")
    return content_of_whole(path, {"content": blocks})


def content_of_whole(path, answer):
    if path == "/v1/chat/completions":
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or ()
        return (
            message["content"],
            message.get("reasoning_content", ""),
            [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls],
        )
    if path == "/v1/responses":
        items = answer["output"]
        return (
            "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"]),
            "".join(part["text"] for item in items if item["type"] == "reasoning" for part in item["content"]),
            [(item["call_id"], item["name"], item["arguments"]) for item in items if item["type"] == "function_call"],
        )
    blocks = answer["content"]
    return (
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        [
            (block["id"], block["name"], json.dumps(block["input"], separators=(",", ":")))
            for block in blocks
            if block["type"] == "tool_use"
        ],
    )


EXPECTED = ("Tbilisi", "hm", [("c1", "f", '{"x":1}'), ("c2", "g", '{"y":2}')])
WHOLE_AS_EVENT = b"data: %b\n\n" % WHOLE.strip()
ANSWERS = {
    "json as the only event": chunked(WHOLE_AS_EVENT, DONE),
    "json as the only event, without an end": chunked(b": hello\n\n", WHOLE_AS_EVENT),
    "json as the only event, in pieces": chunked(WHOLE_AS_EVENT[:90], WHOLE_AS_EVENT[90:], DONE),
    "json": with_length(WHOLE),
    "json labelled as a stream": with_length(WHOLE, kind="text/event-stream"),
    "json, indented": with_length(b"\n " + json.dumps(json.loads(WHOLE), indent=1).encode()),
    "stream": chunked(STREAM),
    "stream labelled as json": with_length(STREAM, kind="application/json"),
    "stream labelled as text, with a comment first": chunked(b": hello\n\n", STREAM, kind="text/plain"),
    "stream after blank lines": chunked(b"\n", b"\n", STREAM, kind="application/json"),
    "stream in single bytes": chunked(*(STREAM[at : at + 1] for at in range(len(STREAM))), kind="application/json"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole asked", "stream asked"])
@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("path", REQUESTS)
async def test_client_gets_the_form_that_it_asked_for(autojump_clock, nursery, path, name, stream):
    """With all of the content, whatever the engine sent and called it."""
    if path == "/v1/messages":
        REQUESTS[path]["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    answer = await asked(nursery, ANSWERS[name], path, stream=stream)

    assert answer.status == 200
    if not (path == "/v1/chat/completions" and stream and name.startswith("stream")):
        assert answer.headers["content-type"] == ("text/event-stream" if stream else "application/json")
        assert content(path, answer) == EXPECTED


@pytest.mark.parametrize("path", REQUESTS)
async def test_usage_survives_the_conversion(autojump_clock, nursery, path):
    """Both ways."""
    assembled = json.loads((await asked(nursery, chunked(STREAM), path, stream=False)).body)["usage"]
    streamed = (await asked(nursery, with_length(WHOLE), path, stream=True)).body

    assert assembled.get("prompt_tokens", assembled.get("output_tokens")) in {40, 7}
    assert b"_tokens" in streamed


@pytest.mark.parametrize("engine", [None, "vllm"], ids=["plain", "asked for usage"])
@pytest.mark.parametrize("echo", ["model", "alias"])
async def test_long_answer_as_the_only_event_is_converted(autojump_clock, nursery, engine, echo):
    """However it arrives, with the model's name that the alias asks for; `[DONE]` comes once."""
    message = {"content": "Tbilisi " * 50_000}
    event = b"data: %b\n\n" % whole(message, "stop").strip()
    pieces = [event[at : at + 30_000] for at in range(0, len(event), 30_000)]
    alias = dataclasses.replace(Alias.plain("helexa/small", SMALL), echo=echo)
    traits = ENGINE if engine is None else {**ENGINE, "engine": engine}
    answer = await asked(
        nursery, chunked(*pieces, DONE), "/v1/chat/completions", stream=True, traits=traits, alias=alias
    )

    assert content("/v1/chat/completions", answer)[0] == message["content"]
    assert answer.body.count(b"[DONE]") == 1
    assert (b'"model":"helexa/small"' in answer.body) is (echo == "alias")


@pytest.mark.parametrize("reason", ["abort", "rate_limit"])
async def test_failed_answer_as_the_only_event_is_an_error_event(autojump_clock, nursery, reason):
    """As any event with such a reason."""
    event = b"data: %b\n\n" % whole({"content": "x"}, reason).strip()
    answer = await asked(nursery, chunked(event, DONE), "/v1/chat/completions", stream=True)

    assert answer.status in {502, 503}


async def test_fields_that_openai_does_not_have_are_kept(autojump_clock, nursery):
    """Log probabilities are joined, timings of the last chunk count, several choices stay apart."""
    datas = [
        {"object": "chat.completion.chunk", "choices": [{"index": 1, "delta": {"content": "B"}}]},
        {
            "choices": [
                {"index": 0, "delta": {"content": "A"}, "logprobs": {"content": [1]}},
                {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [2]}},
            ],
            "system_fingerprint": "fp",
        },
        {"choices": [{"index": at, "delta": {}, "finish_reason": "stop"} for at in (0, 1)], "timings": {"n": 2}},
    ]
    reply = chunked(events_of(*(json.dumps(data).encode() for data in datas), b"[DONE]"))

    answer = json.loads((await asked(nursery, reply, "/v1/chat/completions", stream=False)).body)

    assert (answer["object"], answer["system_fingerprint"], answer["timings"]) == ("chat.completion", "fp", {"n": 2})
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Aa", "B"]
    assert answer["choices"][0]["logprobs"] == {"content": [1, 2]}


NONSENSE = {
    "html": with_length(b"<html>", kind="text/html"),
    "html as json": with_length(b"<html>"),
    "empty": with_length(b""),
    "json of another kind": with_length(b'{"status":"ok"}'),
    "array": with_length(b"[1]"),
    "no choices": with_length(b'{"choices":[]}'),
    "cut json": with_length(WHOLE[:-9]),
    "cut json as a stream": with_length(WHOLE[:-9], kind="text/event-stream"),
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("path", REQUESTS)
async def test_what_cannot_be_converted_to_a_stream_is_a_502(autojump_clock, nursery, path, name):
    """An SDK would see no chunk and no error."""
    answer = await asked(nursery, NONSENSE[name], path, stream=True)

    assert answer.status == 502
    assert "neither an event stream nor a chat completion" in answer.error["message"]


ROLE_AND_TEXT = events_of(chunk({"role": "assistant", "content": ""}), chunk({"content": "Tbi"}))


@pytest.mark.parametrize("body", [ROLE_AND_TEXT, ROLE_AND_TEXT + b": ping\n\n"], ids=["text", "comment"])
@pytest.mark.parametrize("path", REQUESTS)
async def test_stream_that_stops_without_a_finish_reason_ends_in_an_error(autojump_clock, nursery, path, body):
    """Though its chunked body is complete: the engine's worker died, its HTTP server did not."""
    answer = await asked(nursery, chunked(body), path, stream=True)

    assert answer.status == 200
    assert b"Tbi" in answer.body
    assert b"broke off without an end" in answer.body
    assert not any(end in answer.body for end in (b"[DONE]", b"message_stop", b"response.completed"))


@pytest.mark.parametrize("reason", ["stop", "length", "strange"])
async def test_stream_of_a_pass_through_answer_may_lack_its_terminator(autojump_clock, nursery, reason):
    """Transformers serve sends none: its finish reason is the end."""
    body = ROLE_AND_TEXT + events_of(chunk({}, reason))

    answer = await asked(nursery, chunked(body), "/v1/chat/completions", stream=True)

    assert answer.body == body


@pytest.mark.parametrize("path", REQUESTS)
async def test_stream_without_any_event_is_a_502(autojump_clock, nursery, path):
    """An SDK would see no chunk and no error."""
    answer = await asked(nursery, chunked(), path, stream=True)

    assert answer.status == 502


BROKEN = {
    "no end": STREAM[: STREAM.index(b"tool_calls")],
    "not json": events_of(b"<html>"),
    "error": events_of(chunk({"content": "x"}), b'{"error":{"message":"out of memory"}}'),
    "failing reason": events_of(chunk({"content": "x"}), chunk({}, "abort"), b"[DONE]"),
    "no choice": events_of(b'{"usage":{}}', b"[DONE]"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("path", REQUESTS)
async def test_stream_that_is_no_whole_answer_is_a_502(autojump_clock, nursery, path, name):
    """A part is never passed as the whole."""
    answer = await asked(nursery, chunked(BROKEN[name]), path, stream=False)

    assert answer.status == 502


@pytest.mark.parametrize("reason", ["abort", "error", "network_error", "insufficient_system_resource"])
@pytest.mark.parametrize("labelled", ["text/event-stream", "application/json"])
async def test_failing_reason_of_an_engine_is_an_error_event(autojump_clock, nursery, reason, labelled):
    """In a stream that passes through; what came before keeps its bytes. Whole, it is an error response."""
    first, last = events_of(chunk({"content": "x"})), events_of(chunk({}, reason), b"[DONE]")

    async def engine(stream):
        await read_request(stream)
        reply = chunked(first, last, kind=labelled)
        await stream.send_all(reply[: -len(last) - 10])
        await trio.sleep(1)
        await stream.send_all(reply[-len(last) - 10 :])

    gateway = InMemoryGateway(nursery, {"beast": engine}, SETTINGS, traits=ENGINE)
    streamed = await gateway.client().ask({**CHAT, "stream": True})
    answer = await asked(nursery, with_length(whole({"content": "x"}, reason)), "/v1/chat/completions", stream=False)

    assert streamed.body.startswith(first)
    assert b'{"error":{' in streamed.body
    assert b"[DONE]" not in streamed.body
    assert answer.status in {502, 503}


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "eos", "sensitive", ""])
async def test_other_reasons_of_an_engine_pass(autojump_clock, nursery, reason):
    """Byte for byte."""
    body = events_of(chunk({"content": "x"}, ""), chunk({}, reason), b"[DONE]")

    assert (await asked(nursery, chunked(body), "/v1/chat/completions", stream=True)).body == body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["json", "stream", "stream labelled as json", "html", "html as json"])
async def test_answers_of_neurons_pass_byte_for_byte(autojump_clock, nursery, name, stream):
    """Whatever their form."""
    reply = {**ANSWERS, **NONSENSE}[name]

    answer = await asked(nursery, reply, "/v1/chat/completions", stream=stream, traits={})

    expected = WHOLE if name == "json" else STREAM if name.startswith("stream") else b"<html>"
    assert (answer.status, answer.body) == (200, expected)


# Streams on the gateway's own account...


class LlamaCpp:
    """An engine that notices only in a stream that its client has left."""

    def __init__(self):
        self.requests = []
        self.left = trio.Event()

    async def __call__(self, stream):
        request = await read_request(stream)
        self.requests.append(json.loads(request.partition(b"\r\n\r\n")[2]))
        if self.requests[-1].get("stream"):
            await stream.send_all(chunked(STREAM[: STREAM.index(b"lisi")], end=b""))
        if not await stream.receive_some():
            self.left.set()


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("engine", ["llamacpp", "transformers"])
async def test_plain_request_whose_client_leaves_frees_its_slot(autojump_clock, nursery, path, engine):
    """The engine is asked for a stream, and stops as soon as the client is gone."""
    llama = LlamaCpp()
    gateway = InMemoryGateway(nursery, {"beast": llama}, SETTINGS, traits={**ENGINE, "engine": engine})
    client = gateway.client()
    await client.send(REQUESTS[path], path)
    await wait_all_tasks_blocked()
    await client.leave()
    await llama.left.wait()
    await gateway.idle()

    assert llama.requests[0]["stream"] is True
    assert ("stream_options" in llama.requests[0]) is (engine == "llamacpp")


@pytest.mark.parametrize(
    "body", [CHAT, {**CHAT, "stream": False}, {**CHAT, "stream": None}, {**CHAT, "tools": [], "n": 1}]
)
async def test_plain_request_is_answered_whole(autojump_clock, nursery, body):
    """From the stream that was asked for on its account; every other field of the request stays."""
    seen = []

    async def engine(stream):
        seen.append(json.loads((await read_request(stream)).partition(b"\r\n\r\n")[2]))
        await stream.send_all(chunked(STREAM))

    gateway = InMemoryGateway(nursery, {"beast": engine}, SETTINGS, traits={**ENGINE, "engine": "llamacpp"})
    answer = await gateway.client().ask(json.dumps(body).encode())

    assert content("/v1/chat/completions", answer) == EXPECTED
    assert json.loads(answer.body)["usage"] == USAGE
    sent = {**seen[0], "model": body["model"]}
    assert sent == {**body, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"helexa/small","stream":false,"stream":false}',
        b'{"model":"helexa/small","stream_options":{"include_usage":true}}',
    ],
)
async def test_request_that_cannot_be_changed_with_certainty_passes(autojump_clock, nursery, body):
    """Its client's departure is noticed when the engine answers."""
    seen = []

    async def engine(stream):
        seen.append((await read_request(stream)).partition(b"\r\n\r\n")[2])
        await stream.send_all(with_length(WHOLE))

    gateway = InMemoryGateway(nursery, {"beast": engine}, SETTINGS, traits={**ENGINE, "engine": "llamacpp"})
    answer = await gateway.client().ask(body)

    assert answer.body == WHOLE
    assert b'"stream":true' not in seen[0]


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
