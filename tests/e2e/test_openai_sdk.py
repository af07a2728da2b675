"""The official `openai` SDK, unmodified, sync and async, against the gateway with simulated neurons."""

import gc

import openai
import pytest
import trio
from fakes.fleets import assert_idle
from fakes.patience import until
from fakes.running import LARGE, PROBE, SMALL, running_gateway
from openai import APIConnectionError, AsyncOpenAI, OpenAI

from neuron.simulated.faults import Drop, HttpError
from neuron.simulated.fleet import neuron

# The SDK leaves its own async generators to the garbage collector when a stream is read to its end; not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collect_sdk_generators():
    """In this test, where the warning is ignored, and not in a later test of this worker."""
    yield
    gc.collect()


EMBEDDER = "Qwen/Qwen3-Embedding-0.6B"


@pytest.fixture
async def running(tmp_path):
    simulated = neuron("beast", [24576, 24576], [SMALL, LARGE, EMBEDDER], speed=100)
    async with running_gateway(tmp_path, [simulated]) as gateway:
        yield gateway


class Sync:
    """The SDK as a script uses it, each call in its own thread."""

    def __init__(self, url):
        self._client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)

    async def call(self, use):
        """The result of a method."""
        return await trio.to_thread.run_sync(use, self._client)

    async def chunks(self, use):
        """All chunks of a stream."""
        return await trio.to_thread.run_sync(lambda: list(use(self._client)))

    async def abort(self, use, enough):
        """Close a stream at the first chunk that satisfies the condition."""

        def read():
            with use(self._client) as stream:
                next(chunk for chunk in stream if enough(chunk))

        await trio.to_thread.run_sync(read)

    async def aclose(self):
        self._client.close()
        await trio.lowlevel.checkpoint()


class Async:
    """The SDK as a server uses it."""

    def __init__(self, url):
        self._client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)

    async def call(self, use):
        return await use(self._client)

    async def chunks(self, use):
        return [chunk async for chunk in await use(self._client)]

    async def abort(self, use, enough):
        async with await use(self._client) as stream:
            async for chunk in stream:
                if enough(chunk):
                    break

    async def aclose(self):
        await self._client.close()


@pytest.fixture(params=[Sync, Async])
async def sdk(request, running):
    client = request.param(f"{running.url}/v1")
    yield client
    await client.aclose()


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_models_and_aliases_are_listed_and_retrieved(sdk):
    """The SDK quotes the slash of an id; both forms are the same model."""
    listed = await sdk.call(lambda client: client.models.list())
    retrieved = await sdk.call(lambda client: client.models.retrieve("helexa/small"))

    ids = {model.id for model in listed.data}
    assert {SMALL, LARGE, "helexa/small", "helexa/large"} <= ids
    assert "helexa/dead" not in ids
    assert retrieved.id == "helexa/small"


async def test_chat_answers_with_usage(sdk):
    """Not streamed."""
    answer = await sdk.call(lambda client: client.chat.completions.create(model="helexa/small", messages=PROBE))

    assert "Tbilisi" in answer.choices[0].message.content
    assert answer.model == SMALL
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_stream_ends_with_the_requested_usage(sdk):
    """In the last chunk, which has no choices."""
    wanted = {"model": "helexa/large", "messages": PROBE, "stream": True, "stream_options": {"include_usage": True}}
    chunks = await sdk.chunks(lambda client: client.chat.completions.create(**wanted))

    assert "Tbilisi" in text_of(chunks)
    assert chunks[-1].usage.completion_tokens > 0
    assert not chunks[-1].choices
    assert {chunk.model for chunk in chunks} == {LARGE}


async def test_embeddings(sdk):
    """The SDK asks for base64 and decodes it."""
    answer = await sdk.call(lambda client: client.embeddings.create(model=EMBEDDER, input=["one", "two"]))

    assert [item.index for item in answer.data] == [0, 1]
    assert sum(x * x for x in answer.data[0].embedding) == pytest.approx(1, abs=1e-3)


async def test_errors_are_the_sdks_typed_exceptions(sdk, running):
    """By status, because clients catch them by class."""
    with pytest.raises(openai.NotFoundError, match="not found") as not_found:
        await sdk.call(lambda client: client.chat.completions.create(model="nobody/has-it", messages=PROBE))
    with pytest.raises(openai.NotFoundError):
        await sdk.call(lambda client: client.models.retrieve("nobody/has-it"))
    with pytest.raises(openai.BadRequestError, match="model"):
        await sdk.call(lambda client: client.post("/chat/completions", body={"messages": PROBE}, cast_to=object))
    running.neurons[0].faults.add(HttpError(status=503, retry_after_s=7))
    with pytest.raises(openai.InternalServerError) as full:
        await sdk.call(lambda client: client.chat.completions.create(model=SMALL, messages=PROBE))

    assert not_found.value.code == "model_not_found"
    assert full.value.response.headers["retry-after"] == "7"


async def test_stream_that_breaks_raises(sdk, running):
    """The earlier chunks arrived; the SDK does not take the stream for complete."""
    running.neurons[0].faults.add(Drop(after=3, how="rst", times=1))
    with pytest.raises(openai.APIError) as broken:
        await sdk.chunks(lambda client: client.chat.completions.create(model=SMALL, messages=PROBE, stream=True))

    assert broken.value.code == "upstream_connection_error"


async def test_no_neuron_left_is_a_503(sdk, running):
    """And the SDK's InternalServerError."""
    await running.down()
    with pytest.raises(openai.InternalServerError, match="no healthy nodes"):
        await sdk.call(lambda client: client.chat.completions.create(model=SMALL, messages=PROBE))


async def test_abort_in_mid_stream_stops_the_neuron(sdk, running):
    """A user's Stop button closes the stream."""
    running.neurons[0].speed = 5
    long = [{"role": "user", "content": "Write 8000 words"}]  # 25 s of them
    await sdk.abort(
        lambda client: client.chat.completions.create(model=SMALL, messages=long, stream=True),
        lambda chunk: chunk.choices and chunk.choices[0].delta.content,
    )
    await until(lambda: running.neurons[0].cancelled)
    await until(lambda: not running.gateway.request_log.live)
    assert [gone.phase for gone in running.neurons[0].cancelled] == ["decode"]
    assert_idle(running.gateway.fleet)


async def test_twenty_streams_at_once_through_one_client(sdk):
    """Each is complete."""
    texts = []

    async def one():
        wanted = {"model": "helexa/small", "messages": PROBE, "stream": True}
        texts.append(text_of(await sdk.chunks(lambda client: client.chat.completions.create(**wanted))))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)

    assert len(texts) == 20
    assert all("Tbilisi" in text for text in texts)


async def test_unreachable_gateway_is_a_connection_error():
    """So the errors above come from the gateway."""
    async with AsyncOpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(APIConnectionError):
            await client.models.list()
