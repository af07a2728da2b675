"""`/v1/responses` through the gateway on real sockets: the unmodified `openai` SDK, and the neuron's requests."""

import gc
import json
import re

import httpx
import openai
import pydantic
import pytest
import trio
from fakes.fleets import assert_idle
from fakes.in_memory import Client
from fakes.patience import until
from fakes.running import SMALL, running_gateway
from fakes.scripted import chunked, delta, listening, read_request, with_length
from openai import AsyncOpenAI, OpenAI

from gateway.config.settings import NeuronSettings
from neuron.simulated import faults

# The SDK leaves its own async generators to the garbage collector when a stream is read to its end; not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
]

QUESTION = "What is the capital of Georgia?"
ASK = {"model": "helexa/small", "input": QUESTION}
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(autouse=True)
def _collect_sdk_generators():
    """In this test, where the warning is ignored, and not in a later test of this worker."""
    yield
    gc.collect()


@pytest.fixture
async def native(tmp_path, beast):
    """The gateway in front of a neuron that has this API itself."""
    async with running_gateway(tmp_path, [beast], speaking=("openai", "responses")) as running:
        yield running


def async_sdk(cortex):
    return AsyncOpenAI(base_url=f"{cortex.url}/v1", api_key="a-client's-own", max_retries=0, timeout=60)


async def in_thread(cortex, use):
    """The sync SDK, as in a script."""

    def script():
        with OpenAI(base_url=f"{cortex.url}/v1", api_key="a-client's-own", max_retries=0, timeout=60) as client:
            return use(client)

    return await trio.to_thread.run_sync(script)


def sent(beast, index=-1):
    return json.loads(beast.requests[index].body)


async def test_create_answers_in_the_form_of_responses(cortex, beast):
    """Text, usage and ids. The neuron gets a chat completion with its own model name and without the client's key."""
    answer = await in_thread(
        cortex, lambda client: client.responses.with_raw_response.create(**ASK, instructions="Be brief.")
    )
    response = answer.parse()

    assert "Tbilisi" in response.output_text
    assert (response.status, response.model, response.instructions) == ("completed", SMALL, "Be brief.")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    assert re.fullmatch("resp_[0-9a-f]{24}", response.id)
    assert answer.headers["x-cortex-model"] == SMALL
    [received] = beast.requests
    assert received.path == "/v1/chat/completions"
    assert sent(beast)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
    ]
    assert not {name.lower() for name, _ in received.headers} & {"x-api-key", "authorization"}


async def test_stream_is_accumulated_by_the_sdk_sync_and_async(cortex, beast):
    """Event by event, with the neuron's own usage at the end."""

    def stream(client):
        with client.responses.stream(**ASK) as events:
            return [event.type for event in events], events.get_final_response()

    kinds, response = await in_thread(cortex, stream)
    async with async_sdk(cortex) as client, client.responses.stream(**ASK) as events:
        async_kinds = [event.type async for event in events]
        async_response = await events.get_final_response()

    assert kinds == async_kinds
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "Tbilisi" in response.output_text
    assert response.output_text == async_response.output_text
    assert response.usage.input_tokens > 0
    assert sent(beast)["stream_options"] == {"include_usage": True}


async def test_numbers_of_a_stream_have_no_gap(cortex):
    """On the wire, with `type` in the event and in its data, because some clients read one and some the other."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        answer = await http.post(f"{cortex.url}/v1/responses", json={**ASK, "stream": True})
    events = [event.split("\n") for event in answer.text.split("\n\n") if event.startswith("event: ")]
    datas = [json.loads(data.removeprefix("data: ")) for _, data in events]

    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.endswith("\n\n")
    assert [data["sequence_number"] for data in datas] == list(range(len(datas)))
    assert [data["type"] for data in datas] == [name.removeprefix("event: ") for name, _ in events]
    assert "[DONE]" not in answer.text


async def test_tools_round_trip(cortex, beast):
    """Call, output, answer: the SDK sends its history back."""
    async with async_sdk(cortex) as client:
        history = [{"role": "user", "content": "Please call weather."}]
        first = await client.responses.create(model=SMALL, input=history, tools=[WEATHER])
        [call] = first.output
        history += first.output
        history.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        second = await client.responses.create(model=SMALL, input=history, tools=[WEATHER])

    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Tbilisi"})
    assert second.output[-1].type == "message"
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert sent(beast)["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": call.call_id, "type": "function", "function": {"name": "weather", "arguments": call.arguments}}
            ],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
    ]
    assert sent(beast)["tools"][0]["function"]["name"] == "weather"


async def test_parallel_calls_are_streamed(cortex):
    """Each is an item of its own, in order."""
    time = {"type": "function", "name": "time", "parameters": {"type": "object", "properties": {}}}
    async with (
        async_sdk(cortex) as client,
        client.responses.stream(model=SMALL, input="call weather and call time", tools=[WEATHER, time]) as events,
    ):
        response = await events.get_final_response()

    assert [item.name for item in response.output] == ["weather", "time"]
    assert json.loads(response.output[0].arguments) == {"city": "Tbilisi"}


async def test_structured_output_is_parsed(cortex, beast):
    """`responses.parse`: the neuron gets the schema nested as in chat completions."""

    class City(pydantic.BaseModel):
        name: str

    async with async_sdk(cortex) as client:
        response = await client.responses.parse(model=SMALL, input='repeat: {"name": "Tbilisi"}', text_format=City)

    assert response.output_parsed == City(name="Tbilisi")
    schema = sent(beast)["response_format"]["json_schema"]
    assert (schema["name"], schema["strict"]) == ("City", True)
    assert schema["schema"]["properties"]["name"]["type"] == "string"


async def test_reasoning_is_an_item_before_the_message(cortex, beast):
    """Streamed as the model reasons; effort sets the neuron's switch."""
    async with async_sdk(cortex) as client, client.responses.stream(**ASK, reasoning={"effort": "medium"}) as events:
        thoughts = [event.delta async for event in events if event.type == "response.reasoning_text.delta"]
        response = await events.get_final_response()

    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "".join(thoughts)
    assert len(thoughts) > 3
    assert response.usage.output_tokens_details.reasoning_tokens == len(thoughts)
    assert sent(beast)["chat_template_kwargs"] == {"enable_thinking": True}


async def test_token_limit_makes_an_incomplete_response(cortex):
    """Whole and streamed."""
    async with async_sdk(cortex) as client:
        whole = await client.responses.create(**ASK, max_output_tokens=1)
        events = [event async for event in await client.responses.create(**ASK, max_output_tokens=1, stream=True)]

    assert events[-1].type == "response.incomplete"
    for response in (whole, events[-1].response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert response.usage.output_tokens == 1


@pytest.mark.parametrize(
    ("change", "raised", "words"),
    [
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "stores no responses"),
        ({"conversation": "conv_1"}, openai.BadRequestError, "stores no responses"),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, r"tools\.0\.type"),
        ({"model": "nobody/has-it"}, openai.NotFoundError, "not found"),
    ],
)
async def test_errors_are_the_sdks_typed_exceptions(cortex, beast, change, raised, words):
    """By status, in this API's envelope; no neuron gets a request."""
    async with async_sdk(cortex) as client:
        with pytest.raises(raised, match=words):
            await client.responses.create(**(ASK | change))

    assert not beast.requests


async def test_stream_that_breaks_raises_in_the_sdk(cortex, beast):
    """After half an answer, by any way of reading; cortex does not invent a `response.completed`."""
    seen = []
    async with async_sdk(cortex) as client:
        beast.faults.add(faults.Drop(after=3))
        with pytest.raises(openai.APIError, match="in the middle of its response") as caught:
            async for event in await client.responses.create(**ASK, stream=True):
                seen.append(event.type)  # noqa: PERF401 - what came before the exception is wanted
        with pytest.raises(openai.APIError, match="in the middle of its response"):
            async with client.responses.stream(**ASK) as events:
                await events.get_final_response()

    assert caught.value.code == "upstream_connection_error"
    assert "response.output_text.delta" in seen
    assert "response.completed" not in seen


async def test_abort_in_mid_response_stops_the_neuron(cortex, beast):
    """A user's Stop button closes the stream."""
    beast.speed = 2
    async with async_sdk(cortex) as client:
        stream = await client.responses.create(model=SMALL, input="Write 4000 words", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await until(lambda: beast.cancelled)
        await until(lambda: not cortex.gateway.request_log.live)
    assert_idle(cortex.gateway.fleet)


async def test_usage_of_translated_answers_is_counted(cortex):
    """The metrics are those of any other answer."""
    async with async_sdk(cortex) as client:
        response = await client.responses.create(**ASK)
        async with client.responses.stream(**ASK) as events:
            streamed = await events.get_final_response()
        await until(lambda: not cortex.gateway.request_log.live)
    exposed = cortex.gateway.metrics.expose().decode()

    prompt = response.usage.input_tokens + streamed.usage.input_tokens
    completion = response.usage.output_tokens + streamed.usage.output_tokens
    assert f'cortex_prompt_tokens_total{{model="{SMALL}",node="beast"}} {prompt}.0' in exposed
    assert f'cortex_completion_tokens_total{{model="{SMALL}",node="beast"}} {completion}.0' in exposed


async def test_silence_is_filled_with_comments_and_a_disconnect_frees_the_neuron(tmp_path):
    """Once the response has begun. When the client disconnects, the neuron's connection closes."""
    left = trio.Event()

    async def engine(stream):
        request = await read_request(stream)
        if request.startswith(b"GET "):
            await stream.send_all(with_length(json.dumps({"data": [{"id": SMALL}]}).encode()))
            return
        await stream.send_all(chunked(delta("Hm"), end=b""))
        assert await stream.receive_some(1) == b""
        left.set()

    async with listening(engine) as url:
        backend = NeuronSettings("engine", url, kind="openai")
        async with (
            running_gateway(tmp_path, [], backends=(backend,)) as cortex,
            await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream,
        ):
            client = Client(stream)
            await client.send({**ASK, "stream": True}, "/v1/responses")
            _, headers = await client.head()
            received_bytes = b""
            while b": keep-alive" not in received_bytes:
                received_bytes += await client.piece(headers)
            await stream.aclose()
            with trio.fail_after(60):
                await left.wait()

    assert received_bytes.index(b"response.output_text.delta") < received_bytes.index(b": keep-alive")


@pytest.mark.parametrize("stream", [False, True])
async def test_encrypted_reasoning_survives_a_restart(tmp_path, stream):
    """Another gateway with the same state directory decodes it, although the client returns nothing else of it."""
    got = []

    async def engine(connection):
        request = await read_request(connection)
        if request.startswith(b"GET "):
            await connection.send_all(with_length(json.dumps({"data": [{"id": SMALL}]}).encode()))
            return
        got.append(json.loads(request.partition(b"\r\n\r\n")[2]))
        said = {"role": "assistant", "reasoning_content": "I must look.", "content": "Looking."}
        choice = {"index": 0, "finish_reason": "stop"}
        if got[-1].get("stream"):
            event = b"data: %b\n\n" % json.dumps({"choices": [{**choice, "delta": said}]}).encode()
            await connection.send_all(chunked(event, b"data: [DONE]\n\n"))
        else:
            await connection.send_all(with_length(json.dumps({"choices": [{**choice, "message": said}]}).encode()))

    items = [{"role": "user", "content": QUESTION}]
    async with listening(engine) as url:
        backend = NeuronSettings("engine", url, kind="openai", reasoning_content=True)
        for _ in range(2):
            async with running_gateway(tmp_path, [], backends=(backend,)) as cortex, async_sdk(cortex) as client:
                if stream:
                    async with client.responses.stream(model=SMALL, input=items) as events:
                        [thought] = [
                            event.item
                            async for event in events
                            if event.type == "response.output_item.done" and event.item.type == "reasoning"
                        ]
                else:
                    thought, _ = (await client.responses.create(model=SMALL, input=items)).output
            items += [
                {"type": "reasoning", "summary": [], "encrypted_content": thought.encrypted_content},
                {"role": "assistant", "content": "Looking."},
                {"role": "user", "content": "And?"},
            ]

    assert [turn.get("reasoning_content") for turn in got[1]["messages"]] == [None, "I must look.", None]


# Passed through ......................................................................................................


async def test_neuron_that_speaks_responses_gets_the_body_unchanged(native, beast):
    """Only `model` differs, whatever the body contains; the answer comes back unchanged."""
    body = (
        b'{ "model":"helexa/small" , "input":"repeat: hi", "previous_response_id":"resp_1", "tools":[{"type":"mcp"}]}'
    )
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        answer = await http.post(f"{native.url}/v1/responses?a=b", content=body)

    [received] = beast.requests
    assert received.path == "/v1/responses"
    assert received.body == body.replace(b"helexa/small", SMALL.encode())
    assert answer.json()["output"][0]["id"] == "message-0"  # as the simulated neuron counts


async def test_native_stream_is_accumulated_by_the_sdk(native):
    """The neuron's own events, and its own end."""
    async with async_sdk(native) as client, client.responses.stream(**ASK) as events:
        kinds = [event.type async for event in events]
        response = await events.get_final_response()

    assert kinds[-1] == "response.completed"
    assert "Tbilisi" in response.output_text


async def test_native_stream_that_breaks_raises_in_the_sdk(native, beast):
    """Because of the one event that cortex adds."""
    beast.faults.add(faults.Drop(after=3))
    async with async_sdk(native) as client:
        with pytest.raises(openai.APIError, match="in the middle of its response"):
            async with client.responses.stream(**ASK) as events:
                await events.get_final_response()


async def test_abort_of_a_native_stream_stops_the_neuron(native, beast):
    """As of any other."""
    beast.speed = 2
    async with async_sdk(native) as client:
        stream = await client.responses.create(model=SMALL, input="Write 4000 words", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await until(lambda: beast.cancelled)
        await until(lambda: not native.gateway.request_log.live)
    assert_idle(native.gateway.fleet)


async def test_usage_of_native_answers_is_counted(native):
    """Whole and streamed, from this API's names for tokens."""
    async with async_sdk(native) as client:
        response = await client.responses.create(**ASK)
        async with client.responses.stream(**ASK) as events:
            streamed = await events.get_final_response()
        await until(lambda: not native.gateway.request_log.live)
    exposed = native.gateway.metrics.expose().decode()

    prompt = response.usage.input_tokens + streamed.usage.input_tokens
    completion = response.usage.output_tokens + streamed.usage.output_tokens
    assert f'cortex_prompt_tokens_total{{model="{SMALL}",node="beast"}} {prompt}.0' in exposed
    assert f'cortex_completion_tokens_total{{model="{SMALL}",node="beast"}} {completion}.0' in exposed


async def test_endpoints_for_stored_responses_are_404(cortex):
    """Nothing is stored, so nothing can be fetched."""
    async with async_sdk(cortex) as client:
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError):
            await client.responses.input_tokens.count(**ASK)
