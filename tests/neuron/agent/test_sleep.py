"""Sleep and wake under a virtual clock. The scripted engine accepts only the calls of vLLM's documentation."""

from __future__ import annotations

import contextlib

import pytest
import trio
from scripted_host import Script, model_table, scripted_host

from neuron.agent.errors import DoesNotFit, InUse, InvalidRequest, StartFailed
from neuron.agent.supervision.model_status import ModelStatus

A, B = model_table("a", sleep=1), model_table("b")


@pytest.mark.parametrize("level", [1, 2])
async def test_unload_puts_a_model_to_sleep_and_a_load_wakes_it(autojump_clock, level: int) -> None:
    """The scripted engine accepts only the calls of vLLM's documentation, in their order."""
    async with scripted_host(model_table("a", sleep=level)) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        assert scene.statuses() == {"a": "asleep"}
        assert scene["a"].asleep_level == level
        assert scene["a"].claim.total_mb == 500
        await scene.load("a")
        assert scene.statuses() == {"a": "loaded"}
        assert scene["a"].claim.total_mb == 8_000
        assert len(scene.world.started) == 1
        await scene.host.unload("a", force=True)
        assert scene.statuses() == {"a": "unloaded"}


async def test_sleep_and_wake_on_request(autojump_clock) -> None:
    async with scripted_host(model_table("a", sleep=1) + B) as scene:
        await scene.load("a")
        await scene.host.sleep("a", 2)
        assert scene["a"].asleep_level == 2
        await scene.host.sleep("a", None)
        await scene.host.wake("a")
        assert scene.statuses()["a"] == "loaded"
        await scene.load("b")
        with pytest.raises(InvalidRequest, match="may not sleep"):
            await scene.host.sleep("b", 1)
        scene.world.scripts["a"].in_flight = 2
        with pytest.raises(InUse):
            await scene.host.sleep("a", 1)


async def test_sleeper_that_does_not_fit_stays_asleep(autojump_clock) -> None:
    text = model_table("a", sleep=1, vram_mb=16_000) + model_table("b", vram_mb=16_000)
    async with scripted_host(text, scripts={"a": Script(16_000), "b": Script(16_000)}) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        await scene.load("b")
        with pytest.raises(DoesNotFit, match="model 'b' holds 16000 MB"):
            await scene.load("a")
        assert scene.statuses() == {"a": "asleep", "b": "loaded"}
        await scene.host.unload("b")
        await scene.load("a")


async def test_engine_that_refuses_to_sleep_is_unloaded(autojump_clock) -> None:
    async with scripted_host(model_table("a", sleep=1)) as scene:
        await scene.load("a")
        scene.world.scripts["a"].refuses = frozenset({"/sleep?level=1"})
        await scene.host.unload("a")
        assert scene.statuses() == {"a": "unloaded"}


async def test_engine_that_refuses_to_wake_is_ended_and_can_be_loaded(autojump_clock) -> None:
    async with scripted_host(model_table("a", sleep=1)) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        scene.world.scripts["a"].refuses = frozenset({"/wake_up"})
        with pytest.raises(StartFailed, match="did not wake"):
            await scene.load("a")
        await scene.load("a")
        assert len(scene.world.started) == 2


async def test_engine_that_ends_in_its_sleep_is_unloaded(autojump_clock) -> None:
    async with scripted_host(model_table("a", sleep=1)) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        scene.engine("a").crash()
        await scene.is_in("a", ModelStatus.UNLOADED)
        await scene.load("a")


async def test_sleeper_that_does_not_fit_into_host_memory_is_unloaded(autojump_clock) -> None:
    async with scripted_host(model_table("a", sleep=1)) as scene:
        scene.world.host_memory_mb = 5_000
        await scene.load("a")
        await scene.host.unload("a")
        assert scene.statuses() == {"a": "unloaded"}


async def test_reason_says_why_it_sleeps(autojump_clock) -> None:
    async with scripted_host(model_table("a", sleep=1, idle_ttl_seconds=30)) as scene:
        await scene.load("a")
        await scene.is_in("a", ModelStatus.ASLEEP)
        assert scene["a"].reason.startswith("it was idle for 3")
        await scene.load("a")
        await scene.host.unload("a")
        assert scene["a"].reason == "its memory was wanted"
        await scene.load("a")
        await scene.host.sleep("a", None)
        assert scene["a"].reason == "an operator put it to sleep"


async def test_progress_of_a_wake_goes_by_the_last_wake(autojump_clock) -> None:
    """Not by the last load, nor by what the engine printed then."""
    script = Script(ready_after_s=50, wake_s=8, prints=b"Loading safetensors checkpoint shards: 100% Completed | 4/4\n")
    async with scripted_host(A, scripts={"a": script}) as scene:
        await scene.load("a")
        for expected in (None, 0.5):
            await scene.host.unload("a")
            scene.nursery.start_soon(scene.load, "a")
            await trio.sleep(4)
            assert scene.statuses() == {"a": "loading"}
            assert scene["a"].progress == (expected and pytest.approx(expected, abs=0.1))
            await scene.is_in("a", ModelStatus.LOADED)


async def test_load_during_the_way_to_sleep_waits_and_wakes(autojump_clock) -> None:
    async with scripted_host(A, scripts={"a": Script(sleep_s=5)}) as scene:
        await scene.load("a")
        scene.nursery.start_soon(scene.host.unload, "a")
        await trio.sleep(1)
        assert scene.statuses() == {"a": "unloading"}
        await scene.load("a")
        assert scene.statuses() == {"a": "loaded"}
        assert len(scene.world.started) == 1


async def test_loads_of_a_sleeper_are_one_wake(autojump_clock) -> None:
    async with scripted_host(A, scripts={"a": Script(wake_s=5)}) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(scene.load, "a")
            nursery.start_soon(scene.host.wake, "a")
        assert scene.engine("a").wakes == 1


@pytest.mark.parametrize("what", ["crash", "unload"])
@pytest.mark.parametrize("script", [Script(sleep_s=5), Script(wake_s=5)], ids=["falling asleep", "waking"])
async def test_engine_that_ends_on_its_way_leaves_nothing(autojump_clock, script: Script, what: str) -> None:
    """By itself, or by a forced unload. Then the model can be loaded."""
    async with scripted_host(A, scripts={"a": script}) as scene:
        await scene.load("a")
        if script.wake_s:
            await scene.host.unload("a")

        async def on_its_way() -> None:
            with contextlib.suppress(StartFailed):
                await (scene.load("a") if script.wake_s else scene.host.sleep("a", 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(on_its_way)
            await trio.sleep(2)
            if what == "crash":
                scene.engine("a").crash()
            else:
                await scene.host.unload("a", force=True)
        await scene.is_in("a", ModelStatus.UNLOADED)
        script.sleep_s = script.wake_s = 0
        await scene.load("a")
        assert len(scene.world.started) == 2


@pytest.mark.parametrize(
    "refused", ["/wake_up?tags=weights", "/collective_rpc reload_weights", "/wake_up?tags=kv_cache"]
)
async def test_wake_of_level_2_that_fails_half_way_ends_the_engine(autojump_clock, refused: str) -> None:
    async with scripted_host(model_table("a", sleep=2)) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        scene.world.scripts["a"].refuses = frozenset({refused})
        with pytest.raises(StartFailed, match="did not wake"):
            await scene.load("a")
        assert scene.statuses() == {"a": "unloaded"}


async def test_engine_that_never_answers_the_call_is_ended(autojump_clock) -> None:
    """After two minutes: it may hold half of its memory."""
    async with scripted_host(A, scripts={"a": Script(sleep_s=10_000)}) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        assert scene.statuses() == {"a": "unloaded"}


async def test_memory_of_a_sleeper_is_counted_once(autojump_clock) -> None:
    """Of 24,000 MB it keeps 500: 23,500 MB can be loaded beside it, and not one more."""
    text = A + model_table("large", vram_mb=23_500) + model_table("larger", vram_mb=23_501)
    async with scripted_host(text, scripts={"large": Script(23_500)}) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        assert scene.host.memory.free_mb(0) == 23_500
        with pytest.raises(DoesNotFit, match="model 'a' holds 500 MB"):
            await scene.load("larger")
        await scene.load("large")
        assert scene.host.memory.free_mb(0) == 0


async def test_wake_waits_for_the_memory_of_an_unload_under_way(autojump_clock) -> None:
    text = model_table("a", sleep=1, vram_mb=16_000) + model_table("b", vram_mb=16_000)
    scripts = {"a": Script(16_000), "b": Script(16_000, releases_after_s=5)}
    async with scripted_host(text, scripts=scripts) as scene:
        await scene.load("a")
        await scene.host.unload("a")
        await scene.load("b")
        scene.nursery.start_soon(scene.host.unload, "b")
        await trio.sleep(0.1)
        await scene.load("a")
        assert scene.statuses() == {"a": "loaded", "b": "unloaded"}
