"""The forwarder in front of engines: what it passes, what it counts, and who hears of an end. On real sockets."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fakes.agents_host import RunningAgent, engine_table, model, running_agent
from fakes.patience import SAFETY_NET_S

from neuron.agent.api.forwarder import is_inference_path

CHAT = "/v1/chat/completions"
LONG = 100_000


@asynccontextmanager
async def forwarding(folder, *args: str, **keys: object):
    """A neuron beyond loopback with the model `org/m` loaded; and the path prefix of its inference URL."""
    text = '[api]\nlisten = "0.0.0.0:0"\ntoken = "t"\n' + engine_table(**keys) + model("org/m", *args)
    async with running_agent(folder, text, token="t") as agent:
        await agent.load("org/m")
        yield agent, "/engines/org%2Fm"


def chat(max_tokens: int = 3, **keys: object) -> dict[str, object]:
    return {"model": "org/m", "messages": [], "max_tokens": max_tokens, **keys}


async def in_flight(agent: RunningAgent) -> int:
    return (await agent.client.get("/health")).json()["models"][0]["in_flight"]


async def in_flight_is(agent: RunningAgent, count: int) -> None:
    with trio.fail_after(SAFETY_NET_S):
        while await in_flight(agent) != count:
            await trio.sleep(0.01)


async def test_inference_url_is_the_forwarder(tmp_path) -> None:
    async with forwarding(tmp_path) as (agent, prefix):
        assert await agent.endpoint("org/m") == agent.url.replace("127.0.0.1", "localhost") + prefix


async def test_advertised_host_is_in_the_url(tmp_path) -> None:
    text = '[api]\nlisten = "0.0.0.0:0"\ntoken = "t"\nadvertise = "gpu-1.lan"\n' + engine_table() + model("m")
    async with running_agent(tmp_path, text, token="t") as agent:
        await agent.load("m")
        assert (await agent.endpoint("m")).startswith("http://gpu-1.lan:")


async def test_request_and_answer_pass_as_they_are(tmp_path) -> None:
    """But for headers of one connection, and the neuron's token."""
    async with forwarding(tmp_path) as (agent, prefix):
        headers = {"x-request-id": "r-1", "connection": "x-hop", "x-hop": "1", "content-type": "application/json"}
        body = json.dumps(chat(4)).replace(" ", "  ")
        answer = await agent.client.post(prefix + CHAT, content=body, headers=headers)

        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "token " * 4
        seen = {name.lower(): value for name, value in answer.json()["seen"].items()}
        assert seen["x-request-id"] == "r-1"
        assert seen["content-length"] == str(len(body))
        assert not {"authorization", "x-hop", "connection"} & seen.keys()
        error = await agent.client.post(prefix + CHAT, json=chat() | {"model": "zzz"})
        assert (error.status_code, error.json()) == (400, {"error": {"message": "unknown model zzz"}})


@pytest.mark.parametrize("size", [10, 2_000_000])
async def test_bodies_of_any_size_and_framing(tmp_path, size: int) -> None:
    """Large and chunked ones are sent while they arrive."""
    async with forwarding(tmp_path) as (agent, prefix):
        body = json.dumps(chat(padding="x" * size)).encode()
        assert (await agent.client.post(prefix + CHAT, content=body)).status_code == 200


class Pieces:
    """A body without a length, in two pieces."""

    def __init__(self, data: bytes) -> None:
        self.pieces = [data[:10], data[10:]]

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        if not self.pieces:
            raise StopAsyncIteration
        await trio.sleep(0.01)
        return self.pieces.pop(0)


async def test_chunked_body_reaches_the_engine_by_the_model_of_the_body(tmp_path) -> None:
    async with forwarding(tmp_path) as (agent, _):
        body = json.dumps(chat()).encode()
        assert (await agent.client.post(CHAT, content=Pieces(body))).status_code == 200


@pytest.mark.parametrize("path", ["/sleep", "/v1/models", "/metrics", "/slots", "/v1/../sleep", "/collective_rpc"])
async def test_only_inference_paths_pass(tmp_path, path: str) -> None:
    async with forwarding(tmp_path) as (agent, prefix):
        answer = await agent.client.post(prefix + path.replace("..", "%2e%2e"), json={})
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"


def test_paths_of_the_forwarder() -> None:
    assert is_inference_path("/engines/org/m/v1/chat/completions")
    assert is_inference_path("/v1/messages")
    assert not is_inference_path("/engines/org/m/logs")
    assert not is_inference_path("/v1/models")


async def test_stream_is_passed_as_it_comes_and_counted(tmp_path) -> None:
    async with forwarding(tmp_path, "--token-seconds", "0.02") as (agent, prefix):
        pieces = 0
        async with agent.client.stream("POST", prefix + CHAT, json=chat(20, stream=True)) as answer:
            assert await in_flight(agent) == 1
            async for _ in answer.aiter_raw():
                pieces += 1
        assert pieces >= 5
        await in_flight_is(agent, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_frees_the_engine(tmp_path, stream: bool) -> None:
    async with forwarding(tmp_path, "--token-seconds", "0.01") as (agent, prefix):
        with trio.move_on_after(0.5):
            await agent.client.post(prefix + CHAT, json=chat(LONG if stream else 300, stream=stream))
        await in_flight_is(agent, 0)
        assert (await agent.unload("org/m")).status_code == 200


async def test_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(tmp_path) -> None:
    async with forwarding(tmp_path) as (agent, prefix):
        host, port = agent.url.removeprefix("http://").split(":")
        stream = await trio.open_tcp_stream(host, int(port))
        head = f"POST {prefix}{CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\ncontent-length: 9999999\r\n\r\n"
        await stream.send_all(head.encode() + b"{")
        await in_flight_is(agent, 1)
        await stream.aclose()
        await in_flight_is(agent, 0)


async def test_engine_that_dies_breaks_the_stream_visibly(tmp_path) -> None:
    """A client must not take a part of an answer for the whole."""
    async with forwarding(tmp_path, "--token-seconds", "0.02") as (agent, prefix):
        with pytest.raises(httpx.RemoteProtocolError):
            async with agent.client.stream("POST", prefix + CHAT, json=chat(LONG, stream=True)) as answer:
                first = True
                async for _ in answer.aiter_raw():
                    if first:
                        first = False
                        await agent.kill_engine()
        await agent.status_is("org/m", "recovering")
        await agent.status_is("org/m", "loaded")
        assert (await agent.client.post(prefix + CHAT, json=chat())).status_code == 200


async def test_engine_that_dies_before_its_answer_is_503_or_not_loaded(tmp_path) -> None:
    async with forwarding(tmp_path, "--token-seconds", "0.05") as (agent, prefix):
        answers = []

        async def ask() -> None:
            answers.append(await agent.client.post(prefix + CHAT, json=chat(1000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await in_flight_is(agent, 1)
            await trio.sleep(0.1)
            await agent.kill_engine()
        (answer,) = answers
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json().keys() == {"error", "code"}


async def test_model_that_is_not_loaded_is_404(tmp_path) -> None:
    async with forwarding(tmp_path) as (agent, prefix):
        await agent.unload("org/m")
        answer = await agent.client.post(prefix + CHAT, json=chat())
        assert answer.status_code == 404
        assert answer.json()["error"] == "model 'org/m' not loaded on this neuron"


async def test_unload_waits_for_nobody_and_is_refused(tmp_path) -> None:
    async with forwarding(tmp_path, "--token-seconds", "0.02") as (agent, prefix):
        async with agent.client.stream("POST", prefix + CHAT, json=chat(LONG, stream=True)):
            refused = await agent.unload("org/m")
            assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
        await in_flight_is(agent, 0)
        assert (await agent.unload("org/m")).status_code == 200


async def test_many_clients_leave_no_count_behind(tmp_path) -> None:
    """Some leave early, some stay."""
    async with forwarding(tmp_path, "--token-seconds", "0.002") as (agent, prefix):

        async def ask(number: int) -> None:
            with trio.move_on_after(0.02 * (number % 7) if number % 2 else SAFETY_NET_S):
                await agent.client.post(prefix + CHAT, json=chat(20, stream=bool(number % 3)))

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(ask, number)
        await in_flight_is(agent, 0)
