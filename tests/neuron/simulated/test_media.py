"""Pictures, sound, moderation and tokens of a simulated neuron, read back with OpenAI's SDK and Python's `wave`."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import wave
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest
from openai import AsyncOpenAI
from sim_wire import Dial, read_all

from neuron.simulated import SimNeuron

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"
SPEECH = b"RIFF" + bytes(range(256)) * 20

pytestmark = [
    # The SDK leaves its response generators half read when it meets the last event.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
    # OpenAI no longer documents translations; engines still serve them.
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),
]


@pytest.fixture
async def openai(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def pixels(png: bytes) -> bytes:
    """The rows of a PNG, every checksum checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, {}
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size) == (zlib.crc32(kind + body),)
        data[kind] = body
        at += 12 + size
    assert list(data) == [b"IHDR", b"IDAT", b"IEND"]
    return zlib.decompress(data[b"IDAT"])


async def test_picture_is_a_png_and_the_same_for_the_same_words(openai: AsyncOpenAI) -> None:
    """Another for other words, and for the second of two."""
    first = await openai.images.generate(model=SMALL, prompt="a vase", n=2)
    again = await openai.images.generate(model=SMALL, prompt="a vase")
    other = await openai.images.generate(model=SMALL, prompt="a boat")

    one, two, same, another = (base64.b64decode(image.b64_json) for image in [*first.data, *again.data, *other.data])
    assert len(pixels(one)) == 8 * (1 + 8 * 3)
    assert one == same
    assert len({one, two, another}) == 3
    assert (first.usage.input_tokens, first.usage.output_tokens, first.usage.total_tokens) == (2, 128, 130)


async def test_edit_takes_a_picture_in_a_form(openai: AsyncOpenAI, simulated: SimNeuron) -> None:
    """And the answer follows from it."""
    edited = await openai.images.edit(model=SMALL, prompt="bluer", image=("x.png", b"not looked into"))

    assert pixels(base64.b64decode(edited.data[0].b64_json))
    assert simulated.requests[-1].files == (hashlib.sha256(b"not looked into").hexdigest(),)


async def test_speech_is_a_wav_that_comes_piece_by_piece(openai: AsyncOpenAI) -> None:
    """A tenth of a second for each token."""
    async with openai.audio.speech.with_streaming_response.create(
        model=SMALL, voice="alloy", input="Tbilisi is the capital.", response_format="wav"
    ) as answer:
        pieces = [piece async for piece in answer.iter_bytes()]

    with wave.open(io.BytesIO(b"".join(pieces))) as sound:
        assert (sound.getframerate(), sound.getsampwidth()) == (8000, 2)
        assert len(sound.readframes(100_000)) == 2 * sound.getnframes() == 2 * 800 * 7
    assert answer.headers["content-type"] == "audio/wav"


async def test_transcript_follows_from_the_file(openai: AsyncOpenAI, simulated: SimNeuron) -> None:
    """Not from its name; and what was received is on record."""
    one = await openai.audio.transcriptions.create(model=SMALL, file=("a.wav", SPEECH))
    same = await openai.audio.transcriptions.create(model=SMALL, file=("b.wav", SPEECH), response_format="text")
    other = await openai.audio.transcriptions.create(model=SMALL, file=("a.wav", SPEECH + b"!"))
    english = await openai.audio.translations.create(model=SMALL, file=("a.wav", SPEECH))

    assert one.text == str(same)
    assert len({one.text, other.text, english.text}) == 3
    assert one.usage.output_tokens > 0
    assert [received.model for received in simulated.requests] == [SMALL] * 4
    assert simulated.requests[0].files == (hashlib.sha256(SPEECH).hexdigest(),)


async def test_transcript_can_be_streamed(openai: AsyncOpenAI) -> None:
    """Delta by delta, and then whole, with usage."""
    whole = await openai.audio.transcriptions.create(model=SMALL, file=("a.wav", SPEECH))
    stream = await openai.audio.transcriptions.create(model=SMALL, file=("a.wav", SPEECH), stream=True)
    events = [event async for event in stream]

    assert "".join(event.delta for event in events[:-1]) == events[-1].text == whole.text
    assert events[-1].type == "transcript.text.done"
    assert events[-1].usage.output_tokens == len(events) - 1


async def test_form_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    """JSON, no file, no model."""
    no_form = await client.post("/v1/audio/transcriptions", json={"model": SMALL})
    no_file = await client.post("/v1/audio/transcriptions", data={"model": SMALL}, files={"x": (None, b"y")})
    no_model = await client.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"y")})

    assert (no_form.status_code, no_form.json()) == (400, {"error": "invalid form: no boundary"})
    assert (no_file.status_code, no_file.json()) == (400, {"error": "invalid request: exactly one file is required"})
    assert (no_model.status_code, no_model.json()) == (400, {"error": "invalid form: no model"})


async def test_moderation_flags_by_the_word(openai: AsyncOpenAI) -> None:
    """One verdict for each input."""
    answer = await openai.moderations.create(model=SMALL, input=["a kind word", "a bomb"])

    assert [(verdict.flagged, verdict.categories.violence) for verdict in answer.results] == [
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokens_there_and_back(client: httpx.AsyncClient, prefix: str) -> None:
    """In vLLM's shapes, with and without `/v1`; a chat's count is what its answer's usage will say."""
    there = (await client.post(f"{prefix}/tokenize", json={"model": SMALL, "prompt": "One, two, თბილისი."})).json()
    back = (await client.post(f"{prefix}/detokenize", json={"model": SMALL, "tokens": there["tokens"]})).json()
    messages = [{"role": "user", "content": "What is the capital of Georgia?"}]
    counted = (await client.post(f"{prefix}/tokenize", json={"model": SMALL, "messages": messages})).json()
    answer = (await client.post("/v1/chat/completions", json={"model": SMALL, "messages": messages})).json()
    unknown = await client.post(f"{prefix}/detokenize", json={"model": SMALL, "tokens": [1]})

    assert back == {"prompt": "One, two, თბილისი."}
    assert there["count"] == len(there["tokens"])
    assert there["max_model_len"] == 32768
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    assert unknown.status_code == 400


async def test_client_that_leaves_in_the_midst_of_its_request_is_counted(connect: Dial, simulated: SimNeuron) -> None:
    """That is how an upload looks from here that was cancelled on its way; one that asks nothing is none."""
    for data in (b"", b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: sim\r\ncontent-length: 100\r\n\r\nsome"):
        async with await connect() as stream:
            await stream.send_all(data)
            await stream.send_eof()
            assert await read_all(stream) == b""

    assert simulated.counters["cut_off"] == 1
    assert simulated.violations == []
