"""The official `openai` SDK, unmodified: what tests/e2e/test_openai_sdk.py and test_responses.py do not cover."""

import base64
import hashlib
import io
import json
import wave

import openai
import pytest
import trio
from fakes.patience import until
from fakes.running import PROBE, SMALL
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from neuron.simulated import faults

# The SDK leaves its own async generators to the garbage collector when a stream is read to its end; not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # OpenAI has deprecated translations
]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
THINKER, EMBEDDER = "Qwen/Qwen3-14B", "Qwen/Qwen3-Embedding-0.6B"
SPEECH = b"RIFF" + bytes(range(256)) * 20


def user(content):
    return [{"role": "user", "content": content}]


def async_client(cortex):
    return AsyncOpenAI(base_url=f"{cortex.url}/v1", api_key="none", max_retries=0, timeout=60)


async def in_thread(cortex, use):
    """The sync SDK, as in a script."""

    def script():
        with OpenAI(base_url=f"{cortex.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            return use(client)

    return await trio.to_thread.run_sync(script)


def sent(beast):
    return json.loads(beast.requests[-1].body)


# Chat ...............................................................................................................


async def test_tools_make_a_round_trip(cortex, beast):
    """Two calls at once, streamed; the SDK sends their results back, and an answer comes."""
    messages = user("call weather and call time")
    async with async_client(cortex) as client:
        async with client.chat.completions.stream(model="helexa/small", messages=messages, tools=[WEATHER, TIME]) as s:
            first = (await s.get_final_completion()).choices[0]
        calls = first.message.tool_calls
        messages += [first.message, *({"role": "tool", "tool_call_id": c.id, "content": "sunny"} for c in calls)]
        second = await client.chat.completions.create(model="helexa/small", messages=messages, tools=[WEATHER, TIME])

    assert first.finish_reason == "tool_calls"
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Tbilisi"}),
        ("time", {}),
    ]
    assert [message["role"] for message in sent(beast)["messages"]] == ["user", "assistant", "tool", "tool"]
    assert second.choices[0].finish_reason == "stop"


async def test_reasoning_has_its_own_deltas(cortex):
    """`reasoning_content` before content, streamed and whole, and counted separately."""
    async with async_client(cortex) as client:
        whole = await client.chat.completions.create(model=THINKER, messages=PROBE)
        stream = await client.chat.completions.create(model=THINKER, messages=PROBE, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream if chunk.choices]

    kinds = [
        "thought" if getattr(delta, "reasoning_content", None) else "said"
        for delta in deltas
        if delta.content or getattr(delta, "reasoning_content", None)
    ]
    assert kinds == sorted(kinds, reverse=True)
    assert {"thought", "said"} == set(kinds)
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == (
        whole.choices[0].message.reasoning_content
    )
    assert whole.usage.completion_tokens_details.reasoning_tokens == kinds.count("thought")


async def test_fields_of_current_sdks_are_passed_on(cortex, beast):
    """`max_completion_tokens`, `stream_options` null, a `developer` turn, and unknown fields."""
    arguments = {
        "model": "helexa/small",
        "messages": [{"role": "developer", "content": "Be brief."}, *user("300 words")],
        "max_completion_tokens": 5,
        "stream": True,
        "stream_options": None,
        "extra_body": {"mirostat": 2},
    }
    async with async_client(cortex) as client:
        chunks = [chunk async for chunk in await client.chat.completions.create(**arguments)]

    assert chunks[-1].choices[0].finish_reason == "length"
    body = sent(beast)
    assert (body["stream_options"], body["max_completion_tokens"], body["mirostat"]) == (None, 5, 2)


class Capital(BaseModel):
    city: str


async def test_structured_output_schema_passes_unchanged(cortex, beast):
    """`parse` sends a JSON schema and parses the answer with it; the neuron gets the schema unchanged."""

    def use(client):
        return client.chat.completions.parse(
            model="helexa/small", messages=user('repeat: {"city":"Tbilisi"}'), response_format=Capital
        )

    answer = await in_thread(cortex, use)

    assert answer.choices[0].message.parsed == Capital(city="Tbilisi")
    assert sent(beast)["response_format"]["json_schema"]["schema"]["required"] == ["city"]


async def test_legacy_completions(cortex):
    """Sync, streamed."""
    chunks = await in_thread(
        cortex,
        lambda client: list(client.completions.create(model="helexa/small", prompt=PROBE[0]["content"], stream=True)),
    )

    assert "Tbilisi" in "".join(chunk.choices[0].text for chunk in chunks)


async def test_abort_of_the_sync_sdk_in_mid_stream_stops_the_neuron(cortex, beast):
    """Leaving the `with` is enough, while the client itself lives on."""
    beast.speed = 2
    done = trio.Event()

    def use(client):
        with client.chat.completions.create(model=SMALL, messages=user("4000 words"), stream=True) as stream:
            next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
        trio.from_thread.run(until, lambda: beast.cancelled)
        trio.from_thread.run_sync(done.set)

    await in_thread(cortex, use)

    assert done.is_set()
    assert beast.cancelled[0].phase == "decode"


# The other endpoints ................................................................................................


async def test_embeddings_in_either_encoding_sync_and_async(cortex):
    """Base64, which the SDK requests and decodes, and floats are the same numbers."""
    arguments = {"model": EMBEDDER, "input": ["one", "two"]}
    coded = await in_thread(cortex, lambda client: client.embeddings.create(**arguments))
    async with async_client(cortex) as client:
        plain = await client.embeddings.create(**arguments, encoding_format="float", dimensions=1024)

    assert [entry.embedding for entry in coded.data] == [entry.embedding for entry in plain.data]
    assert coded.usage.total_tokens > 0


async def test_image_is_generated(cortex):
    """Sync and async, as base64."""
    arguments = {"model": "helexa/small", "prompt": "a vase", "n": 2}
    pictures = await in_thread(cortex, lambda client: client.images.generate(**arguments))
    async with async_client(cortex) as client:
        again = await client.images.generate(**arguments)

    assert [base64.b64decode(picture.b64_json)[:8] for picture in pictures.data] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert [picture.b64_json for picture in again.data] == [picture.b64_json for picture in pictures.data]
    assert pictures.usage.total_tokens > 0


async def test_speech_comes_piece_by_piece(cortex):
    """A WAV that Python can read, streamed and whole."""
    arguments = {
        "model": "helexa/small",
        "voice": "alloy",
        "input": "Tbilisi is the capital.",
        "response_format": "wav",
    }
    async with (
        async_client(cortex) as client,
        client.audio.speech.with_streaming_response.create(**arguments) as answer,
    ):
        pieces = [piece async for piece in answer.iter_bytes()]
    whole = await in_thread(cortex, lambda client: client.audio.speech.create(**arguments).read())

    assert whole == b"".join(pieces)
    with wave.open(io.BytesIO(whole)) as sound:
        assert sound.getnframes() > 0


async def test_recording_is_transcribed_and_translated(cortex, beast):
    """Sync, async and streamed: a form whose model is replaced and whose file is unchanged."""
    file = ("a.wav", SPEECH)
    whole = await in_thread(
        cortex, lambda client: client.audio.transcriptions.create(model="helexa/small", file=file, language="en")
    )
    async with async_client(cortex) as client:
        stream = await client.audio.transcriptions.create(model="helexa/small", file=file, stream=True)
        events = [event async for event in stream]
        plain = await client.audio.transcriptions.create(model="helexa/small", file=file, response_format="text")
        english = await client.audio.translations.create(model="helexa/small", file=file)

    assert whole.text == str(plain) == events[-1].text == "".join(event.delta for event in events[:-1])
    assert english.text != whole.text
    assert {received.model for received in beast.requests} == {SMALL}
    assert {received.files for received in beast.requests} == {(hashlib.sha256(SPEECH).hexdigest(),)}


async def test_picture_is_edited_and_text_is_moderated(cortex):
    """A form and a JSON body that no other SDK test sends."""
    async with async_client(cortex) as client:
        edited = await client.images.edit(model="helexa/small", prompt="bluer", image=("x.png", b"a picture"))
        judged = await client.moderations.create(model="helexa/small", input=["a kind word", "a bomb"])

    assert base64.b64decode(edited.data[0].b64_json)[:8] == b"\x89PNG\r\n\x1a\n"
    assert [verdict.flagged for verdict in judged.results] == [False, True]


async def test_errors_of_uploads_are_typed_as_well(cortex):
    """The model's name is found before the file is read to its end."""
    async with async_client(cortex) as client:
        with pytest.raises(openai.NotFoundError, match="not found") as caught:
            await client.audio.transcriptions.create(model="nobody/has-it", file=("a.wav", SPEECH))

    assert caught.value.code == "model_not_found"


# Responses ..........................................................................................................


async def test_responses_have_reasoning_tools_and_a_schema(cortex, beast):
    """Async, streamed, in one conversation, as the SDK's own reader sees it."""
    tool = {"type": "function", "name": "weather", "parameters": WEATHER["function"]["parameters"]}
    async with async_client(cortex) as client:
        async with client.responses.stream(
            model=THINKER, input="call weather", tools=[tool], reasoning={"effort": "medium"}
        ) as stream:
            first = await stream.get_final_response()
        parsed = await client.responses.parse(
            model="helexa/small", input='repeat: {"city":"Tbilisi"}', text_format=Capital
        )

    assert [item.type for item in first.output] == ["reasoning", "function_call"]
    assert first.usage.output_tokens_details.reasoning_tokens > 0
    assert parsed.output_parsed == Capital(city="Tbilisi")
    assert sent(beast)["response_format"]["json_schema"]["schema"]["required"] == ["city"]


# Errors .............................................................................................................


@pytest.mark.parametrize(
    ("fault", "raised", "retry_after"),
    [
        (faults.HttpError(status=400, text="no"), openai.BadRequestError, None),
        (faults.HttpError(status=403, text="no"), openai.PermissionDeniedError, None),
        (faults.HttpError(status=409, text="no"), openai.ConflictError, None),
        (faults.HttpError(status=422, text="no"), openai.UnprocessableEntityError, None),
        (faults.HttpError(status=429, text="slow down", retry_after_s=3), openai.RateLimitError, "3"),
        (faults.HttpError(status=503, text="full", retry_after_s=2), openai.InternalServerError, "2"),
    ],
    ids=lambda value: getattr(value, "status", None),
)
async def test_refusal_of_a_neuron_is_the_exception_of_its_status(cortex, beast, fault, raised, retry_after):
    """With the neuron's message, and its Retry-After if it has one."""
    beast.faults.add(fault)
    async with async_client(cortex) as client:
        with pytest.raises(raised, match=fault.text) as caught:
            await client.chat.completions.create(model="helexa/small", messages=PROBE)

    assert caught.value.response.headers.get("retry-after") == retry_after
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


async def test_key_that_a_neuron_refuses_is_not_the_clients_mistake(cortex, beast):
    """The neuron's 401 is about the gateway's key: a 502, so that no client asks its user for another key."""
    beast.faults.add(faults.HttpError(status=401, text="no"))
    async with async_client(cortex) as client:
        with pytest.raises(openai.InternalServerError, match="the operator must correct its api_key") as caught:
            await client.chat.completions.create(model="helexa/small", messages=PROBE)

    assert (caught.value.status_code, caught.value.code) == (502, "upstream_auth_failed")
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


async def test_sdk_retries_after_a_retry_after(cortex, beast):
    """A user of the SDK does not see a 503 with Retry-After."""
    beast.faults.add(faults.HttpError(status=503, text="full", retry_after_s=0, times=3))
    async with AsyncOpenAI(base_url=f"{cortex.url}/v1", api_key="none", max_retries=5) as client:
        answer = await client.chat.completions.create(model="helexa/small", messages=PROBE)

    assert "Tbilisi" in answer.choices[0].message.content
