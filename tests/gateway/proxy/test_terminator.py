"""What comes after a stream's own terminator: nothing a client hears of, and no reason to call its answer broken."""

import contextlib
import dataclasses
import re

import pytest
import structlog
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, chunked, delta, read_request
from structlog.testing import capture_logs

from catalogue.models import Alias
from gateway.config.settings import RetrySettings, Settings
from gateway.proxy.client_watch import LAST_BYTES_S

WHOLE = [delta("Tbilisi"), DONE]
END = b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Loggers made while logs are captured must not outlive the capture."""
    yield
    structlog.reset_defaults()


class AfterDone:
    """A neuron that has said `[DONE]` and then does `what`; it serves the same connection again if that went well."""

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
    """As OpenAI's SDKs: no further than that."""
    await client.send(stream=True)
    _, headers = await client.head()
    got = b""
    while not got.endswith(DONE):
        got += await client.piece(headers)
    return got


async def test_client_that_hangs_up_on_the_terminator_has_its_answer(autojump_clock, nursery):
    """It is no disconnect, and the neuron's connection is kept for the next, as its last bytes were on their way."""
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


async def test_neuron_that_does_not_end_after_its_terminator_is_left_soon(autojump_clock, nursery):
    """Its client is gone, and nothing outlives a request by more than a second."""
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
async def test_terminator_is_the_last_word(autojump_clock, nursery, what, after_s):
    """A neuron that breaks off behind it, or never ends, has answered: `[DONE]` and an error event are never both."""
    _, gateway = a_gateway(nursery, what)
    with capture_logs() as logs:
        answer = await gateway.client().ask(stream=True)
        await gateway.idle()

    assert answer.body == b"".join(WHOLE)
    assert trio.current_time() == after_s
    assert [entry["outcome"] for entry in logs if entry["event"] == "request"] == ["ok"]
    assert gateway.upstream.statistics()["idle"] == 0
    assert gateway.fleet.nodes["beast"].misses == (1 if what is hangs else 0), "a strike only for what keeps us waiting"


CHAT = {"model": "helexa/small", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
TRANSLATED = [
    ("/v1/messages", {**CHAT, "max_tokens": 9}, None),
    ("/v1/responses", {"model": "helexa/small", "stream": True, "input": "Hello"}, None),
    ("/v1/chat/completions", CHAT, dataclasses.replace(Alias.plain("helexa/small", SMALL), echo="alias")),
]


async def ends(neuron, stream):
    await stream.send_all(END)


def without_what_varies(body):
    """Ids are made anew for each answer, and time goes by."""
    return re.sub(rb'"(id|item_id|created_at|completed_at)":("[^"]*"|[0-9.]+)', b"", body)


@pytest.mark.parametrize(("what", "after_s"), [(hangs_up, 0), (talks_nonsense, 0), (hangs, 300)])
@pytest.mark.parametrize(("path", "body", "alias"), TRANSLATED, ids=["messages", "responses", "echo"])
async def test_terminator_is_the_last_word_in_translation_too(
    autojump_clock, nursery, path, body, alias, what, after_s
):
    """The end that the client was told in its own dialect is neither followed by an error nor booked as one."""
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
