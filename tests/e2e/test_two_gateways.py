"""A gateway as a backend of another: what holds for one holds for both in a row, and nothing is lost in between."""

import json
from contextlib import asynccontextmanager

import anthropic
import httpx
import pytest
import trio
from fakes.engine import counted
from fakes.fleets import assert_idle
from fakes.patience import best_of, measured, until
from fakes.running import LARGE, PROBE, SMALL, running_gateway
from fakes.stepwise import CHAT, leave_after_a_word, read_word_by_word, stepwise

from gateway.config.load import load
from gateway.config.settings import NeuronSettings
from neuron.simulated import faults

OUTER_TOML = '[aliases]\n"outer/small" = "helexa/small"\n'


def as_operators_write_it(folder, url):
    """The table of docs/engines.md for another cortex."""
    config = folder / "cortex.toml"
    config.write_text(f'[[neurons]]\nname = "site-b"\nendpoint = "{url}"\nkind = "openai"\nengine = "cortex"\n')
    return load(config, {}).settings.neurons


@asynccontextmanager
async def in_front_of(folder, inner):
    outside = folder / "outer"
    outside.mkdir()
    backends = as_operators_write_it(outside, inner.url)
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
async def before_an_engine(tmp_path):
    """Two gateways in front of an engine that speaks word by word."""
    async with stepwise() as (engine, url):
        backend = NeuronSettings("engine", url, kind="openai")
        async with (
            running_gateway(tmp_path, [], models_toml="", backends=(backend,)) as inner,
            in_front_of(tmp_path, inner) as outer,
        ):
            yield engine, outer


def a_question(model="outer/small", **more):
    return {"model": model, "messages": PROBE, **more}


async def test_stream_through_both_arrives_word_by_word(tmp_path):
    """Each is with the client before the next is made."""
    async with before_an_engine(tmp_path) as (engine, outer):
        assert await read_word_by_word(engine, outer.port, SMALL) == b"".join(engine.words)


async def test_engine_behind_both_sees_the_client_leave(tmp_path):
    """And neither gateway keeps anything of it."""
    async with before_an_engine(tmp_path) as (engine, outer):
        await leave_after_a_word(engine, outer.port, SMALL)
        await until(lambda: not outer.gateway.request_log.live)
        assert_idle(outer.gateway.fleet)


@measured
async def test_engine_behind_both_sees_the_client_leave_within_200_ms(tmp_path):
    """A GPU is not to compute for nobody, however long the chain."""
    async with before_an_engine(tmp_path) as (engine, outer):
        await best_of(lambda: leave_after_a_word(engine, outer.port, SMALL), 0.2)


async def test_alias_of_the_inner_one_is_a_model_of_the_outer_one(cortex, beast, outer, far):
    """Listed, asked for by its own name, and may itself have an alias; the neuron gets what it knows."""
    listed = {entry["id"]: entry for entry in (await far.get("/v1/models")).json()["data"]}
    by_name = await far.post(CHAT, json=a_question("helexa/large"))
    by_alias = await far.post(CHAT, json=a_question())

    assert {"outer/small", "helexa/small", "helexa/large", SMALL, LARGE} <= set(listed)
    assert "helexa/dead" not in listed
    assert listed["outer/small"]["alias_of"] == "helexa/small"
    assert listed["helexa/small"]["limit"] == {"context": 32768, "output": 8192}
    assert [received.model for received in beast.requests] == [LARGE, SMALL]
    assert "Tbilisi" in by_name.json()["choices"][0]["message"]["content"]
    told = by_alias.headers
    assert (told["x-cortex-alias"], told["x-cortex-model"]) == ("outer/small", "helexa/small")
    assert told.get_list("x-cortex-node") == ["site-b"]
    assert told.get_list("x-request-id") == [
        dict(beast.requests[1].headers)["x-request-id"],
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_usage_is_accounted_by_both(cortex, outer, far, stream):
    """The same numbers, each under the name it knows the model by."""
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await far.post(CHAT, json=a_question(**more))
    last = [part for part in answer.text.split("\n\n") if '"usage"' in part][-1].removeprefix("data: ")
    tokens = json.loads(last)["usage"]["completion_tokens"]

    sample = 'cortex_completion_tokens_total{{model="{}",node="{}"}} {}.0'
    await counted(outer.gateway, sample.format("helexa/small", "site-b", tokens))
    await counted(cortex.gateway, sample.format(SMALL, "beast", tokens))


async def test_no_of_the_neuron_reaches_the_client_with_its_retry_after(beast, far):
    """Status, words and patience, as if there were one gateway."""
    beast.faults.add(faults.HttpError(status=503, text="model is full", retry_after_s=7))
    answer = await far.post(CHAT, json=a_question())

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json()["error"]["message"] == "model is full"


async def test_error_of_the_inner_one_keeps_its_code(cortex, beast, far):
    """In the envelope it was put into."""
    beast.faults.add(faults.Refuse())
    answer = await far.post(CHAT, json=a_question())

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_connection_error"


async def test_stream_that_breaks_off_ends_in_one_error_event(beast, far):
    """Not in one of each gateway, and in no `[DONE]`."""
    beast.faults.add(faults.Drop(after=3))
    answer = await far.post(CHAT, json=a_question(stream=True))

    assert answer.text.count('"error"') == 1
    assert '"code":"upstream_connection_error"' in answer.text
    assert "[DONE]" not in answer.text


async def test_other_dialects_are_translated_once_and_at_the_inner_one(beast, outer, far):
    """A cortex is known to speak all of ours, so what a client says of its own goes as far as it can."""

    def ask():
        with anthropic.Anthropic(base_url=outer.url, api_key="k", max_retries=0) as sdk:
            return sdk.messages.create(model="outer/small", max_tokens=64, messages=PROBE)

    message = await trio.to_thread.run_sync(ask)
    counting = {"model": "outer/small", "messages": PROBE}
    count = await far.post("/v1/messages/count_tokens", json=counting, headers={"anthropic-version": "2023-06-01"})
    response = await far.post("/v1/responses", json={"model": "outer/small", "input": PROBE[0]["content"]})

    assert "Tbilisi" in message.content[0].text
    assert message.id == f"msg_{dict(beast.requests[0].headers)['x-request-id']}"
    assert count.headers["x-cortex-token-count"] == "estimate"
    assert response.json()["object"] == "response"
    assert [received.path for received in beast.requests] == [CHAT] * 2
