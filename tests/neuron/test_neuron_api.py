"""The neuron API that gateways rely on: one suite, run against the simulated neuron and against the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx
import pytest
import trio
from fakes.agents_host import engine_table, model, running_agent
from fakes.patience import SAFETY_NET_S

from gateway.fleet.control.neuron_client import NeuronClient
from gateway.fleet.control.types import NeuronRefused
from neuron.simulated import PRESETS, SimNeuron
from neuron.simulated.fleet import neuron

CHAT = "/v1/chat/completions"
ENGINE_AND_MODELS = engine_table(kind="vllm") + model("org/one") + model("org/two") + model("org/sleeper", sleep=1)


@dataclass
class Target:
    """A neuron under test with three models of its own, none of them loaded. `sleeper` may sleep."""

    client: httpx.AsyncClient
    url: str
    harness: str
    first: str
    second: str
    sleeper: str

    async def load(self, model_id: str) -> httpx.Response:
        return await self.client.post("/models/load", json={"model_id": model_id, "harness": self.harness})

    async def ask(self, path: str, model_id: str, **keys: object) -> tuple[int, dict[str, object]]:
        answer = await self.client.post(path, json={"model_id": model_id, **keys})
        return answer.status_code, answer.json()

    async def status(self, model_id: str) -> object:
        entry = await self.entry(model_id)
        return None if entry is None else entry["status"]

    async def entry(self, model_id: str) -> dict[str, object] | None:
        entries = (await self.client.get("/models")).json()
        return next((entry for entry in entries if entry["id"] == model_id), None)


@asynccontextmanager
async def simulator(folder: object) -> AsyncIterator[Target]:
    models = [replace(model, sleep=int(model.id == "Qwen/Qwen3-14B")) for model in PRESETS.values()]
    simulated: SimNeuron = neuron("beast", [24576, 24576], [], models=models, speed=1000.0)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(simulated.serve)
        async with httpx.AsyncClient(base_url=url, timeout=SAFETY_NET_S, trust_env=False) as client:
            yield Target(client, url, "llamacpp", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B")
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def daemon(folder) -> AsyncIterator[Target]:
    async with running_agent(folder, ENGINE_AND_MODELS) as agent:
        yield Target(agent.client, agent.url, "fake", "org/one", "org/two", "org/sleeper")


@asynccontextmanager
async def forwarding_daemon(folder) -> AsyncIterator[Target]:
    """The same beyond loopback: with a token, and the forwarder before the engines."""
    text = '[api]\nlisten = "0.0.0.0:0"\ntoken = "t"\n' + ENGINE_AND_MODELS
    async with running_agent(folder, text, token="t") as agent:
        yield Target(agent.client, agent.url, "fake", "org/one", "org/two", "org/sleeper")


@pytest.fixture(params=[simulator, daemon, forwarding_daemon])
async def target(request, tmp_path) -> AsyncIterator[Target]:
    async with request.param(tmp_path) as found:
        yield found


async def test_discovery(target: Target) -> None:
    found = (await target.client.get("/discovery")).json()

    assert {"hostname", "os", "kernel", "cuda_version", "driver_version", "devices", "harnesses"} <= found.keys()
    assert target.harness in found["harnesses"]
    for device in found["devices"]:
        assert device.keys() == {"index", "name", "vram_total_mb", "compute_capability"}
        assert device["vram_total_mb"] > 0


async def test_health(target: Target) -> None:
    await target.load(target.first)
    health = (await target.client.get("/health")).json()

    assert 0 <= health["uptime_secs"] < SAFETY_NET_S
    for device in health["devices"]:
        assert {"index", "vram_used_mb", "vram_free_mb", "utilization_pct", "temp_c"} <= device.keys()
    activation = {"state": "ready", "pending": [], "in_progress": None, "completed": [], "failed": []}
    assert health["activation"] == activation
    (counters,) = health["models"]
    assert (counters["id"], counters["in_flight"], counters["queue_depth"]) == (target.first, 0, 0)


async def test_load_and_unload(target: Target) -> None:
    loaded = await target.load(target.first)
    assert (loaded.status_code, loaded.json()) == (200, {"status": "loaded"})
    entry = await target.entry(target.first)
    assert entry is not None
    assert (entry["status"], entry["harness"]) == ("loaded", target.harness)
    assert entry["devices"] == [0]
    assert isinstance(entry["vram_used_mb"], int)

    unloaded = await target.client.post("/models/unload", json={"model_id": target.first})
    assert (unloaded.status_code, unloaded.json()) == (200, {"status": "unloaded"})
    entry = await target.entry(target.first)
    assert entry is not None
    assert (entry["status"], entry["devices"], entry["vram_used_mb"]) == ("unloaded", [], None)


async def test_load_of_a_loaded_model_meets_its_goal(target: Target) -> None:
    await target.load(target.first)
    again = await target.load(target.first)

    assert again.status_code == 200 or "already loaded" in again.json()["error"]


async def test_two_models_at_once(target: Target) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.load, target.first)
        nursery.start_soon(target.load, target.second)

    assert {entry["id"] for entry in (await target.client.get("/models")).json() if entry["status"] == "loaded"} == {
        target.first,
        target.second,
    }


@pytest.mark.parametrize("body", [{"model_id": "no/such", "harness": "x"}, {}, {"model_id": 7}])
async def test_load_refused(target: Target, body: dict[str, object]) -> None:
    """Every failure of a load is a flat 400."""
    refused = await target.client.post("/models/load", json=body)

    assert refused.status_code == 400
    assert isinstance(refused.json()["error"], str)


@pytest.mark.parametrize(("body", "status"), [({}, 400), ({"model_id": "no/such"}, 404)])
async def test_unload_refused(target: Target, body: dict[str, str], status: int) -> None:
    refused = await target.client.post("/models/unload", json=body)

    assert refused.status_code == status
    assert isinstance(refused.json()["error"], str)


async def test_endpoint_takes_the_id_as_one_segment(target: Target) -> None:
    quoted = target.first.replace("/", "%2F")
    missing = await target.client.get(f"/models/{quoted}/endpoint")
    assert missing.status_code == 404
    assert missing.json()["error"] == f"model '{target.first}' not loaded"

    await target.load(target.first)
    url = (await target.client.get(f"/models/{quoted}/endpoint")).json()["url"]
    assert url.startswith("http://localhost:")
    answer = await target.client.post(
        url.replace("localhost", "127.0.0.1") + CHAT, json={"model": target.first, "messages": [], "max_tokens": 2}
    )
    assert answer.status_code == 200
    assert "choices" in answer.json()


@pytest.mark.parametrize("stream", [False, True])
async def test_inference_by_the_model_of_the_body(target: Target, stream: bool) -> None:
    body = {"model": target.first, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": stream}
    refused = await target.client.post(CHAT, json=body)
    assert refused.status_code == 404
    assert refused.json()["error"] == f"model '{target.first}' not loaded on this neuron"

    await target.load(target.first)
    answer = await target.client.post(CHAT, json=body)
    assert answer.status_code == 200
    if stream:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("POST", "/health", 405), ("GET", "/models/load", 405)]
)
async def test_wrong_path_or_method(target: Target, method: str, path: str, status: int) -> None:
    refused = await target.client.request(method, path)

    assert refused.status_code == status
    assert isinstance(refused.json()["error"], str)


async def test_version_and_capabilities_answer_or_are_unknown(target: Target) -> None:
    await target.load(target.first)
    for path in ("/version", f"/models/{target.first.replace('/', '%2F')}/capabilities"):
        assert (await target.client.get(path)).status_code in {200, 404}


# Sleep and wake .......................................................................................................


@pytest.mark.parametrize("level", [None, 1, 2])
async def test_sleep_and_wake(target: Target, level: int | None) -> None:
    """A sleeper is listed with its level, serves nothing, and serves again once it is woken."""
    await target.load(target.sleeper)
    assert await target.ask("/models/sleep", target.sleeper, level=level) == (200, {"status": "asleep"})
    entry = await target.entry(target.sleeper)
    assert entry is not None
    assert (entry["status"], entry["asleep_level"]) == ("asleep", level or 1)
    assert entry["devices"] == [0]
    assert "operator" in str(entry["reason"])
    assert await target.ask("/models/sleep", target.sleeper) == (200, {"status": "asleep"})
    body = {"model": target.sleeper, "messages": [], "max_tokens": 2}
    assert (await target.client.post(CHAT, json=body)).status_code == 404

    assert await target.ask("/models/wake", target.sleeper) == (200, {"status": "loaded"})
    assert await target.status(target.sleeper) == "loaded"
    assert (await target.client.post(CHAT, json=body)).status_code == 200
    assert await target.ask("/models/wake", target.sleeper) == (200, {"status": "loaded"})


async def test_unload_puts_a_model_to_sleep_that_may_and_a_second_one_unloads_it(target: Target) -> None:
    for _ in range(2):  # the second time, a load has woken it
        assert (await target.load(target.sleeper)).status_code == 200
        assert await target.ask("/models/unload", target.sleeper) == (200, {"status": "unloaded"})
        assert await target.status(target.sleeper) == "asleep"
    assert await target.ask("/models/unload", target.sleeper) == (200, {"status": "unloaded"})
    assert await target.status(target.sleeper) == "unloaded"


async def test_force_unloads_a_model_that_may_sleep(target: Target) -> None:
    await target.load(target.sleeper)
    await target.ask("/models/unload", target.sleeper, force=True)

    assert await target.status(target.sleeper) == "unloaded"


@pytest.mark.parametrize("path", ["/models/sleep", "/models/wake"])
async def test_sleep_and_wake_of_what_is_not_there(target: Target, path: str) -> None:
    for model_id in ("no/such", target.sleeper):
        status, body = await target.ask(path, model_id)
        assert (status, body["code"]) == (404, "not_found")
    assert (await target.client.post(path, json={})).status_code == 400


async def test_sleep_refused(target: Target) -> None:
    """A model that may not sleep, and a level that there is not."""
    await target.load(target.first)
    await target.load(target.sleeper)
    for model_id, level in ((target.first, None), (target.first, 1), (target.sleeper, 3)):
        status, body = await target.ask("/models/sleep", model_id, level=level)
        assert (status, body["code"]) == (400, "invalid")
        assert await target.status(model_id) == "loaded"


async def test_control_client_of_the_gateway(target: Target) -> None:
    """Every answer has the shape that the gateway decodes."""
    if "authorization" in target.client.headers:
        pytest.skip("the token is sent by the gateway's own settings; see test_agent_api.py")
    async with NeuronClient(target.url) as control:
        assert (await control.discovery()).harnesses is not None
        await control.load(target.first, target.harness)
        await control.load(target.first, target.harness)
        (loaded,) = [entry for entry in await control.models() if entry.status == "loaded"]
        assert loaded.id == target.first
        assert (await control.endpoint(target.first)).startswith("http://127.0.0.1:")
        counters = (await control.health()).models
        assert counters is not None
        assert counters[0].in_flight == 0
        await control.unload(target.first)
        with pytest.raises(NeuronRefused, match="404"):
            await control.unload(target.first)
