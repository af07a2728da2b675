"""Loads, reloads of the configuration and random operations, over scripted engines, under a virtual clock."""

from __future__ import annotations

import random

import pytest
import trio
from scripted_host import A, B, Script, model_table, scripted_host

from neuron.agent.errors import DoesNotFit, InUse, InvalidRequest, NotLoadable, StartFailed, UnknownModel
from neuron.agent.supervision.model_status import ModelStatus

# Loads ................................................................................................................


async def test_load_returns_when_the_engine_is_ready(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        began = trio.current_time()
        await scene.load("a", harness="vllm")

        assert 5 <= trio.current_time() - began < 6
        assert scene.statuses() == {"a": "loaded"}
        assert scene["a"].served is not None
        assert scene["a"].served.context == 4096
        assert scene.world.loads[0][0] == "a"
        assert scene.engine("a").env["CUDA_VISIBLE_DEVICES"] == "GPU-0"


async def test_loads_of_one_model_are_one_load(autojump_clock) -> None:
    """Also one that comes late, and one of a loaded model."""
    async with scripted_host(A) as scene:
        async with trio.open_nursery() as nursery:
            for delay_s in (0, 0, 1, 4.9):

                async def load_later(delay_s: float = delay_s) -> None:
                    await trio.sleep(delay_s)
                    await scene.load("a")

                nursery.start_soon(load_later)
        began = trio.current_time()
        await scene.load("a")

        assert trio.current_time() == began
        assert len(scene.world.started) == 1


async def test_client_that_leaves_does_not_end_the_load(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        with trio.move_on_after(1):
            await scene.load("a")
        assert scene.statuses() == {"a": "loading"}
        await scene.load("a")

        assert len(scene.world.started) == 1


async def test_failed_start_names_the_reason_and_shows_the_last_lines(autojump_clock) -> None:
    script = Script(exits_at_start=1, prints=b"loading\ntorch.OutOfMemoryError: CUDA out of memory.\n")
    async with scripted_host(A, scripts={"a": script}) as scene:
        with pytest.raises(StartFailed, match="not enough free device memory") as caught:
            await scene.load("a")
        assert "torch.OutOfMemoryError: CUDA out of memory." in str(caught.value)
        assert scene.statuses() == {"a": "unloaded"}

        script.exits_at_start = None
        await scene.load("a")


async def test_everyone_who_waits_for_a_load_gets_its_failure(autojump_clock) -> None:
    failures = []
    async with scripted_host(A, scripts={"a": Script(exits_at_start=3)}) as scene:

        async def load() -> None:
            with pytest.raises(StartFailed) as caught:
                await scene.load("a")
            failures.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(load)
    assert failures == ["model 'a' did not start: the engine exited with status 3"] * 3


async def test_engine_that_is_not_ready_in_time_is_killed(autojump_clock) -> None:
    async with scripted_host(A, scripts={"a": Script(ready_after_s=1000)}) as scene:
        began = trio.current_time()
        with pytest.raises(StartFailed, match="not ready within 100 s"):
            await scene.load("a")

        assert 100 <= trio.current_time() - began < 102
        assert scene.world.started[0].killed


async def test_port_that_is_in_use_after_all_is_replaced(autojump_clock) -> None:
    script = Script(exits_at_start=1, prints=b"error: address already in use\n")
    async with scripted_host(A, scripts={"a": script}) as scene:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.load, "a")
            await trio.sleep(0.1)
            script.exits_at_start, script.prints = None, b""

        assert len({engine.port for engine in scene.world.started}) == 2
        assert scene.statuses() == {"a": "loaded"}


async def test_unknown_models_are_refused_unless_allowed(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        with pytest.raises(NotLoadable, match=r"unknown model 'x'.*allow_any"):
            await scene.load("x", harness="vllm")
    async with scripted_host("[api]\nallow_any = true\n" + A) as scene:
        with pytest.raises(InvalidRequest, match="unknown harness 'zzz'"):
            await scene.load("x", harness="zzz")
        await scene.load("huggingface:org/x", harness="vllm")
        assert scene.statuses() == {"a": "unloaded", "org/x": "loaded"}
        await scene.host.unload("org/x")
        assert scene.statuses() == {"a": "unloaded"}


async def test_harness_of_another_engine_is_refused(autojump_clock) -> None:
    async with scripted_host('[engines.other]\nkind = "sglang"\n' + A) as scene:
        with pytest.raises(InvalidRequest, match="runs on the engine 'vllm' here, not on 'other'"):
            await scene.load("a", harness="other")


async def test_model_is_known_by_source_and_id(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("huggingface:a")
        assert scene.statuses() == {"a": "loaded"}


async def test_options_of_a_load_reach_the_command(autojump_clock) -> None:
    async with scripted_host(A, devices=2) as scene:
        await scene.load("a", quant="fp8", tensor_parallel=2, devices=(0, 1))

        command = " ".join(scene.engine("a").command)
        assert "--quantization fp8" in command
        assert "--tensor-parallel-size 2" in command
        assert scene.engine("a").env["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
        assert "--max-model-len" not in command


async def test_progress_is_printed_or_by_the_last_load(autojump_clock) -> None:
    script = Script(ready_after_s=10)
    async with scripted_host(A, scripts={"a": script}) as scene:
        scene.nursery.start_soon(scene.load, "a")
        await trio.sleep(5)
        assert scene["a"].progress is None
        await scene.is_in("a", ModelStatus.LOADED)
        await scene.host.unload("a")
        scene.nursery.start_soon(scene.load, "a")
        await trio.sleep(5)
        assert scene["a"].progress == pytest.approx(0.5, abs=0.05)
        scene["a"].output.feed(b"Loading safetensors checkpoint shards:  75% Completed | 3/4\n")
        assert scene["a"].progress == 0.75
        await scene.is_in("a", ModelStatus.LOADED)


# Reload of the configuration ..........................................................................................


async def test_reload_adds_removes_and_changes_models(autojump_clock) -> None:
    text = A + B
    async with scripted_host(text) as scene:
        await scene.load("a")
        outcome = scene.reload(model_table("a", args=["--x"]) + model_table("c", preload=True))

        assert (outcome.added, outcome.removed, outcome.changed) == (("c",), ("b",), ("a",))
        assert outcome.at_next_load == ("a",)
        assert scene["a"].changes_at_next_load
        await scene.is_in("c", ModelStatus.LOADED)
        assert scene.statuses() == {"a": "loaded", "c": "loaded"}
        assert "--x" not in scene.engine("a").command
        await scene.host.unload("a")
        await scene.load("a")
        assert "--x" in scene.engine("a").command
        assert not scene["a"].changes_at_next_load


async def test_model_that_was_loaded_without_a_table_stays_once_it_has_one(autojump_clock) -> None:
    async with scripted_host("[api]\nallow_any = true\n") as scene:
        await scene.load("a", harness="vllm")
        scene.reload(A)
        await scene.host.unload("a")
        assert scene.statuses() == {"a": "unloaded"}


async def test_removed_model_is_drained_and_then_unloaded(autojump_clock) -> None:
    async with scripted_host(A + B) as scene:
        await scene.load("a")
        scene.world.scripts["a"].in_flight = 1
        scene.reload(B)
        await trio.sleep(60)
        assert not scene["a"].is_routable
        assert scene["a"].reported_status == "recovering"
        with pytest.raises(NotLoadable):
            await scene.load("a")
        scene.world.scripts["a"].in_flight = 0
        await trio.sleep(5)
        assert scene.statuses() == {"b": "unloaded"}


async def test_removed_model_can_come_back_before_it_is_gone(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        scene.world.scripts["a"].in_flight = 1
        scene.reload(B)
        await trio.sleep(5)
        scene.reload(A)
        scene.world.scripts["a"].in_flight = 0
        await trio.sleep(60)
        assert scene.statuses() == {"a": "loaded"}
        assert len(scene.world.started) == 1


async def test_changed_configuration_clears_poison(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        scene.world.scripts["a"].exits_at_start = 1
        scene.engine("a").crash()
        await scene.is_in("a", ModelStatus.POISONED)
        assert scene.reload(A).changed == ()
        assert scene.statuses() == {"a": "poisoned"}
        assert scene.reload(model_table("a", args=["--fixed"])).changed == ("a",)
        assert scene.statuses() == {"a": "unloaded"}


async def test_keys_that_need_a_restart_are_named(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        outcome = scene.reload('[api]\nlisten = "127.0.0.1:9"\ntoken = "t"\n' + A)
        assert outcome.restart == ("api.listen",)
        assert scene.host.settings.api.token == "t"


# Everything at once ...................................................................................................


@pytest.mark.parametrize("seed", range(12))
async def test_random_operations_leave_nothing_behind(autojump_clock, seed: int) -> None:
    """`scripted_host` checks at its end that no engine, claim or port is left; every reading checks the memory."""
    rng = random.Random(seed)  # noqa: S311 - must be repeatable, need not be secret
    text = "".join(model_table(name, vram_mb=9_000, sleep=rng.choice([0, 1, 2])) for name in "abcd")
    scripts = {
        name: Script(9_000, ready_after_s=rng.uniform(0.1, 9), releases_after_s=rng.uniform(0, 3)) for name in "abcd"
    }
    async with scripted_host(text, scripts=scripts) as scene, trio.open_nursery() as nursery:

        async def operate() -> None:
            name = rng.choice("abcd")
            try:
                match rng.randrange(8):
                    case 0 | 1 | 2:
                        await scene.load(name)
                    case 3:
                        await scene.host.unload(name)
                    case 4:
                        await scene.host.unload(name, force=True)
                    case 5:
                        with trio.move_on_after(rng.uniform(0, 4)):
                            await scene.load(name)
                    case 6:
                        for engine in list(scene.world.running.values()):
                            if engine.model_id == name:
                                engine.crash()
                    case 7:
                        await scene.host.sleep(name, rng.choice([None, 1, 2]))
            except (DoesNotFit, InUse, InvalidRequest, StartFailed, UnknownModel):
                pass

        for _ in range(150):
            nursery.start_soon(operate)
            await trio.sleep(rng.expovariate(1.0))
