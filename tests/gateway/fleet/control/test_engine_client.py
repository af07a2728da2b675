"""EngineClient: what it reads from the lists of engines, how it loads and unloads, and what it refuses."""

from contextlib import asynccontextmanager

import pytest
import structlog
import trio
from fakes.engine import FakeEngine, listing
from fakes.fleets import a_catalogue, a_profile

from gateway.config.settings import NeuronSettings, PollSettings
from gateway.fleet.control.engine_client import EngineClient
from gateway.fleet.control.poller import Poller
from gateway.fleet.control.types import NeuronMalformed, NeuronRefused
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import choose
from gateway.fleet.state import Fleet

LIST = "GET /v1/models"


@asynccontextmanager
async def engine(responses, **keys):
    fake = FakeEngine(responses)
    async with EngineClient(settings(**keys), transport=fake) as client:
        yield client, fake


def settings(**keys):
    return NeuronSettings("box", "http://box:8000", "openai", **keys)


async def ids(client):
    return [model.id for model in await client.models()]


# Lists


async def test_models_are_those_that_the_engine_lists(autojump_clock):
    """By their own names, as loaded, with the context length if the engine reports it."""
    async with engine({LIST: listing({"id": "Qwen/Qwen3-8B", "max_model_len": 32768}, "plain")}) as (client, fake):
        large, plain = await client.models()

    assert (large.id, large.status, large.harness, large.limit.context) == ("Qwen/Qwen3-8B", "loaded", "openai", 32768)
    assert (plain.limit, plain.vram_used_mb, plain.devices) == (None, None, None)
    assert fake.keys == [None]


async def test_models_get_our_ids_from_serves():
    """Several ids may map to one name; a name that is mapped is not listed by itself."""
    serves = {"Qwen/Qwen3-8B": "qwen3:8b", "also": "qwen3:8b", "taken": "elsewhere", "absent": "not-pulled"}
    async with engine({LIST: listing("qwen3:8b", "llama3", "taken")}, serves=serves) as (client, _):
        assert await ids(client) == ["Qwen/Qwen3-8B", "also", "llama3"]


async def test_ollama_names_without_a_tag_mean_latest():
    """`ollama pull qwen3` is listed as `qwen3:latest`; the configuration has `qwen3`."""
    responses = {LIST: listing("qwen3:latest", "hf.co:443/a:q4"), "GET /api/ps": (200, {"models": []})}
    async with engine(responses, engine="ollama", serves={"Qwen/Qwen3": "qwen3"}) as (client, _):
        assert await ids(client) == ["Qwen/Qwen3", "hf.co:443/a:q4"]


async def test_key_and_base_path_are_used_for_control_calls():
    """The list needs the same key and prefix as inference."""
    fake_list = {"GET /openai/models": listing("m")}
    async with engine(fake_list, api_key="k", base_path="/openai") as (client, fake):
        assert await ids(client) == ["m"]
    assert fake.keys == ["Bearer k"]


@pytest.mark.parametrize(
    "response", [(404, {"detail": "Not Found"}), (405, b""), (501, b""), (200, b"<html>"), (200, {})]
)
async def test_configured_models_need_an_answer_but_no_list(response):
    """For engines that cannot list their models."""
    async with engine({LIST: response}, models=("m",), serves={"ours": "m"}) as (client, _):
        assert await ids(client) == ["ours"]


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_engine_that_fails_or_refuses_the_key_fails_with_configured_models_too(status):
    """A wrong key is not the same as a missing list."""
    async with engine({LIST: (status, {"error": {"message": "no", "code": status}})}, models=("m",)) as (client, _):
        with pytest.raises(NeuronRefused) as caught:
            await client.models()
    assert (caught.value.status, caught.value.text) == (status, "no")


@pytest.mark.parametrize("response", [b"", b"{}", b"3", b"[1]", b'{"data":{}}', b'{"data":[{"id":1}]}', b"\xff"])
async def test_invalid_list_is_malformed(response):
    """The client does not guess."""
    async with engine({LIST: (200, response)}) as (client, _):
        with pytest.raises(NeuronMalformed):
            await client.models()


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ([{"id": "m", "object": "model"}], ["m"]),
        ([], []),
        ({"object": "list", "data": [{"id": "m"}, {"name": "x"}]}, ["m"]),
        ({"data": [{"id": None}, {"id": "m"}, {"id": 3}, "x", None, [], {"id": ""}, {"id": " "}]}, ["m"]),
        ({"data": [{"id": "m"}, {"id": "x" * 100_000}]}, ["m"]),
        ({"models": [{"id": "m"}]}, ["m"]),
        ({"models": None, "data": [{"id": "m", "status": [], "meta": 1}]}, ["m"]),
        ({"data": [{"id": "m"}, {"id": "m"}]}, ["m"]),
        ({"data": None, "models": [{"id": "m"}]}, ["m"]),
        ({"data": [], "models": [{"name": "x"}]}, []),
        (b'\xef\xbb\xbf{"data":[{"id":"m"}]}', ["m"]),
        (b'{"data":[{"id":"\\ud800"},{"id":"m"},{"id":"\\ud83d\\ude00"}]}', ["m", "\N{GRINNING FACE}"]),
        (b'{"data":[{"id":"m","size":NaN,"score":-Infinity}]}', ["m"]),
        (b'{"data":[{"id":"\xff"},{"id":"m"}]}', ["m"]),
    ],
)
async def test_list_in_any_shape_gives_its_usable_entries(response, found):
    """A bare array (Together), entries without an id: one bad entry does not take the others out of service."""
    async with engine({LIST: (200, response)}) as (client, _):
        assert await ids(client) == found


async def test_skipped_entries_are_logged_once():
    """Until their number changes."""
    response = {"data": [{"id": "m"}, {"name": "x"}]}
    with structlog.testing.capture_logs() as logged:
        async with engine({LIST: lambda _: (200, response)}) as (client, _):
            await ids(client)
            await ids(client)
            response["data"].append({})
            await ids(client)
    assert [entry["entries"] for entry in logged if entry["event"] == "model_entries_skipped"] == [1, 2]


async def test_list_may_be_null():
    """Ollama without models sends null."""
    async with engine({LIST: (200, {"object": "list", "data": None})}) as (client, _):
        assert await ids(client) == []


@pytest.mark.parametrize(
    ("status", "offered"),
    [
        ({"value": "loaded"}, "loaded"),
        ({"value": "unloaded"}, "loaded"),
        ({"value": "sleeping"}, "loaded"),
        ({"value": "loading"}, "reloading"),
        ({"value": "unloaded", "failed": True, "exit_code": 1}, "failed"),
        ({"value": "downloading"}, "downloading"),
        ("ready", "loaded"),
    ],
)
async def test_router_states_map_to_routable_or_not(status, offered):
    """llama.cpp's router loads at the first request, so only a failed or a missing model is not routable."""
    async with engine({LIST: listing({"id": "m", "status": status})}, engine="llamacpp") as (client, _):
        assert [model.status for model in await client.models()] == [offered]


async def test_another_cortex_offers_only_models_that_it_can_serve():
    """Its list has its whole catalogue; a model that no node there can hold is left out."""
    entries = [
        {"id": "warm", "loaded": True, "feasible_on": [], "locations": [{}], "limit": {"context": 4096}},
        {"id": "cold", "loaded": False, "feasible_on": ["gpu"], "locations": [], "capabilities": ["chat"]},
        {"id": "never", "loaded": False, "feasible_on": [], "locations": []},
    ]
    async with engine({LIST: listing(*entries)}, engine="cortex") as (client, _):
        warm, cold = await client.models()
    assert (warm.id, warm.limit.context) == ("warm", 4096)
    assert (cold.id, cold.capabilities) == ("cold", ("chat",))


async def test_unexpected_types_in_an_entry_are_ignored():
    """The fields that engines add have no schema."""
    odd = {
        "id": "m",
        "meta": [],
        "limit": "big",
        "max_model_len": 10**400,
        "capabilities": {},
        "tool_call": 1,
        "status": 3,
    }
    async with engine({LIST: listing(odd | {"status": 3})}) as (client, _):
        (model,) = await client.models()
    assert (model.limit, model.capabilities, model.tool_call, model.status) == (None, None, None, "loaded")


# Devices and places


async def test_devices_are_unknown_and_nothing_is_sent():
    """Nothing is sent for discovery, health and the endpoint."""
    async with engine({}) as (client, fake):
        assert (await client.discovery()).devices is None
        assert (await client.health()).devices is None
        assert await client.endpoint("m") == "http://box:8000"
    assert fake.requests == []


async def test_ollama_reports_its_memory():
    """The total is the configured `vram_mb`."""
    running = {"models": [{"name": "qwen3:8b", "size_vram": 6 * 2**30}, {"name": "on-cpu", "size_vram": 0}]}
    responses = {LIST: listing("qwen3:8b", "idle:latest"), "GET /api/ps": (200, running)}
    async with engine(responses, engine="ollama", vram_mb=8192) as (client, _):
        (device,) = (await client.health()).devices
        assert [model.vram_used_mb for model in await client.models()] == [6144, None]
        assert (await client.discovery()).devices[0].vram_total_mb == 8192
    assert (device.vram_used_mb, device.vram_free_mb) == (6144, 2048)


async def test_ollama_serves_without_its_list_of_running_models():
    """Memory is for display only."""
    async with engine({LIST: listing("m"), "GET /api/ps": (500, b"")}, engine="ollama") as (client, _):
        assert await ids(client) == ["m"]


async def test_engine_is_polled_into_the_fleet_and_never_a_place_for_a_cold_load(autojump_clock):
    """It is healthy and routes the models that it lists; no other model is loaded there."""
    fake = FakeEngine({LIST: listing("listed")})
    configured = settings(vram_mb=80_000, engine="vllm")
    fleet = Fleet([configured], misses=3)
    async with EngineClient(configured, transport=fake) as client, trio.open_nursery() as nursery:
        await nursery.start(Poller(fleet, {"box": client}, PollSettings()).run)
        catalogue = a_catalogue(a_profile("listed"), a_profile("other", vram_mb=1000))
        route = choose("listed", fleet, catalogue)
        assert route == Route("box", "listed", "http://box:8000", fleet.nodes["box"].access, fleet.nodes["box"].backend)
        assert [device.vram_total_mb for device in fleet.nodes["box"].devices] == [80_000]
        with pytest.raises(Exception, match="no healthy neuron's topology"):
            choose("other", fleet, catalogue)
        nursery.cancel_scope.cancel()


async def test_devices_stay_unknown_in_the_fleet(autojump_clock):
    """Unknown devices are not the same as no devices."""
    fleet = Fleet([settings()], misses=3)
    async with engine({LIST: listing("m")}) as (client, _), trio.open_nursery() as nursery:
        await nursery.start(Poller(fleet, {"box": client}, PollSettings()).run)
        nursery.cancel_scope.cancel()
    assert fleet.nodes["box"].healthy
    assert fleet.nodes["box"].devices is None


# Loading


@pytest.mark.parametrize("named", [None, "vllm", "sglang", "lmstudio", "tabbyapi", "transformers", "cortex"])
async def test_engine_without_an_api_for_it_neither_loads_nor_unloads(named):
    """The error says so, and nothing is sent."""
    async with engine({}, engine=named) as (client, fake):
        with pytest.raises(NeuronRefused, match="cannot load models on box"):
            await client.load("m", "x")
        with pytest.raises(NeuronRefused, match="cannot unload models on box"):
            await client.unload("m")
    assert fake.requests == []


async def test_ollama_loads_with_an_empty_prompt_and_unloads_with_keep_alive_0(autojump_clock):
    """As in Ollama's docs/api.md; the model is unloaded when `/api/ps` no longer lists it."""
    left = iter([[{"name": "qwen3:latest", "size_vram": 1}]] * 3 + [[]])
    responses = {
        "POST /api/generate": (200, {"done": True}),
        "GET /api/ps": lambda _: (200, {"models": next(left)}),
    }
    async with engine(responses, engine="ollama", serves={"Qwen/Qwen3": "qwen3"}) as (client, fake):
        await client.load("Qwen/Qwen3", "x", quant="q4", devices=[0])
        await client.unload("Qwen/Qwen3")
    posted = [body for what, body in fake.requests if what == "POST /api/generate"]
    assert posted == [{"model": "qwen3", "stream": False}, {"model": "qwen3", "keep_alive": 0, "stream": False}]
    assert trio.current_time() == 1.5


def router(*states):
    """A llama.cpp router that shows these states, one per call."""
    left = list(states)
    return lambda _: listing({"id": "m", "status": left.pop(0) if len(left) > 1 else left[0]})


async def test_llamacpp_router_is_waited_for(autojump_clock):
    """The router answers at once and loads in the background."""
    responses = {
        LIST: router({"value": "unloaded"}, {"value": "loading"}, {"value": "loaded"}),
        "POST /models/load": (200, {"success": True}),
    }
    async with engine(responses, engine="llamacpp") as (client, fake):
        await client.load("m", "x")
    assert fake.requests[0] == ("POST /models/load", {"model": "m"})
    assert trio.current_time() == 1.0


async def test_llamacpp_router_that_fails_to_load_is_an_error(autojump_clock):
    """The client does not wait on."""
    responses = {
        LIST: router({"value": "loading"}, {"value": "unloaded", "failed": True, "exit_code": 1}),
        "POST /models/load": (200, {"success": True}),
    }
    async with engine(responses, engine="llamacpp") as (client, _):
        with pytest.raises(NeuronRefused, match="could not load 'm'"):
            await client.load("m", "x")


async def test_llamacpp_router_unloads(autojump_clock):
    """The client waits until the process has stopped."""
    responses = {
        LIST: router({"value": "loaded"}, {"value": "unloaded"}),
        "POST /models/unload": (200, {"success": True}),
    }
    async with engine(responses, engine="llamacpp") as (client, _):
        await client.unload("m")
    assert trio.current_time() == 0.5


async def test_loaded_already_is_success(autojump_clock):
    """The router refuses, but the goal is reached."""
    responses = {
        LIST: router({"value": "loaded"}),
        "POST /models/load": (400, {"error": {"code": 400, "message": "model is already loaded"}}),
    }
    async with engine(responses, engine="llamacpp") as (client, _):
        await client.load("m", "x")


async def test_llamacpp_with_one_model_cannot_switch():
    """Outside the router mode the path does not exist."""
    responses = {"POST /models/load": (404, {"error": {"message": "File Not Found", "code": 404}})}
    async with engine(responses, engine="llamacpp") as (client, _):
        with pytest.raises(NeuronRefused, match="one model, or does not know 'm': File Not Found"):
            await client.load("m", "x")
