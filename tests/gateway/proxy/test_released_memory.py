"""A request's body, and what was read from it, are freed when the request ends: without the garbage collector."""

import gc
import tracemalloc

import pytest
from fakes.chat_completions import chunk, whole
from fakes.in_memory import InMemoryGateway
from fakes.scripted import answering, chunked, read_request, with_length

from gateway.config.settings import DeadlineSettings, RetrySettings, Settings

TEXT = "word " * 100_000
REQUESTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}]},
    "/v1/messages": {
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a" * 40}] * 1_000 + [{"type": "text", "text": TEXT}]}
        ],
    },
    "/v1/responses": {"input": [{"role": "user", "content": "a" * 40}] * 1_000 + [{"role": "user", "content": TEXT}]},
}
FIRST = b"data: %b\n\n" % chunk({"content": "x"})


async def hangs(stream):
    await read_request(stream)
    await stream.send_all(chunked(FIRST, end=b""))
    await stream.receive_some()


REPLIES = {
    "answer": answering(with_length(whole({"content": "x"})), then_close=True),
    "refusal": answering(with_length(b'{"error":"no"}', status="400 Bad"), then_close=True),
    "failure": answering(with_length(b'{"error":"no"}', status="500 Oh"), then_close=True),
    "busy": answering(with_length(b'{"error":"no"}', status="503 Busy"), then_close=True),
    "nothing": answering(None),
    "nonsense": answering(b"nonsense\r\n\r\n", then_close=True),
    "not a completion": answering(with_length(b"<html>"), then_close=True),
}
STREAMS = {
    "stream": answering(chunked(FIRST, b"data: %b\n\ndata: [DONE]\n\n" % chunk({}, "stop")), then_close=True),
    "broken stream": answering(chunked(FIRST, end=b""), then_close=True),
    "error event": answering(chunked(FIRST, b'data: {"error":"no"}\n\n'), then_close=True),
    "silence": hangs,
}


@pytest.mark.parametrize("name", [*REPLIES, *STREAMS, "client leaves"])
@pytest.mark.parametrize("path", REQUESTS)
async def test_memory_of_a_request_is_freed_with_it(autojump_clock, nursery, path, name):
    """However it ends; a few kilobytes stay for its record."""
    settings = Settings(retries=RetrySettings(attempts=1), deadlines=DeadlineSettings(idle_seconds=5))
    neuron = {**REPLIES, **STREAMS, "client leaves": hangs}[name]
    gateway = InMemoryGateway(nursery, {"a": neuron, "b": neuron}, settings, traits={"kind": "openai"})
    body = {"model": "helexa/small", **REQUESTS[path], "stream": name not in REPLIES}

    async def exchange():
        client = gateway.client()
        await client.send(body, path)
        if name == "client leaves":
            await client.head()
            await client.leave()
        else:
            await client.answer()
        await gateway.idle()

    await exchange()  # what is made once, by the first request
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(2):
            await exchange()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()

    assert after - before < 300_000
