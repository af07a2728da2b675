"""The official `openai` SDK, unmodified, sync and async, against the gateway on the simulated fleet."""

import gc

import openai
import pytest
import trio
from fakes.patience import until
from fakes.running import LARGE, PROBE, SMALL, running_gateway
from openai import APIConnectionError, AsyncOpenAI, OpenAI

from gateway.sim.faults import Drop
from gateway.sim.fleet import neuron

# The SDK leaves its own async generators to the garbage collector when a stream is read to its end; not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collect_what_the_sdk_leaves():
    """Here, where it is forgiven, and not in whichever test comes next on this worker."""
    yield
    gc.collect()


EMBEDDER = "Qwen/Qwen3-Embedding-0.6B"


@pytest.fixture
async def running(tmp_path):
    simulated = neuron("beast", [24576, 24576], [SMALL, LARGE, EMBEDDER], speed=100)
    async with running_gateway(tmp_path, [simulated]) as gateway:
        yield gateway


def async_client(running):
    return AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)


async def in_thread(running, use):
    """The sync SDK, as a script would use it."""

    def script():
        with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            return use(client)

    return await trio.to_thread.run_sync(script)


async def test_models_are_listed_and_retrieved_aliases_beside_them(running):
    """The SDK quotes the slash of an id; both ways of writing it are the same model."""

    def use(client):
        return [model.id for model in client.models.list()], client.models.retrieve("helexa/small").id

    listed, retrieved = await in_thread(running, use)

    assert {SMALL, LARGE, "helexa/small", "helexa/large"} <= set(listed)
    assert "helexa/dead" not in listed
    assert retrieved == "helexa/small"


async def test_chat_answers_with_usage(running):
    """Sync, not streamed."""
    answer = await in_thread(
        running, lambda client: client.chat.completions.create(model="helexa/small", messages=PROBE)
    )

    assert "Tbilisi" in answer.choices[0].message.content
    assert answer.model == SMALL
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_stream_ends_with_the_usage_that_was_asked_for(running):
    """Sync and async read the same chunks."""
    wanted = {"model": "helexa/large", "messages": PROBE, "stream": True, "stream_options": {"include_usage": True}}
    sync_chunks = await in_thread(running, lambda client: list(client.chat.completions.create(**wanted)))
    async with async_client(running) as client:
        stream = await client.chat.completions.create(**wanted)
        async_chunks = [chunk async for chunk in stream]

    for chunks in (sync_chunks, async_chunks):
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert "Tbilisi" in text
        assert chunks[-1].usage.completion_tokens > 0
        assert {chunk.model for chunk in chunks} == {LARGE}


async def test_embeddings(running):
    """The SDK asks for base64 and decodes it."""
    async with async_client(running) as client:
        answer = await client.embeddings.create(model=EMBEDDER, input=["one", "two"])

    assert [item.index for item in answer.data] == [0, 1]
    assert sum(x * x for x in answer.data[0].embedding) == pytest.approx(1, abs=1e-3)


async def test_errors_are_the_sdks_typed_exceptions(running):
    """By status: what a client catches by name."""
    async with async_client(running) as client:
        with pytest.raises(openai.NotFoundError, match="not found") as not_found:
            await client.chat.completions.create(model="nobody/has-it", messages=PROBE)
        with pytest.raises(openai.BadRequestError, match="model"):
            await client.post("/chat/completions", body={"messages": PROBE}, cast_to=object)
        running.neurons[0].faults.add(Drop(after=3, how="rst", times=1))
        with pytest.raises(openai.APIError) as broken:
            async for _ in await client.chat.completions.create(model=SMALL, messages=PROBE, stream=True):
                pass

    assert not_found.value.code == "model_not_found"
    assert broken.value.code == "upstream_connection_error"


async def test_no_neuron_left_is_a_503(running):
    """And the SDK's InternalServerError."""
    await running.down()
    async with async_client(running) as client:
        with pytest.raises(openai.InternalServerError, match="no healthy nodes"):
            await client.chat.completions.create(model=SMALL, messages=PROBE)


async def test_abort_in_mid_stream_stops_the_neuron(running):
    """Closing the stream is how a user's Stop button looks from here."""
    running.neurons[0].speed = 2
    async with async_client(running) as client:
        stream = await client.chat.completions.create(model=SMALL, messages=PROBE, stream=True)
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        await stream.close()
        await until(lambda: running.neurons[0].cancelled)
        await until(lambda: not running.gateway.accounts.live)
    running.gateway.fleet.assert_idle()


async def test_twenty_streams_at_once_through_one_client(running):
    """Each whole."""
    texts = []

    async def one(client):
        stream = await client.chat.completions.create(model="helexa/small", messages=PROBE, stream=True)
        texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]))

    async with async_client(running) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one, client)

    assert len(texts) == 20
    assert all("Tbilisi" in text for text in texts)


async def test_unreachable_gateway_is_a_connection_error():
    """So that the errors above are known to be ours."""
    async with AsyncOpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(APIConnectionError):
            await client.models.list()
