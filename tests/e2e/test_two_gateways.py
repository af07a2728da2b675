"""A gateway as a backend of another: two in a row behave like one, and nothing is lost between them."""

import json
import re
from contextlib import asynccontextmanager

import anthropic
import httpx
import pytest
import trio
from fakes.engine import counted
from fakes.fleets import assert_idle
from fakes.patience import SAFETY_NET_S, best_of, measured, until
from fakes.running import LARGE, PROBE, SMALL, running_gateway
from fakes.stepwise import CHAT, disconnect_after_a_word, read_word_by_word, stepwise

from gateway.config.load import load
from gateway.config.settings import NeuronSettings
from neuron.simulated import faults

OUTER_TOML = '[aliases]\n"outer/small" = "helexa/small"\n'


def engine_table(folder, url):
    """The table of docs/engines.md for another cortex."""
    config = folder / "cortex.toml"
    config.write_text(f'[[neurons]]\nname = "site-b"\nendpoint = "{url}"\nkind = "openai"\nengine = "cortex"\n')
    return load(config, {}).settings.neurons


@asynccontextmanager
async def in_front_of(folder, inner):
    outside = folder / "outer"
    outside.mkdir()
    backends = engine_table(outside, inner.url)
    async with running_gateway(outside, [], models_toml=OUTER_TOML, backends=backends) as outer:
        yield outer


@pytest.fixture
async def outer(tmp_path, cortex):
    async with in_front_of(tmp_path, cortex) as running:
        yield running


@pytest.fixture
async def far(outer):
    async with httpx.AsyncClient(base_url=outer.url, trust_env=False, timeout=60) as client:
        yield client


@asynccontextmanager
async def gateways_in_front_of_an_engine(tmp_path):
    """Two gateways in front of an engine that sends one word at a time."""
    async with stepwise() as (engine, url):
        backend = NeuronSettings("engine", url, kind="openai")
        async with (
            running_gateway(tmp_path, [], models_toml="", backends=(backend,)) as inner,
            in_front_of(tmp_path, inner) as outer,
        ):
            yield engine, outer


async def test_gateway_that_is_its_own_neuron_under_another_name_is_noticed(cortex):
    """The neuron is down from the first poll, and status says why. No name is resolved for this."""
    port = cortex.url.rpartition(":")[2]
    itself = NeuronSettings("me", f"http://localhost:{port}", kind="openai", engine="cortex")
    gateway = cortex.gateway
    gateway.membership.apply([*(node.settings for node in gateway.fleet.nodes.values()), itself])
    await until(lambda: gateway.fleet.nodes["me"].failure is not None)
    node = gateway.fleet.nodes["me"]
    assert (node.healthy, node.failure) == (
        False,
        "409: this neuron is the gateway that polls it: remove it from [[neurons]]",
    )
    assert not node.models
    async with httpx.AsyncClient(base_url=cortex.url, trust_env=False, timeout=SAFETY_NET_S) as client:
        other = await client.get("/v1/models", headers={"x-cortex-polled-by": "another"})
    assert other.status_code == 200


def a_question(model="outer/small", **more):
    return {"model": model, "messages": PROBE, **more}


async def test_stream_through_both_arrives_word_by_word(tmp_path):
    """The client has each word before the engine makes the next."""
    async with gateways_in_front_of_an_engine(tmp_path) as (engine, outer):
        assert await read_word_by_word(engine, outer.port, SMALL) == b"".join(engine.words)


async def test_engine_behind_both_sees_the_client_disconnect(tmp_path):
    """And neither gateway keeps anything of it."""
    async with gateways_in_front_of_an_engine(tmp_path) as (engine, outer):
        await disconnect_after_a_word(engine, outer.port, SMALL)
        await until(lambda: not outer.gateway.request_log.live)
        assert_idle(outer.gateway.fleet)


@measured
async def test_engine_behind_both_sees_the_client_disconnect_within_200_ms(tmp_path):
    """A GPU must not compute for a disconnected client, however long the chain."""
    async with gateways_in_front_of_an_engine(tmp_path) as (engine, outer):
        await best_of(lambda: disconnect_after_a_word(engine, outer.port, SMALL), 0.2)


async def test_alias_of_the_inner_gateway_is_a_model_of_the_outer_one(cortex, beast, outer, far):
    """Listed, requested by its own name, and may itself have an alias; the neuron gets the name that it knows."""
    listed = {entry["id"]: entry for entry in (await far.get("/v1/models")).json()["data"]}
    by_name = await far.post(CHAT, json=a_question("helexa/large"))
    by_alias = await far.post(CHAT, json=a_question())

    assert {"outer/small", "helexa/small", "helexa/large", SMALL, LARGE} <= set(listed)
    assert "helexa/dead" not in listed
    assert listed["outer/small"]["alias_of"] == "helexa/small"
    assert listed["helexa/small"]["limit"] == {"context": 32768, "output": 8192}
    assert [received.model for received in beast.requests] == [LARGE, SMALL]
    assert "Tbilisi" in by_name.json()["choices"][0]["message"]["content"]
    response_headers = by_alias.headers
    assert (response_headers["x-cortex-alias"], response_headers["x-cortex-model"]) == ("outer/small", "helexa/small")
    assert response_headers.get_list("x-cortex-node") == ["site-b"]
    assert response_headers.get_list("x-request-id") == [
        dict(beast.requests[1].headers)["x-request-id"],
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_usage_is_counted_by_both(cortex, outer, far, stream):
    """The same numbers, each under its own name for the model."""
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await far.post(CHAT, json=a_question(**more))
    last = [part for part in answer.text.split("\n\n") if '"usage"' in part][-1].removeprefix("data: ")
    tokens = json.loads(last)["usage"]["completion_tokens"]

    sample = 'cortex_completion_tokens_total{{model="{}",node="{}"}} {}.0'
    await counted(outer.gateway, sample.format("helexa/small", "site-b", tokens))
    await counted(cortex.gateway, sample.format(SMALL, "beast", tokens))


async def test_refusal_of_the_neuron_reaches_the_client_with_its_retry_after(beast, far):
    """Status, message and Retry-After, as with one gateway."""
    beast.faults.add(faults.HttpError(status=503, text="model is full", retry_after_s=7))
    answer = await far.post(CHAT, json=a_question())

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json()["error"]["message"] == "model is full"


async def test_error_of_the_inner_gateway_keeps_its_code(cortex, beast, far):
    """In the same envelope."""
    beast.faults.add(faults.Refuse())
    answer = await far.post(CHAT, json=a_question())

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_connection_error"


async def test_stream_that_breaks_ends_in_one_error_event(beast, far):
    """Not in one of each gateway, and in no `[DONE]`."""
    beast.faults.add(faults.Drop(after=3))
    answer = await far.post(CHAT, json=a_question(stream=True))

    assert answer.text.count('"error"') == 1
    assert '"code":"upstream_connection_error"' in answer.text
    assert "[DONE]" not in answer.text


async def test_other_dialects_are_translated_only_by_the_inner_gateway(beast, outer, far):
    """A cortex speaks every dialect, so a request stays in its own dialect as far as possible."""

    def send_request():
        with anthropic.Anthropic(base_url=outer.url, api_key="k", max_retries=0) as sdk:
            return sdk.messages.create(model="outer/small", max_tokens=64, messages=PROBE)

    message = await trio.to_thread.run_sync(send_request)
    counting = {"model": "outer/small", "messages": PROBE}
    count = await far.post("/v1/messages/count_tokens", json=counting, headers={"anthropic-version": "2023-06-01"})
    response = await far.post("/v1/responses", json={"model": "outer/small", "input": PROBE[0]["content"]})

    assert "Tbilisi" in message.content[0].text
    assert re.fullmatch("msg_[0-9a-f]{24}", message.id)
    assert count.headers["x-cortex-token-count"] == "estimate"
    assert response.json()["object"] == "response"
    assert [received.path for received in beast.requests] == [CHAT] * 2
