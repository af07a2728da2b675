"""A gateway in front of the daemon: the token, the engine's own name, dialects, and a model that crashes."""

from __future__ import annotations

from contextlib import asynccontextmanager

import httpx
import trio
from fakes.agents_host import engine_table, model, running_agent
from fakes.patience import SAFETY_NET_S, until
from fakes.running import running_gateway

from gateway.config.settings import NeuronSettings

CHAT = "/v1/chat/completions"
MODELS = """
[aliases]
tier = "org/m"

[[models]]
id = "org/m"
harness = "fake"
"""


@asynccontextmanager
async def gateway_over(folder, text: str, *, token: str | None = None, models_toml: str = MODELS):
    (folder / "neuron").mkdir()
    async with running_agent(folder / "neuron", text, token=token) as agent:
        backend = NeuronSettings("host", agent.url, token=token)
        async with (
            running_gateway(folder, [], models_toml=models_toml, backends=(backend,)) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=SAFETY_NET_S) as client,
        ):
            yield agent, running, client


def chat(**keys: object) -> dict[str, object]:
    return {"model": "tier", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, **keys}


FORWARDING = '[api]\nlisten = "0.0.0.0:0"\ntoken = "secret"\n'


async def test_cold_load_through_a_neuron_with_a_token(tmp_path) -> None:
    """Polls, the load and requests carry the token; the engine does not get it."""
    async with gateway_over(tmp_path, FORWARDING + engine_table() + model("org/m"), token="secret") as (_, _, client):
        answer = await client.post(CHAT, json=chat())

        assert answer.status_code == 200
        assert answer.headers["x-cortex-node"] == "host"
        echo = await client.post("/v1/embeddings", json={"model": "tier", "input": "hi"})
        assert "authorization" not in {name.lower() for name in echo.json()["seen"]}


async def test_engine_with_another_name_for_the_model_gets_its_own(tmp_path) -> None:
    """Directly and through the forwarder."""
    for name, prefix, token in (("direct", "", None), ("forwarded", FORWARDING, "secret")):
        folder = tmp_path / name
        folder.mkdir()
        text = prefix + engine_table() + model("org/m", "--serves", "engine-name")
        async with gateway_over(folder, text, token=token) as (_, _, client):
            assert (await client.post(CHAT, json=chat())).status_code == 200
            stream = await client.post(CHAT, json=chat(stream=True))
            assert stream.text.rstrip().endswith("[DONE]")


async def test_status_and_reason_reach_the_gateway(tmp_path) -> None:
    async with gateway_over(tmp_path, engine_table() + model("org/m")) as (agent, running, client):
        await client.post(CHAT, json=chat())
        fleet = running.gateway.fleet
        assert fleet.nodes["host"].models["org/m"].route.backend.ask_usage  # llama.cpp's, by the reported kind
        assert fleet.nodes["host"].models["org/m"].route.backend.dialects == {"openai"}
        await agent.kill_engine()
        await until(lambda: fleet.nodes["host"].models["org/m"].status == "recovering")
        report = fleet.nodes["host"].models["org/m"].report
        assert report is not None
        assert "SIGKILL" in (report.reason or "")
        await until(lambda: fleet.nodes["host"].models["org/m"].status == "loaded")
        assert (await client.post(CHAT, json=chat())).status_code == 200


async def test_messages_are_passed_to_an_engine_that_speaks_them(tmp_path) -> None:
    """VLLM's dialects are respected; the fake engine answers any path as a chat completion."""
    text = engine_table(kind="vllm", ready="/health")
    async with gateway_over(tmp_path, text + model("org/m")) as (_, running, client):
        await client.post(CHAT, json=chat())
        assert running.gateway.fleet.nodes["host"].models["org/m"].route.backend.dialects == {
            "openai", "anthropic", "responses",
        }  # fmt: skip
        answer = await client.post(
            "/v1/messages", json=chat(), headers={"anthropic-version": "2023-06-01", "x-api-key": "k"}
        )
        assert answer.json()["choices"]  # untranslated


async def test_sleeper_is_woken_by_a_request(tmp_path) -> None:
    """An unload at the gateway puts it to sleep; one engine process serves before and after."""
    text = engine_table(kind="vllm") + model("org/m", sleep=1)
    async with gateway_over(tmp_path, text) as (agent, running, client):
        assert (await client.post(CHAT, json=chat())).status_code == 200
        pids = await agent.engine_processes()
        gateway = running.gateway
        await until(lambda: gateway.fleet.nodes["host"].models["org/m"].report.in_flight == 0)
        gateway.scheduler.unload("host", "org/m")
        await until(lambda: (found := gateway.fleet.nodes["host"].models.get("org/m")) and found.status == "asleep")
        report = gateway.fleet.nodes["host"].models["org/m"].report
        assert report is not None
        assert (report.asleep_level, report.reason) == (1, "its memory was wanted")

        assert (await client.post(CHAT, json=chat())).status_code == 200
        assert await agent.engine_processes() == pids
        assert gateway.scheduler.times.estimate_s("host", "org/m", wakes=True) is not None


async def test_poisoned_model_is_refused_with_the_reason_until_an_operator_unloads_it(tmp_path) -> None:
    async with gateway_over(tmp_path, engine_table(max_restarts=0) + model("org/m")) as (agent, running, client):
        assert (await client.post(CHAT, json=chat())).status_code == 200
        await agent.kill_engine()
        gateway = running.gateway
        await until(lambda: gateway.fleet.nodes["host"].models["org/m"].status == "poisoned")
        refused = await client.post(CHAT, json=chat())
        assert refused.status_code == 503
        assert "poisoned on host (crashed 1 times within 600 s" in refused.json()["error"]["message"]

        gateway.scheduler.unload("host", "org/m")
        with trio.fail_after(SAFETY_NET_S):
            while (await client.post(CHAT, json=chat())).status_code != 200:
                await trio.sleep(0.05)


async def test_wrong_token_makes_the_neuron_count_as_down(tmp_path) -> None:
    (tmp_path / "neuron").mkdir()
    async with running_agent(
        tmp_path / "neuron", FORWARDING + engine_table() + model("org/m"), token="secret"
    ) as agent:
        backend = NeuronSettings("host", agent.url, token="other")
        async with running_gateway(tmp_path, [], models_toml=MODELS, backends=(backend,)) as running:
            node = running.gateway.fleet.nodes["host"]
            with trio.fail_after(SAFETY_NET_S):
                while node.failure is None:
                    await trio.sleep(0.01)
            assert "token is missing or wrong" in node.failure
