"""Answers in OpenAI's shapes, read back with OpenAI's own SDK where it can."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError
from pydantic import BaseModel, Field

from neuron.simulated import PRESETS, PROBE, SimNeuron, shapes, text

# The SDK leaves its response generators half read when it meets `[DONE]`, and Trio says so when they are collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"
)

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"
EMBEDDING, RERANKER = "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"
THINKER = "Qwen/Qwen3-14B"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
async def openai(url: str, simulated: SimNeuron) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client, talking to a neuron that has every kind of model."""
    simulated.restart()
    for model_id in (EMBEDDING, RERANKER, THINKER):
        simulated.end_load(simulated.begin_load(model_id, None, None, None))
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


async def test_chat(openai: AsyncOpenAI) -> None:
    """It knows the capital of Georgia, and counts."""
    answer = await openai.chat.completions.create(model=SMALL, messages=user(PROBE))

    assert (answer.model, answer.object) == (SMALL, "chat.completion")
    assert answer.choices[0].message.content == "Tbilisi"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (20, 2, 22)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_chat_reports_the_prefix_it_has_seen(openai: AsyncOpenAI) -> None:
    """The second turn finds the first one in the cache; all but the last token, for the very same prompt."""
    await openai.chat.completions.create(model=SMALL, messages=user(PROBE))
    again = await openai.chat.completions.create(model=SMALL, messages=user(PROBE))
    longer = await openai.chat.completions.create(
        model=SMALL, messages=[*user(PROBE), {"role": "assistant", "content": "Tbilisi"}, *user("And of France?")]
    )

    assert again.usage.prompt_tokens_details.cached_tokens == 19
    assert longer.usage.prompt_tokens_details.cached_tokens == 20


async def test_stream_says_the_same_as_the_whole(openai: AsyncOpenAI) -> None:
    """Token by token it is the same text, and the usage comes last, on a chunk without choices."""
    whole = await openai.chat.completions.create(model=LARGE, messages=user("Tell me something."))
    stream = await openai.chat.completions.create(
        model=LARGE, messages=user("Tell me something."), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(pieces) == whole.usage.completion_tokens


async def test_stream_without_asking_has_no_usage(openai: AsyncOpenAI) -> None:
    """Usage comes only when asked for."""
    stream = await openai.chat.completions.create(model=SMALL, messages=user(PROBE), stream=True)
    assert [chunk async for chunk in stream if chunk.usage is not None] == []


async def test_two_models_differ_and_one_never_does(openai: AsyncOpenAI) -> None:
    """The same question to two models gives two texts; to one model twice, the same."""
    pieces = [
        (await openai.chat.completions.create(model=model, messages=user("Who are you?"))).choices[0].message.content
        for model in (SMALL, LARGE, SMALL)
    ]
    assert pieces[0] == pieces[2] != pieces[1]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_limit_cuts_the_answer(openai: AsyncOpenAI, field: str) -> None:
    """No more tokens than allowed, and the reason says so."""
    answer = await openai.chat.completions.create(model=SMALL, messages=user("300 words"), **{field: 7})
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 7)


async def test_length_is_as_asked(openai: AsyncOpenAI) -> None:
    """Who asks for 300 words gets 300 tokens."""
    answer = await openai.chat.completions.create(model=SMALL, messages=user("Write 300 words, please"))
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 300)


async def test_stop_ends_the_answer_before_it(openai: AsyncOpenAI) -> None:
    """The stop text is not part of the answer."""
    answer = await openai.chat.completions.create(model=SMALL, messages=user("repeat: one two END three"), stop="END")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two ", "stop")


@pytest.mark.parametrize(
    ("content", "choice", "names"),
    [
        ("call weather", "auto", ["weather"]),
        ("call weather and call time", "auto", ["weather", "time"]),
        ("hello", "required", ["weather"]),
        ("hello", {"type": "function", "function": {"name": "time"}}, ["time"]),
    ],
)
async def test_tool_calls(openai: AsyncOpenAI, content: str, choice: object, names: list[str]) -> None:
    """Tools are called when the user says so or the request forces it, with arguments after their schema."""
    answer = await openai.chat.completions.create(
        model=SMALL, messages=user(content), tools=[WEATHER, TIME], tool_choice=choice
    )

    calls = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in calls] == names
    expected = {"weather": '{"city":"Tbilisi","days":7}', "time": "{}"}
    assert [call.function.arguments for call in calls] == [expected[name] for name in names]


@pytest.mark.parametrize(("content", "choice"), [("hello", "auto"), ("call weather", "none")])
async def test_no_tool_call_unasked(openai: AsyncOpenAI, content: str, choice: str) -> None:
    """Having tools is no reason to call them."""
    answer = await openai.chat.completions.create(
        model=SMALL, messages=user(content), tools=[WEATHER], tool_choice=choice
    )
    assert answer.choices[0].message.tool_calls is None


async def test_streamed_tool_calls_add_up(openai: AsyncOpenAI) -> None:
    """Parallel calls, piece by piece, are what the whole answer has."""
    async with openai.chat.completions.stream(
        model=SMALL, messages=user("call weather and call time"), tools=[WEATHER, TIME]
    ) as stream:
        final = await stream.get_final_completion()

    calls = final.choices[0].message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"city":"Tbilisi","days":7}'),
        ("time", "{}"),
    ]


async def test_reasoning_comes_before_the_answer(openai: AsyncOpenAI) -> None:
    """A model that reasons by default does so in deltas of their own, and counts them."""
    answer = await openai.chat.completions.create(model=THINKER, messages=user(PROBE))
    message = answer.choices[0].message
    assert message.content == "Tbilisi"
    assert message.reasoning_content.startswith("Let me see.")
    assert answer.usage.completion_tokens == answer.usage.completion_tokens_details.reasoning_tokens + 2

    plain = await openai.chat.completions.create(model=THINKER, messages=user(PROBE), reasoning_effort="none")
    assert plain.usage.completion_tokens == 2


async def test_completions(openai: AsyncOpenAI) -> None:
    """The old endpoint, streamed and not."""
    whole = await openai.completions.create(model=SMALL, prompt=PROBE)
    stream = await openai.completions.create(model=SMALL, prompt=PROBE, stream=True)

    assert (whole.object, whole.choices[0].text, whole.usage.prompt_tokens) == ("text_completion", "Tbilisi", 16)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Tbilisi"


async def test_embeddings_are_unit_vectors_in_either_encoding(openai: AsyncOpenAI) -> None:
    """The SDK's base64 and plain floats are the same numbers; like texts are near, unlike ones are not."""
    texts = ["the red house", "the red horse", "quantum flux"]
    coded = await openai.embeddings.create(model=EMBEDDING, input=texts)
    plain = await openai.embeddings.create(model=EMBEDDING, input=texts, encoding_format="float")

    one, other, far = (entry.embedding for entry in coded.data)
    assert [entry.embedding for entry in plain.data] == [one, other, far]
    assert len(one) == 1024
    assert math.hypot(*one) == pytest.approx(1, abs=1e-6)
    assert math.dist(one, other) < math.dist(one, far)
    assert coded.usage.prompt_tokens == coded.usage.total_tokens > 0


async def test_embeddings_of_fewer_dimensions(openai: AsyncOpenAI) -> None:
    """`dimensions` is obeyed."""
    answer = await openai.embeddings.create(model=EMBEDDING, input="x", dimensions=64)
    assert len(answer.data[0].embedding) == 64


async def test_rerank(openai: AsyncOpenAI, client: httpx.AsyncClient) -> None:
    """The best fit comes first, named by its place in the request."""
    body = {
        "model": RERANKER,
        "query": "capital of Georgia",
        "documents": ["bananas", "Tbilisi is the capital of Georgia"],
        "top_n": 1,
        "return_documents": True,
    }
    answer = (await client.post("/v1/rerank", json=body)).json()
    assert answer["model"] == RERANKER
    (best,) = answer["results"]
    assert (best["index"], best["relevance_score"]) == (1, 1.0)
    assert best["document"] == {"text": "Tbilisi is the capital of Georgia"}


async def test_models_are_those_loaded(openai: AsyncOpenAI) -> None:
    """`/v1/models` lists what answers now."""
    assert {model.id async for model in openai.models.list()} == {SMALL, LARGE, EMBEDDING, RERANKER, THINKER}


async def test_model_not_loaded(openai: AsyncOpenAI) -> None:
    """404 in the neuron's words."""
    with pytest.raises(NotFoundError) as refused:
        await openai.chat.completions.create(model="no/such", messages=user("hi"))
    assert refused.value.response.json() == {"error": "model 'no/such' not loaded on this neuron"}


async def test_prompt_beyond_the_context_is_refused(client: httpx.AsyncClient) -> None:
    """400, and both numbers."""
    body = {"model": SMALL, "messages": user("word " * 40_000)}
    refused = await client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "context length of 32768" in refused.json()["error"]


def test_probe_is_twenty_tokens() -> None:
    """The arithmetic of the presets rests on these counts."""
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % PROBE.encode()
    assert len(shapes.chat(PRESETS[SMALL], body).prompt) == 20
    assert text.tokens("Tbilisi") == ["Tbil", "isi"]


@pytest.mark.parametrize("sample", ["", " ", "a  b", "naïve café, 漢字!", "line\nbreak \n", "snake_case42", "\x00😀"])
def test_tokens_joined_are_the_text(sample: str) -> None:
    """Cutting loses nothing."""
    assert "".join(text.tokens(sample)) == sample


# ---- the Responses API


async def test_responses_say_the_same_as_chat(openai: AsyncOpenAI) -> None:
    """Another way of telling, not another model."""
    chat = await openai.chat.completions.create(model=SMALL, messages=user(PROBE))
    response = await openai.responses.create(model=SMALL, input=PROBE)

    assert response.output_text == chat.choices[0].message.content
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens


async def test_responses_stream_is_what_the_sdk_accumulates(openai: AsyncOpenAI) -> None:
    """Thoughts, text, two calls and their numbers; the whole of it is the same."""
    tools = [{"type": "function", **tool["function"]} for tool in (WEATHER, TIME)]
    for asked in (
        {"model": THINKER, "input": "Tell me something."},
        {"model": SMALL, "input": "call weather and call time", "tools": tools},
    ):
        whole = await openai.responses.create(**asked)
        async with openai.responses.stream(**asked) as events:
            numbers = [event.sequence_number async for event in events]
            streamed = await events.get_final_response()

        assert numbers == list(range(len(numbers)))
        assert [item.model_dump(exclude_none=True) for item in streamed.output] == [
            item.model_dump(exclude_none=True) for item in whole.output
        ]
        assert (streamed.id, streamed.status) == (whole.id, "completed")


async def test_responses_read_a_history_with_tools(openai: AsyncOpenAI) -> None:
    """As long a prompt as the same in chat."""
    call = {"id": "c", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    history = [*user("call time"), {"role": "assistant", "tool_calls": [call]}]
    chat = await openai.chat.completions.create(
        model=SMALL, messages=[*history, {"role": "tool", "tool_call_id": "c", "content": "noon"}]
    )
    items = [*user("call time"), {"type": "function_call", "call_id": "c", "name": "time", "arguments": "{}"}]
    response = await openai.responses.create(
        model=SMALL, input=[*items, {"type": "function_call_output", "call_id": "c", "output": "noon"}]
    )

    assert abs(response.usage.input_tokens - chat.usage.prompt_tokens) <= 10  # chat's call has a `type` more


async def test_responses_that_are_cut_are_incomplete(openai: AsyncOpenAI) -> None:
    """By the limit of tokens."""
    response = await openai.responses.create(model=SMALL, input="Tell me something.", max_output_tokens=2)

    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


class Street(BaseModel):
    """What a schema may nest."""

    name: str
    lanes: list[int]
    kind: Literal["road", "lane"]
    beside: Street | None = None


class City(BaseModel):
    """What is asked for below."""

    name: str
    inhabitants: int
    streets: Annotated[list[Street], Field(min_length=2)]


async def test_answer_has_the_shape_that_was_asked_for(openai: AsyncOpenAI) -> None:
    """An example of the schema, which the SDK can parse; what is JSON because it was repeated stays what it is."""
    answer = await openai.chat.completions.parse(model=SMALL, messages=user("A city"), response_format=City)
    city = answer.choices[0].message.parsed
    assert (city.inhabitants, [street.kind for street in city.streets]) == (7, ["road", "road"])

    repeated = '{"name":"Gori","inhabitants":44000,"streets":[]}'
    form = {"type": "json_object"}
    for content, expected in (("hi", {"answer": "Tbilisi"}), (f"repeat: {repeated}", json.loads(repeated))):
        answer = await openai.chat.completions.create(model=SMALL, messages=user(content), response_format=form)
        assert json.loads(answer.choices[0].message.content) == expected
