"""A real engine behind the gateway: llama.cpp's HTTP server, from the wheel `xllamacpp`. Runs with `pytest --real`."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
import tiny_model
import trio
from fakes.engine import counted, start_gateway
from fakes.patience import SAFETY_NET_S, until
from fakes.running import settled
from llamacpp import KEY, running

from gateway.config.settings import NeuronSettings

CHAT = "/v1/chat/completions"
LONG = 20_000  # tokens: minutes of this model, because the engine parses all its output again at every token
FOREVER = {"ignore_eos": True, "temperature": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.make(path)
    assert path.stat().st_size < 1_000_000
    return path


@pytest.fixture(scope="module")
def engine(model):
    with running(model, "chat") as url:
        yield url


@pytest.fixture(scope="module")
def embedder(model):
    with running(model, "embeddings") as url:
        yield url


@asynccontextmanager
async def a_gateway_before(url, **keys):
    """The gateway, and a client of it."""
    async with trio.open_nursery() as nursery:
        settings = NeuronSettings("real", url, "openai", engine="llamacpp", api_key=KEY, **keys)
        gateway, base_url = await start_gateway(nursery, [settings])
        async with httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False) as client:
            yield gateway, client
        nursery.cancel_scope.cancel()


def question(max_tokens=8, **more):
    return {"model": "Tiny/Random", "messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens} | more


def chunks(text):
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


async def busy_slots(url):
    """The number of requests in progress, as the engine reports it."""
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=SAFETY_NET_S) as client:
        return sum(slot["is_processing"] for slot in (await client.get("/slots")).json())


async def test_models_are_listed_under_the_served_id_with_their_context(engine):
    """`serves` sets the name that clients use; the context is that of one slot."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (_, client):
        (entry,) = (await client.get("/v1/models")).json()["data"]

    assert (entry["id"], entry["loaded"], entry["limit"]) == ("Tiny/Random", True, {"context": 32768})


async def test_chat_answers_whole(engine):
    """Key, name and path are right, or it would be a 401 or a 404."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (_, client):
        answer = await client.post(CHAT, json=question())

    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= 8
    assert answer.json()["object"] == "chat.completion"


async def test_chat_streams_to_its_own_end(engine):
    """Role chunk, deltas, usage, [DONE]: all of them the engine's."""
    body = question(20, stream=True, stream_options={"include_usage": True}, **FOREVER)
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (gateway, client):
        answer = await client.post(CHAT, json=body)
        await counted(gateway, 'cortex_completion_tokens_total{model="Tiny/Random",node="real"} 20.0')

    *events, done = chunks(answer.text)
    assert answer.headers["content-type"] == "text/event-stream"
    assert done == "[DONE]"
    assert json.loads(events[-1])["usage"]["completion_tokens"] == 20


async def test_usage_is_known_although_the_client_did_not_request_it(engine):
    """The gateway requests it and removes the chunk without choices: the client gets what the engine alone sends."""
    body = question(20, stream=True, seed=1, **FOREVER)
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (gateway, client):
        events = chunks((await client.post(CHAT, json=body)).text)
        await counted(gateway, 'cortex_completion_tokens_total{model="Tiny/Random",node="real"} 20.0')
        metrics = gateway.metrics.expose().decode()
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}, ask_usage=False) as (gateway, client):
        unasked = chunks((await client.post(CHAT, json=body)).text)
        await counted(gateway, 'cortex_estimated_completion_tokens_total{model="Tiny/Random",node="real"}')

    assert 'cortex_prompt_tokens_total{model="Tiny/Random",node="real"}' in metrics
    assert "cortex_estimated" not in metrics
    assert events[-1] == "[DONE]"
    assert all(json.loads(chunk)["choices"] for chunk in events[:-1])
    assert len(events) == len(unasked)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenize_and_detokenize_of_a_real_engine(engine, prefix):
    """This engine has its tokenizer at the root, with other fields than vLLM; both pass."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (_, client):
        there = await client.post(f"{prefix}/tokenize", json={"model": "Tiny/Random", "content": "Tbilisi"})
        tokens = there.json()["tokens"]
        back = await client.post(f"{prefix}/detokenize", json={"model": "Tiny/Random", "tokens": tokens})

    assert there.status_code == 200
    assert back.json()["content"].strip() == "Tbilisi"


async def test_engine_is_free_when_a_client_disconnects_in_mid_stream(engine):
    """It does not generate the remaining twenty thousand tokens."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (gateway, client):
        async with client.stream("POST", CHAT, json=question(LONG, stream=True, **FOREVER)) as answer:
            with trio.CancelScope() as enough:
                async for _ in answer.aiter_raw():
                    at_work = await busy_slots(engine)
                    enough.cancel()
        with trio.fail_after(SAFETY_NET_S):
            while await busy_slots(engine):
                await trio.sleep(0.01)
        await settled(gateway)

    assert at_work == 1


async def test_client_that_disconnects_before_the_answer_costs_others_only_a_slot(engine):
    """Without a stream this engine does not notice the disconnect, and continues (measured, also without cortex)."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (gateway, client):
        with trio.move_on_after(0.1):
            await client.post(CHAT, json=question(1500, **FOREVER))
        await until(lambda: not gateway.fleet.leases)
        assert (await client.post(CHAT, json=question())).status_code == 200


async def test_two_hundred_requests_in_a_row(engine):
    """It closes after every stream, after a hundred requests, after every error: no client notices."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (gateway, client):
        for number in range(200):
            answer = await client.post(CHAT, json=question(3, stream=number % 3 != 0))
            assert answer.status_code == 200, (number, answer.text)
            assert number % 3 == 0 or chunks(answer.text)[-1] == "[DONE]"
            if number % 20 == 0:
                assert (await client.post(CHAT, json=question(messages=7))).status_code >= 400
        await settled(gateway)


async def test_twenty_clients_at_once(engine):
    """Two slots, twenty requests: the engine queues, and refuses none."""
    statuses = []
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (gateway, client):

        async def ask():
            statuses.append((await client.post(CHAT, json=question(5, stream=True))).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        await settled(gateway)

    assert statuses == [200] * 20


async def test_error_of_the_engine_passes_with_its_numeric_code(engine):
    """`code` is a number there; cortex does not normalise what it passes through."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (_, client):
        answer = await client.post(CHAT, json={"model": "Tiny/Random"})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400


async def test_openai_sdk_against_a_real_engine(engine):
    """The official client, through cortex, to a real engine."""
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (_, client):

        def ask():
            with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="unused", max_retries=0) as sdk:
                stream = sdk.chat.completions.create(**question(10), stream=True)
                finish = [choice.finish_reason for chunk in stream for choice in chunk.choices]
                return finish[-1], sdk.models.retrieve("Tiny/Random").id

        finish_reason, retrieved = await trio.to_thread.run_sync(ask)

    assert finish_reason in {"stop", "length"}
    assert retrieved == "Tiny/Random"


async def test_embeddings_of_a_real_engine(embedder):
    """Two texts, two vectors, of the model's width."""
    async with a_gateway_before(embedder, serves={"Tiny/Random": "tiny"}) as (_, client):
        answer = await client.post("/v1/embeddings", json={"model": "Tiny/Random", "input": ["a", "b"]})

    assert [len(entry["embedding"]) for entry in answer.json()["data"]] == [tiny_model.WIDTH] * 2


async def test_responses_are_translated_so_that_the_sdk_can_read_them(engine):
    """The engine's own `/v1/responses` has no event numbers and no indexes: the SDK stops at its first text."""
    body = {"model": "Tiny/Random", "input": "hi", "max_output_tokens": 5, "temperature": 1}
    async with a_gateway_before(engine, serves={"Tiny/Random": "tiny"}) as (_, client):
        sdk = openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="k", max_retries=0)
        async with sdk, sdk.responses.stream(**body) as stream:
            events = [event async for event in stream]
        whole = await client.post("/v1/responses", json=body)

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output[0].type == "message"
    assert events[-1].response.usage.output_tokens <= 5
    assert whole.json()["usage"]["output_tokens"] <= 5
