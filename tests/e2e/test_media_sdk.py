"""The official `openai` SDK, unmodified, with media: pictures, sound, moderation; and tokens."""

import base64
import gc
import hashlib
import io
import wave

import httpx
import openai
import pytest
import trio
from fakes.fleets import assert_idle
from fakes.patience import SAFETY_NET_S
from fakes.running import SMALL, running_gateway
from openai import AsyncOpenAI, OpenAI

from gateway.config.settings import GatewaySettings, Listen
from neuron.simulated.fleet import neuron
from neuron.simulated.media import png, wav
from neuron.simulated.text import tokens

pytestmark = [
    # The SDK leaves its own async generators to the garbage collector when a stream is read to its end.
    pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
    # OpenAI has deprecated translations; engines still offer them.
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),
]
ALIAS = "helexa/small"
SPEECH = b"RIFF" + bytes(range(256)) * 100
LARGE_SPEECH = SPEECH * 160  # 4 MB: more than is kept in memory, more than a socket's buffers


@pytest.fixture(autouse=True)
def _collect_sdk_generators():
    """In this test, where the warning is ignored, and not in a later test of this worker."""
    yield
    gc.collect()


@pytest.fixture
async def running(tmp_path):
    async with running_gateway(tmp_path, [neuron("beast", [24576], [SMALL], speed=1000)]) as gateway:
        yield gateway
        with trio.fail_after(SAFETY_NET_S):
            while gateway.gateway.request_log.live:
                await trio.sleep(0.005)
        assert (gateway.gateway.inference.spools.open_files, gateway.gateway.inference.spools.on_disk_bytes) == (0, 0)
        assert_idle(gateway.gateway.fleet)


@pytest.fixture
async def client(running):
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
async def http(running):
    async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as opened:
        yield opened


async def in_thread(running, use):
    """The sync SDK, as in a script."""

    def script():
        with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            return use(client)

    return await trio.to_thread.run_sync(script)


async def test_picture_passes_unchanged(running, client):
    """By alias; sync and async."""
    answer = await client.images.generate(model=ALIAS, prompt="a vase", n=2)
    synced = await in_thread(running, lambda client: client.images.generate(model=ALIAS, prompt="a vase", n=2))

    assert [base64.b64decode(image.b64_json) for image in answer.data] == [png(SMALL, "a vase", n) for n in "01"]
    assert synced.data == answer.data
    assert answer.usage.output_tokens == 128


async def test_edit_of_two_pictures(running, client):
    """`image[]` twice, in one form."""
    answer = await client.images.edit(model=ALIAS, prompt="bluer", image=[("a.png", b"one"), ("b.png", b"two")])

    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")
    (received,) = running.neurons[0].requests
    assert received.model == SMALL
    assert received.files == tuple(hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))


async def test_speech_is_streamed_as_bytes(running, client):
    """Binary, chunked, with the neuron's content type and bytes."""
    text = "Tbilisi is the capital of Georgia."
    async with client.audio.speech.with_streaming_response.create(model=ALIAS, voice="alloy", input=text) as answer:
        spoken = b"".join([piece async for piece in answer.iter_bytes()])
    synced = await in_thread(
        running, lambda client: client.audio.speech.create(model=ALIAS, voice="alloy", input=text).read()
    )

    assert spoken == synced == b"".join(wav(SMALL, "alloy", tokens(text)))
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["x-cortex-alias"] == ALIAS
    with wave.open(io.BytesIO(spoken)) as sound:
        assert sound.getnframes() > 0


@pytest.mark.parametrize("speech", [SPEECH, LARGE_SPEECH], ids=["small", "large"])
async def test_transcript_of_a_small_and_a_large_file(running, client, speech):
    """The SDK writes `model` first, so the file is not spooled. The neuron gets every byte and its own model name."""
    answer = await client.audio.transcriptions.create(model=ALIAS, file=("speech.wav", speech), language="en")
    synced = await in_thread(
        running, lambda client: client.audio.transcriptions.create(model=ALIAS, file=("speech.wav", speech))
    )

    assert answer.text == synced.text
    assert answer.usage.output_tokens == len(tokens(answer.text))
    received, _ = running.neurons[0].requests
    assert received.model == SMALL
    assert received.files == (hashlib.sha256(speech).hexdigest(),)
    assert running.neurons[0].violations == []


@pytest.mark.parametrize("speech", [SPEECH, LARGE_SPEECH], ids=["small", "large"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_model_after_the_file(running, client, http, speech, chunked):
    """As JavaScript's SDK and curl write it: the same answer, and no file remains on disk."""
    expected = (await client.audio.transcriptions.create(model=SMALL, file=("speech.wav", speech))).text
    request = http.build_request(
        "POST",
        "/v1/audio/transcriptions",
        files=[("file", ("speech.wav", speech)), ("language", (None, "en")), ("model", (None, ALIAS))],
    )
    body = request.read()
    answer = await http.post(
        "/v1/audio/transcriptions",
        content=InPieces(body) if chunked else body,
        headers={"content-type": request.headers["content-type"]},
    )

    assert answer.json()["text"] == expected
    received = running.neurons[0].requests[-1]
    assert received.model == SMALL
    assert received.files == (hashlib.sha256(speech).hexdigest(),)


class InPieces:
    """A body that httpx sends in chunks."""

    def __init__(self, body):
        self.rest = body

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.rest:
            raise StopAsyncIteration
        piece, self.rest = self.rest[:50_000], self.rest[50_000:]
        return piece


@pytest.mark.parametrize("model_first", [True, False])
async def test_forms_through_hypercorn(tmp_path, model_first):
    """Hypercorn reads ahead and reports disconnects differently; forms work there too."""
    front = GatewaySettings(
        listen=Listen("127.0.0.1", 0), metrics_listen=Listen("127.0.0.1", 0), http_server="hypercorn"
    )
    beast = neuron("beast", [24576], [SMALL], speed=1000)
    parts = [("model", (None, ALIAS)), ("file", ("speech.wav", LARGE_SPEECH))]
    async with (
        running_gateway(tmp_path, [beast], gateway=front) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as http,
    ):
        answer = await http.post("/v1/audio/transcriptions", files=parts if model_first else parts[::-1])
        refused = await http.post("/v1/audio/transcriptions", json={"model": ALIAS})

    assert answer.status_code == 200
    assert beast.requests[0].files == (hashlib.sha256(LARGE_SPEECH).hexdigest(),)
    assert refused.status_code == 415


async def test_streamed_transcript(running, client):
    """Deltas, then the whole text; counted like any stream."""
    stream = await client.audio.transcriptions.create(model=ALIAS, file=("speech.wav", SPEECH), stream=True)
    events = [event async for event in stream]

    assert "".join(event.delta for event in events[:-1]) == events[-1].text
    with trio.fail_after(SAFETY_NET_S):
        while "cortex_completion_tokens_total" not in running.gateway.metrics.expose().decode():
            await trio.sleep(0.005)
    counted = f'cortex_completion_tokens_total{{model="{SMALL}",node="beast"}} {float(len(events) - 1)}'
    assert counted in running.gateway.metrics.expose().decode()


async def test_translation(running, client):
    """The other form."""
    answer = await client.audio.translations.create(model=ALIAS, file=("speech.wav", SPEECH))

    assert answer.text
    assert [received.path for received in running.neurons[0].requests] == ["/v1/audio/translations"]


async def test_moderation(client):
    """JSON both ways."""
    answer = await client.moderations.create(model=ALIAS, input=["a kind word", "a bomb"])

    assert [verdict.flagged for verdict in answer.results] == [False, True]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenize_and_detokenize(http, prefix):
    """With `/v1` or without it."""
    there = (await http.post(f"{prefix}/tokenize", json={"model": ALIAS, "prompt": "One, two."})).json()
    back = (await http.post(f"{prefix}/detokenize", json={"model": ALIAS, "tokens": there["tokens"]})).json()

    assert there["count"] == 4
    assert back == {"prompt": "One, two."}


async def test_errors_of_forms_are_the_sdks_typed_exceptions(running, client, http):
    """No model, an unknown one, two of them, a body of the other kind, one that is cut short."""
    file = ("speech.wav", SPEECH)
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.audio.transcriptions.create(model="nobody/has-it", file=file)
    none = await http.post("/v1/audio/transcriptions", files={"file": file})
    two = await http.post("/v1/audio/transcriptions", files=[("model", (None, ALIAS))] * 2 + [("file", file)])
    late = await http.post(
        "/v1/audio/transcriptions",
        files=[("model", (None, ALIAS)), ("file", ("a.wav", LARGE_SPEECH)), ("model", (None, "other"))],
    )
    cut = http.build_request("POST", "/v1/audio/transcriptions", files=[("model", (None, ALIAS)), ("file", file)])
    cut_short = await http.post(
        "/v1/audio/transcriptions",
        content=cut.read()[:-10],
        headers={"content-type": cut.headers["content-type"]},
    )
    json_for_form = await http.post("/v1/audio/transcriptions", json={"model": ALIAS})
    form_for_json = await http.post("/v1/chat/completions", files={"model": (None, ALIAS)})

    assert unknown.value.code == "model_not_found"
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in (none, two, late)] == [
        (400, "missing_model_field")
    ] * 3
    assert "twice" in late.json()["error"]["message"]
    assert (cut_short.status_code, cut_short.json()["error"]["code"]) == (400, "malformed_multipart")
    for answer in (json_for_form, form_for_json):
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert [received.model for received in running.neurons[0].requests] == []
