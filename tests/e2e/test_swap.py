"""An operator swaps the target of an alias while streams run, and no client is affected."""

import json

import httpx
import pytest
import trio
from fakes.patience import until
from fakes.running import LARGE, PROBE, SMALL, running_gateway, settled

STREAMS = 50
SWAPS = 200


def client_for(running):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=STREAMS)
    return httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60, limits=limits)


async def stream_by_alias(client):
    """One streamed answer: the model of its head, and every model that its chunks name."""
    body = {"model": "helexa/small", "stream": True, "messages": PROBE}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    chunks = [json.loads(line[len("data: ") :]) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return response, lines[-1], {chunk["model"] for chunk in chunks}, text


@pytest.mark.slow
async def test_alias_swapped_200_times_under_50_streams_loses_nothing(tmp_path):
    """No failed request; each answer comes wholly from one model, the target at the time it was resolved."""
    answered = {SMALL: 0, LARGE: 0}
    swapping = True

    async with running_gateway(tmp_path) as running, client_for(running) as client:

        async def keep_streaming():
            while swapping:
                before = running.gateway.catalogue_store.current.aliases["helexa/small"].target
                generation = running.gateway.catalogue_store.current.generation
                response, last, models, text = await stream_by_alias(client)
                after = running.gateway.catalogue_store.current
                assert response.status_code == 200
                assert last == "data: [DONE]"
                assert models == {response.headers["x-cortex-model"]}
                assert response.headers["x-cortex-alias"] == "helexa/small"
                assert "Tbilisi" in text
                if after.generation == generation:
                    assert models == {before}
                answered[models.pop()] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(keep_streaming)
            swaps = 0
            while swaps < SWAPS or min(answered.values()) <= STREAMS:
                target = LARGE if swaps % 2 == 0 else SMALL
                running.swap("helexa/small", target)
                await running.pointing_at("helexa/small", target)
                swaps += 1
            swapping = False

        warmed = 2  # at most: a swap to a model that has answered clients before is immediate
        assert swaps + 1 <= running.gateway.catalogue_store.current.generation <= swaps + 1 + warmed
        await settled(running.gateway)
        assert running.neurons[0].violations == []


async def test_running_request_keeps_its_resolved_target(tmp_path):
    """A stream that began on one model ends on it, though the alias moves meanwhile; the next uses the new target."""
    async with running_gateway(tmp_path) as running, client_for(running) as client:
        body = {"model": "helexa/small", "stream": True, "messages": PROBE}
        running.neurons[0].speed = 5
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = (line async for line in response.aiter_lines() if line.startswith("data: {"))
            first = json.loads((await anext(lines))[len("data: ") :])
            running.swap("helexa/small", LARGE)
            await running.pointing_at("helexa/small", LARGE)
            rest = [json.loads(line[len("data: ") :]) async for line in lines]
        _, _, models, _ = await stream_by_alias(client)

    assert {chunk["model"] for chunk in [first, *rest]} == {SMALL}
    assert models == {LARGE}


async def test_broken_file_changes_nothing_and_shows_until_corrected(tmp_path):
    """The old alias still works; health, metrics and the admin API show line and key, until the correction."""
    async with running_gateway(tmp_path) as running, client_for(running) as client:
        good = running.models_toml.read_text()
        for bad in ("", "[aliases\n", good.replace("vram_mb", "vram_bm"), '[aliases]\n"a" = 7\n'):
            running.models_toml.write_text(bad)
            await until(lambda: running.gateway.catalogue_store.last_error is not None)
            health = (await client.get("/health")).json()
            assert "file_not_in_force" in [problem["code"] for problem in health["problems"]]
            assert health["catalogue"]["generation"] == 1
            assert health["catalogue"]["error"]["faults"]
            metrics = (await client.get(running.metrics_url)).text
            assert "cortex_catalogue_last_reload_success 0.0" in metrics
            assert (await stream_by_alias(client))[0].status_code == 200
            running.models_toml.write_text(good)
            await until(lambda: running.gateway.catalogue_store.last_error is None)
            health = (await client.get("/health")).json()
            # helexa/dead has a target that does not exist.
            assert [problem["subject"] for problem in health["problems"]] == ["helexa/dead"]
            assert health["catalogue"]["error"] is None
            assert "cortex_catalogue_last_reload_success 1.0" in (await client.get(running.metrics_url)).text


async def test_admin_reload_is_the_same_reload(tmp_path):
    """It answers with the result and any faults; without the token it is refused."""
    async with running_gateway(tmp_path) as running, client_for(running) as client:
        url = running.metrics_url.replace("/metrics", "/admin/reload")
        assert (await client.post(url)).status_code == 401
        bearer = {"authorization": "Bearer secret"}
        assert (await client.post(url, headers=bearer)).json()["result"] == "unchanged"
        running.models_toml.write_text("[aliasse]\n")
        answer = await client.post(url, headers=bearer)
        assert answer.status_code == 422
        assert answer.json()["faults"][0]["line"] == 1
