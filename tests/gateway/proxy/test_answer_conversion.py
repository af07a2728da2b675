"""A neuron that answers in another form than it was asked for: the client gets the form that it asked for."""

import dataclasses
import json

import pytest
import trio
from fakes.answer_forms import CALLS, CHAT, ENGINE, EXPECTED, NONSENSE, REQUESTS, SETTINGS, WHOLE, content
from fakes.chat_completions import USAGE, chunk, whole
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, answering, chunked, read_request, with_length
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Alias


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
