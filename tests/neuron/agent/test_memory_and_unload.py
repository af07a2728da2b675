"""Memory of a host: loads that do not fit together, and unloading, over scripted engines in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from scripted_host import A, B, Script, model_table, scripted_host

from neuron.agent.errors import DoesNotFit, InUse, StartFailed, UnknownModel
from neuron.agent.supervision.model_status import ModelStatus
from neuron.agent.supervision.state_file import StateFile

# Memory ...............................................................................................................


async def test_two_loads_that_do_not_fit_together_are_serialised(autojump_clock) -> None:
    """The second waits for the first, and then learns who holds the memory."""
    text = model_table("a", vram_mb=16_000) + model_table("b", vram_mb=16_000)
    async with scripted_host(text, scripts={"a": Script(16_000), "b": Script(16_000)}) as scene:
        outcome = []

        async def load_b() -> None:
            with pytest.raises(DoesNotFit) as caught:
                await scene.load("b")
            outcome.append((trio.current_time(), str(caught.value)))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.load, "a")
            await trio.sleep(1)
            nursery.start_soon(load_b)
            await trio.sleep(1)
            assert scene.statuses() == {"a": "loading", "b": "loading"}
        ((ended, text),) = outcome
        assert ended >= began + 5
        assert "model 'b' does not fit: it needs 16000 MB" in text
        assert "device 0 has 8000 of 24000 MB free: model 'a' holds 16000 MB" in text
        assert len(scene.world.started) == 1
        assert scene.statuses() == {"a": "loaded", "b": "unloaded"}


async def test_two_loads_that_fit_together_run_together(autojump_clock) -> None:
    text = model_table("a", vram_mb=8_000) + model_table("b", vram_mb=8_000)
    async with scripted_host(text) as scene:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.load, "a")
            nursery.start_soon(scene.load, "b")
        assert trio.current_time() - began < 6


async def test_loads_of_unknown_size_follow_each_other_and_are_measured(autojump_clock) -> None:
    async with scripted_host(A + B, scripts={"a": Script(7_000), "b": Script(9_000)}) as scene:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.load, "a")
            nursery.start_soon(scene.load, "b")
        assert trio.current_time() - began >= 10
        assert scene["a"].claim is not None
        assert scene["b"].claim is not None
        assert (scene["a"].claim.total_mb, scene["b"].claim.total_mb) == (7_000, 9_000)


async def test_measured_memory_is_remembered_for_the_same_arguments(autojump_clock, tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.json")
    async with scripted_host(A + B, scripts={"a": Script(15_000), "b": Script(15_000)}, state=state) as scene:
        for model_id in "ab":
            await scene.load(model_id)
            await scene.host.unload(model_id)
        await scene.load("a")
        with pytest.raises(DoesNotFit, match="it needs 15000 MB"):
            await scene.load("b")
        await scene.host.unload("a")
        scene.reload(A + model_table("b", args=["--other"]))
        scene.world.scripts["b"].memory_mb = 3_000
        await scene.load("a")
        await scene.load("b")


async def test_declared_memory_is_a_lower_bound(autojump_clock) -> None:
    async with scripted_host(model_table("a", vram_mb=20_000)) as scene:
        await scene.load("a")
        assert scene.host.memory.free_mb(0) == 4_000


async def test_foreign_memory_counts(autojump_clock) -> None:
    async with scripted_host(model_table("a", vram_mb=8_000)) as scene:
        scene.world.foreign_mb = 20_000
        with pytest.raises(DoesNotFit, match="device 0 has 4000 of 24000 MB free: other processes hold the rest"):
            await scene.load("a")


async def test_emptiest_devices_are_chosen(autojump_clock) -> None:
    text = model_table("a", vram_mb=8_000) + model_table("b", vram_mb=8_000) + model_table("c", devices=[0])
    async with scripted_host(text, devices=2) as scene:
        for model_id in "abc":
            await scene.load(model_id)
        assert [scene[model_id].claim.devices for model_id in "abc"] == [(0,), (1,), (0,)]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"min_devices": 3}, "needs 3 devices; this host has 2"),
        ({"devices": [0, 5]}, "no such device: 5; this host has 2"),
    ],
)
async def test_impossible_devices_are_refused(autojump_clock, keys: dict[str, object], text: str) -> None:
    async with scripted_host(model_table("a", **keys), devices=2) as scene:
        with pytest.raises(DoesNotFit, match=text):
            await scene.load("a")


async def test_unload_returns_when_the_memory_is_free(autojump_clock) -> None:
    script = Script(memory_mb=20_000, releases_after_s=3)
    async with scripted_host(A, scripts={"a": script}) as scene:
        await scene.load("a")
        began = trio.current_time()
        await scene.host.unload("a")

        assert 3 <= trio.current_time() - began < 4
        assert scene.statuses() == {"a": "unloaded"}


async def test_unload_does_not_wait_for_memory_forever(autojump_clock) -> None:
    async with scripted_host(A, scripts={"a": Script(releases_after_s=500)}) as scene:
        await scene.load("a")
        began = trio.current_time()
        await scene.host.unload("a")
        assert 8 <= trio.current_time() - began < 9  # release_seconds


async def test_load_during_an_unload_waits_for_its_memory(autojump_clock) -> None:
    text = model_table("a", vram_mb=20_000) + model_table("b", vram_mb=20_000)
    scripts = {"a": Script(20_000, releases_after_s=4), "b": Script(20_000)}
    async with scripted_host(text, scripts=scripts) as scene:
        await scene.load("a")
        scene.nursery.start_soon(scene.host.unload, "a")
        await trio.sleep(0.1)
        await scene.load("b")
        assert scene.statuses() == {"a": "unloaded", "b": "loaded"}


# Unload ...............................................................................................................


async def test_unload_is_refused_with_requests_in_flight_unless_forced(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        scene.world.scripts["a"].in_flight = 3
        with pytest.raises(InUse, match="model 'a' has 3 requests in flight"):
            await scene.host.unload("a")
        assert scene.statuses() == {"a": "loaded"}
        await scene.host.unload("a", force=True)
        assert scene.statuses() == {"a": "unloaded"}


async def test_unload_counts_forwarded_requests(autojump_clock) -> None:
    async with scripted_host(A, forwarded=True) as scene:
        await scene.load("a")
        scene["a"].begin_request()
        with pytest.raises(InUse, match="model 'a' has 1 requests"):
            await scene.host.unload("a")
        scene["a"].end_request()
        await scene.host.unload("a")


async def test_unload_of_what_is_not_loaded(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        for model_id in ("a", "x"):
            with pytest.raises(UnknownModel, match=f"model '{model_id}' not loaded"):
                await scene.host.unload(model_id)


async def test_engine_that_ignores_sigterm_is_killed_after_stop_seconds(autojump_clock) -> None:
    async with scripted_host(A, scripts={"a": Script(ignores_sigterm=True)}) as scene:
        await scene.load("a")
        began = trio.current_time()
        await scene.host.unload("a")
        assert 10 <= trio.current_time() - began < 11


async def test_load_of_a_model_that_is_being_unloaded_waits_and_loads_it_again(autojump_clock) -> None:
    async with scripted_host(A, scripts={"a": Script(releases_after_s=2)}) as scene:
        await scene.load("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.host.unload, "a")
            await trio.sleep(0.1)
            nursery.start_soon(scene.load, "a")
        assert scene.statuses() == {"a": "loaded"}
        assert len(scene.world.started) == 2
        assert scene.world.started[0].port != scene.world.started[1].port


@pytest.mark.parametrize("after_s", [0.0, 2.0])
async def test_forced_unload_ends_a_load(autojump_clock, after_s: float) -> None:
    async with scripted_host(A + B) as scene:
        if not after_s:
            scene.nursery.start_soon(scene.load, "b")  # of unknown size: the next load waits for memory
            await trio.sleep(0.1)
        failed = []

        async def load() -> None:
            with pytest.raises(StartFailed, match="was cancelled by an unload"):
                await scene.load("a")
            failed.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await trio.sleep(after_s or 1.0)
            with pytest.raises(InUse, match="is loading; `force` ends the load"):
                await scene.host.unload("a")
            await scene.host.unload("a", force=True)
        assert failed == [True]
        assert scene.statuses()["a"] == "unloaded"
        if not after_s:
            await scene.is_in("b", ModelStatus.LOADED)
