"""The simulated neuron's management API, over a real socket, with a real client."""

from __future__ import annotations

import hashlib

import httpx
import pytest
from fakes.patience import SAFETY_NET_S

from neuron.simulated import SimNeuron, demo_fleet

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"


async def test_discovery(client: httpx.AsyncClient) -> None:
    """Who it is and which devices it has."""
    found = (await client.get("/discovery")).json()

    assert found["hostname"] == "beast"
    assert {"os", "kernel", "cuda_version", "driver_version", "devices", "harnesses"} == found.keys() - {"hostname"}
    assert found["devices"][1] == {
        "index": 1,
        "name": "Simulated 24 GB",
        "vram_total_mb": 24576,
        "compute_capability": "8.9",
    }


async def test_health(client: httpx.AsyncClient) -> None:
    """Live VRAM by device, the activation, and each loaded model's places."""
    health = (await client.get("/health")).json()

    assert 0 <= health["uptime_secs"] < SAFETY_NET_S
    assert [device["vram_used_mb"] + device["vram_free_mb"] for device in health["devices"]] == [24576, 24576]
    assert sum(device["vram_used_mb"] for device in health["devices"]) == 4096 + 20480
    assert health["activation"] == {
        "state": "ready",
        "pending": [],
        "in_progress": None,
        "completed": [],
        "failed": [],
    }
    large = next(model for model in health["models"] if model["id"] == LARGE)
    assert (large["in_flight"], large["queue_depth"], large["max_in_flight"]) == (0, 0, 4)


async def test_models_lists_what_is_or_was_there(client: httpx.AsyncClient) -> None:
    """A bare array; an unloaded model stays listed, with nulls instead of missing fields."""
    assert {entry["id"]: entry["status"] for entry in (await client.get("/models")).json()} == {
        SMALL: "loaded",
        LARGE: "loaded",
    }
    await client.post("/models/unload", json={"model_id": SMALL})
    gone = next(entry for entry in (await client.get("/models")).json() if entry["id"] == SMALL)
    assert (gone["status"], gone["devices"], gone["vram_used_mb"]) == ("unloaded", [], None)


async def test_endpoint_takes_the_id_as_one_segment(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """The id is percent-encoded; the neuron knows itself as localhost only."""
    found = await client.get("/models/Qwen%2FQwen3-1.7B/endpoint")
    assert (found.status_code, found.json()) == (200, {"url": f"http://localhost:{simulated.port}"})
    missing = await client.get("/models/Qwen%2FQwen3-8B/endpoint")
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'Qwen/Qwen3-8B' not loaded"})


async def test_capabilities_and_version(client: httpx.AsyncClient) -> None:
    """The newer endpoints answer too."""
    assert (await client.get("/models/Qwen%2FQwen3-1.7B/capabilities")).json()["reasoning"] is True
    assert (await client.get("/version")).json()["name"] == "beast"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"model_id": "no/such", "harness": "x"}, "unknown model 'no/such'"),
        ({"model_id": SMALL, "harness": "x"}, f"model '{SMALL}' already loaded"),
        ({"model_id": "Qwen/Qwen3-8B", "harness": "x", "devices": [7]}, "no such device: 7"),
        ({"model_id": "Qwen/Qwen3-8B", "harness": "x", "tensor_parallel": 3}, "tensor_parallel 3 with 2 devices"),
        ({}, "invalid request: Object missing required field `model_id`"),
    ],
)
async def test_load_refused(client: httpx.AsyncClient, body: dict[str, object], text: str) -> None:
    """Every failure of a load is a flat 400."""
    refused = await client.post("/models/load", json=body)

    assert (refused.status_code, refused.json()) == (400, {"error": text})


async def test_load_beyond_vram_is_refused_and_a_violation(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """A gateway that asks for more than there is has not done its sums."""
    refused = await client.post("/models/load", json={"model_id": "Qwen/Qwen3-14B", "harness": "x", "devices": [0]})

    assert refused.status_code == 400
    assert "not enough VRAM" in refused.json()["error"]
    (violation,) = simulated.violations
    assert "beyond the VRAM of device 0" in violation
    assert (await client.get("/sim/state")).json()["violations"] == [violation]


async def test_load_by_source_is_known_under_the_bare_id(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """`source:id` loads `id`, and the harness asked for is the one reported."""
    body = {"model_id": "huggingface:Qwen/Qwen3-8B", "harness": "candle", "quant": None, "tensor_parallel": None}
    assert (await client.post("/models/load", json=body)).json() == {"status": "loaded"}

    entry = next(entry for entry in (await client.get("/models")).json() if entry["id"] == "Qwen/Qwen3-8B")
    assert (entry["harness"], entry["status"], entry["vram_used_mb"]) == ("candle", "loaded", 7168)
    assert [loading.outcome for loading in simulated.loads] == ["begun", "loaded"]


async def test_load_over_two_devices_shares_the_vram(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """Tensor parallelism takes half of the model from each device."""
    await client.post("/models/unload", json={"model_id": LARGE})
    before = [simulated.vram_free_mb(index) for index in (0, 1)]
    body = {"model_id": "Qwen/Qwen3-8B", "harness": "x", "tensor_parallel": 2, "devices": [0, 1]}
    assert (await client.post("/models/load", json=body)).status_code == 200
    after = [simulated.vram_free_mb(index) for index in (0, 1)]
    assert [was - now for was, now in zip(before, after, strict=True)] == [3584, 3584]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 400, "invalid request: Object missing required field `model_id`"),
        ({"model_id": "no/such"}, 404, "model 'no/such' not loaded"),
    ],
)
async def test_unload_refused(client: httpx.AsyncClient, body: dict[str, str], status: int, text: str) -> None:
    """400 without an id, 404 for what is not there."""
    refused = await client.post("/models/unload", json=body)
    assert (refused.status_code, refused.json()) == (status, {"error": text})


async def test_unload_frees_the_vram(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """An unloaded model takes no memory and answers no request."""
    used_mb = sum(simulated.vram_used_mb(index) for index in (0, 1))
    assert (await client.post("/models/unload", json={"model_id": LARGE})).json() == {"status": "unloaded"}

    assert sum(simulated.vram_used_mb(index) for index in (0, 1)) == used_mb - 20480
    refused = await client.post("/v1/chat/completions", json={"model": LARGE, "messages": []})
    assert (refused.status_code, refused.json()) == (404, {"error": f"model '{LARGE}' not loaded on this neuron"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("POST", "/health", 405), ("GET", "/v1/embeddings", 405), ("GET", "/models/load", 405)],
)
async def test_wrong_path_or_method(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    """A flat error, not a hang-up."""
    refused = await client.request(method, path)
    assert refused.status_code == status
    assert refused.json().keys() == {"error"}


async def test_restart_brings_uptime_and_models_back(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """After a restart the neuron is as at its first start."""
    await client.post("/models/unload", json={"model_id": SMALL})
    simulated.started_at -= 1000
    assert (await client.get("/health")).json()["uptime_secs"] >= 1000
    simulated.restart()
    assert {entry["status"] for entry in (await client.get("/models")).json()} == {"loaded"}
    assert (await client.get("/health")).json()["uptime_secs"] < SAFETY_NET_S


async def test_requests_are_logged_and_reset_empties_the_log(client: httpx.AsyncClient) -> None:
    """`/sim/state` shows what the neuron received, by hash; `/sim/reset` forgets it."""
    content = b'{"model":"Qwen/Qwen3-1.7B","messages":[]}'
    await client.post("/v1/chat/completions", content=content, headers={"x-request-id": "r-1"})
    (logged,) = (await client.get("/sim/state")).json()["requests"]
    assert logged["sha256"] == hashlib.sha256(content).hexdigest()
    assert ["x-request-id", "r-1"] in logged["headers"]
    assert (logged["model"], logged["body_bytes"], logged["path"]) == (SMALL, len(content), "/v1/chat/completions")

    await client.post("/sim/reset")
    assert (await client.get("/sim/state")).json()["requests"] == []


def test_demo_fleet_fits_its_devices() -> None:
    """Three unequal neurons, none of them over its VRAM."""
    fleet = demo_fleet()

    assert [neuron.name for neuron in fleet] == ["beast", "benjy", "quadbrat"]
    for neuron in fleet:
        assert all(neuron.vram_free_mb(device.index) >= 0 for device in neuron.devices)
        assert not neuron.violations
