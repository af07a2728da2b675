"""Behind a stream's terminator nothing reaches the client, and nothing makes its answer an error."""

import contextlib
import dataclasses
import re

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, chunked, delta, read_request
from structlog.testing import capture_logs

from catalogue.models import Alias
from gateway.config.settings import RetrySettings, Settings
from gateway.proxy.response.client_watch import LAST_BYTES_S

pytestmark = pytest.mark.usefixtures("fresh_loggers")

WHOLE = [delta("Tbilisi"), DONE]
END = b"0\r\n\r\n"


class AfterDone:
    """A neuron that sends `[DONE]` and then does `what`; it serves the same connection again if that went well."""

    def __init__(self, what):
        self.what = what
        self.left_at = None
        self.go_on = trio.Event()

    async def __call__(self, stream):
        with contextlib.suppress(trio.ClosedResourceError):  # by `what`
            while await read_request(stream):
                await stream.send_all(chunked(*WHOLE, end=b""))
                await self.what(self, stream)


async def ends_when_told(neuron, stream):
    await neuron.go_on.wait()
    await stream.send_all(END)


async def hangs(neuron, stream):
    if not await stream.receive_some():
        neuron.left_at = trio.current_time()


async def hangs_up(neuron, stream):
    await stream.aclose()


async def talks_nonsense(neuron, stream):
    await stream.send_all(b"zz\r\n")


def a_gateway(nursery, what):
    neuron = AfterDone(what)
    return neuron, InMemoryGateway(nursery, {"beast": neuron}, Settings(retries=RetrySettings(attempts=0)))


async def read_to_done(client):
    """Read up to `[DONE]` and no further, as OpenAI's SDKs do."""
    await client.send(stream=True)
    _, headers = await client.head()
    got = b""
    while not got.endswith(DONE):
        got += await client.piece(headers)
    return got


async def test_disconnect_at_the_terminator_is_a_success(autojump_clock, nursery):
    """It is not counted as a disconnect, and the neuron's connection is used again."""
    neuron, gateway = a_gateway(nursery, ends_when_told)
    with capture_logs() as logs:
        client = gateway.client()
        assert await read_to_done(client) == b"".join(WHOLE)
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        neuron.go_on.set()
        await gateway.idle()

    assert [entry["outcome"] for entry in logs if entry["event"] == "request"] == ["ok"]
    assert "cortex_client_disconnects_total" not in gateway.metrics.expose().decode()
    assert gateway.upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 1, "reused": 0}


async def test_neuron_that_does_not_end_after_its_terminator_is_cut_off(autojump_clock, nursery):
    """After a second, once the client has left."""
    neuron, gateway = a_gateway(nursery, hangs)
    with capture_logs() as logs:
        client = gateway.client()
        await read_to_done(client)
        await client.stream.aclose()
        await trio.sleep(10)
        await gateway.idle()

    assert [entry["outcome"] for entry in logs if entry["event"] == "request"] == ["ok"]
    assert neuron.left_at == LAST_BYTES_S


@pytest.mark.parametrize(("what", "after_s"), [(hangs_up, 0), (talks_nonsense, 0), (hangs, 300)])
async def test_no_error_event_follows_the_terminator(autojump_clock, nursery, what, after_s):
    """A neuron that breaks off behind `[DONE]`, or never ends, has answered."""
    _, gateway = a_gateway(nursery, what)
    with capture_logs() as logs:
        answer = await gateway.client().ask(stream=True)
        await gateway.idle()

    assert answer.body == b"".join(WHOLE)
    assert trio.current_time() == after_s
    assert [entry["outcome"] for entry in logs if entry["event"] == "request"] == ["ok"]
    assert gateway.upstream.statistics()["idle"] == 0
    beast = gateway.fleet.nodes["beast"]
    failures = (beast.misses, len(beast.failing_models))
    assert failures == (0, 1 if what is hangs else 0), "a failure only for what keeps us waiting"


CHAT = {"model": "helexa/small", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
TRANSLATED = [
    ("/v1/messages", {**CHAT, "max_tokens": 9}, None),
    ("/v1/responses", {"model": "helexa/small", "stream": True, "input": "Hello"}, None),
    ("/v1/chat/completions", CHAT, dataclasses.replace(Alias.plain("helexa/small", SMALL), echo="alias")),
]


async def ends(neuron, stream):
    await stream.send_all(END)


def without_what_varies(body):
    """Without ids and times, which differ from answer to answer."""
    return re.sub(rb'"(id|item_id|created_at|completed_at)":("[^"]*"|[0-9.]+)', b"", body)


@pytest.mark.parametrize(("what", "after_s"), [(hangs_up, 0), (talks_nonsense, 0), (hangs, 300)])
@pytest.mark.parametrize(("path", "body", "alias"), TRANSLATED, ids=["messages", "responses", "echo"])
async def test_no_error_event_follows_the_terminator_of_a_translated_stream(
    autojump_clock, nursery, path, body, alias, what, after_s
):
    """Nor is the request logged as an error."""
    settings = Settings(retries=RetrySettings(attempts=0))
    orderly = InMemoryGateway(nursery, {"beast": AfterDone(ends)}, settings, alias=alias)
    expected = (await orderly.client().ask(body, path)).body
    await orderly.idle()
    gateway = InMemoryGateway(nursery, {"beast": AfterDone(what)}, settings, alias=alias)
    with capture_logs() as logs:
        answer = await gateway.client().ask(body, path)
        await gateway.idle()

    assert without_what_varies(answer.body) == without_what_varies(expected)
    assert trio.current_time() == after_s
    assert [entry["outcome"] for entry in logs if entry["event"] == "request"] == ["ok"]
