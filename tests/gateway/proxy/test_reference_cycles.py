"""Nothing of a request is left for the garbage collector, however the request ends."""

import gc
from collections import Counter
from contextlib import suppress
from types import FrameType, MethodType

import pytest
import trio
from fakes.chat_completions import chunk, whole
from fakes.forms import CONTENT_TYPE, a_form, a_part
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import answering, chunked, read_request, with_length
from fakes.uploads import TRANSCRIPTIONS

from catalogue.models import Alias, Hedge, Target
from gateway.config.settings import DeadlineSettings, RetrySettings, Settings

FIRST = b"data: %b\n\n" % chunk({"content": "x"})
LAST = b"data: %b\n\ndata: [DONE]\n\n" % chunk({}, "stop")


def after(seconds, answer):
    """A neuron that is silent first."""

    async def neuron(stream):
        await read_request(stream)
        await trio.sleep(seconds)
        await stream.send_all(answer)
        await stream.receive_some()

    return neuron


NEURONS = {
    "answer": answering(with_length(whole({"content": "x"}))),
    "stream": answering(chunked(FIRST, LAST)),
    "answer cut short": answering(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", then_close=True),
    "refusal": answering(with_length(b'{"error":"no"}', status="400 Bad")),
    "failure": answering(with_length(b'{"error":"no"}', status="500 Oh")),
    "nothing": answering(None),
    "nonsense": answering(b"nonsense\r\n\r\n", then_close=True),
    "broken stream": answering(chunked(FIRST, end=b""), then_close=True),
    "error event": answering(chunked(FIRST, b'data: {"error":"no"}\n\n')),
    "silence in a stream": after(0, chunked(FIRST, end=b"")),
    "late stream": after(20, chunked(FIRST, LAST)),
    "late failure": after(6, with_length(b'{"error":"no"}', status="500 Oh")),
}


@pytest.mark.parametrize(
    ("path", "stream"), [("/v1/chat/completions", False), ("/v1/chat/completions", True), ("/v1/messages", True)]
)
@pytest.mark.parametrize("name", NEURONS)
async def test_request_leaves_no_cycle(autojump_clock, nursery, name, path, stream):
    """With a retry after each failure, and an early 200 and keep-alives before a late answer."""
    gateway = gateway_for(nursery, NEURONS[name])

    assert await left_by(gateway, path=path, stream=stream) == {}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["answer", "failure", "late stream", "late failure"])
@pytest.mark.parametrize("policy", [{"hedge": Hedge(1, 100)}, {"fallback": ("other",)}, {"deadline_seconds": 2}])
async def test_request_by_an_alias_leaves_no_cycle(autojump_clock, nursery, policy, name, stream):
    """Two attempts at once, a fallback, a total deadline."""
    gateway = gateway_for(nursery, NEURONS[name], Alias("helexa/small", (Target(SMALL),), **policy))

    assert await left_by(gateway, stream=stream) == {}


@pytest.mark.parametrize("name", ["failure", "nothing"])
async def test_request_that_fails_on_every_neuron_leaves_no_cycle(autojump_clock, nursery, name):
    """There is no neuron for one more attempt: its error is the last failure's own."""
    assert await left_by(gateway_for(nursery, NEURONS[name], attempts=2)) == {}


async def test_upload_that_stalls_leaves_no_cycle(autojump_clock, nursery):
    """The task that reads it cancels the one that sends it to the neuron."""
    form = a_form(a_part(b"model", SMALL.encode()))[:-4]
    head = b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-type: %b\r\ncontent-length: 1000\r\n\r\n"
    sent = head % (TRANSCRIPTIONS.encode(), CONTENT_TYPE) + form
    assert await left_by(gateway_for(nursery, NEURONS["nothing"]), sent=sent) == {}


@pytest.mark.parametrize("body", [b"{", b'{"model":"unknown"}'])
async def test_refused_request_leaves_no_cycle(autojump_clock, nursery, body):
    """It is answered before it has a nursery, or in it."""
    assert await left_by(gateway_for(nursery, NEURONS["answer"]), body) == {}


async def test_client_that_leaves_leaves_no_cycle(autojump_clock, nursery):
    """The request is cancelled."""
    gateway = gateway_for(nursery, NEURONS["silence in a stream"])

    assert await left_by(gateway, stream=True, leave=True) == {}


def gateway_for(nursery, neuron, alias=None, *, attempts=1):
    """With two such neurons."""

    async def serve(stream):
        with suppress(trio.BrokenResourceError):  # the gateway has given up on it
            await neuron(stream)

    settings = Settings(retries=RetrySettings(attempts=attempts), deadlines=DeadlineSettings(idle_seconds=5))
    return InMemoryGateway(nursery, {"a": serve, "b": serve}, settings, alias=alias, traits={"kind": "openai"})


async def left_by(gateway, body=None, *, path="/v1/chat/completions", stream=False, leave=False, sent=None):
    """What a request leaves for the collector of the gateway's objects: types, methods and functions."""
    usual = {"model": "helexa/small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "stream": stream}

    async def ask():
        client = gateway.client()
        await (client.send(body or usual, path) if sent is None else client.stream.send_all(sent))
        if leave:
            await client.head()
            await client.leave()
        else:
            await client.answer()
        await gateway.idle()

    await ask()  # what is made once, by the first request
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await ask()
        gc.collect()
        return Counter(filter(None, map(gateways_name_of, gc.garbage)))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def gateways_name_of(thing):
    """None for what is not the gateway's."""
    if isinstance(thing, FrameType):
        return thing.f_code.co_qualname if "/gateway/" in thing.f_code.co_filename else None
    named = thing.__func__ if isinstance(thing, MethodType) else type(thing)
    return named.__qualname__ if named.__module__.startswith("gateway.") else None
