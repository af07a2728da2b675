"""Engines that crash, hang or idle: restarts, poison, and the end, over scripted engines in virtual time."""

from __future__ import annotations

import pytest
import trio
from scripted_host import A, B, Script, model_table, scripted_host

from neuron.agent.errors import DoesNotFit, StartFailed
from neuron.agent.supervision.model_status import CrashHistory, ModelStatus, check_transition

# Crashes ..............................................................................................................


async def test_crashed_engine_is_restarted_with_growing_delays_on_the_same_port(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        for delay_s in (1, 2):
            scene["a"].output.feed(b"CUDA error: an illegal memory access was encountered\n")
            scene.engine("a").crash()
            began = trio.current_time()
            await scene.is_in("a", ModelStatus.RECOVERING)
            assert "signal 11 ended the engine" in scene["a"].reason
            assert "illegal memory access" in scene["a"].reason
            await scene.is_in("a", ModelStatus.LOADED)
            assert delay_s + 5 <= trio.current_time() - began < delay_s + 6
        assert scene["a"].restarts == 2
        assert len({engine.port for engine in scene.world.started}) == 1


async def test_model_that_crashes_too_often_is_poisoned_until_an_operator_unloads_it(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        for _ in range(3):
            await scene.is_in("a", ModelStatus.LOADED)
            scene.engine("a").crash()
            await trio.sleep(0.5)
        await scene.is_in("a", ModelStatus.POISONED)
        assert "crashed 3 times within 300 s" in scene["a"].reason
        assert scene["a"].claim is None
        with pytest.raises(StartFailed, match=r"is poisoned .*unload it to try again"):
            await scene.load("a")
        await scene.host.unload("a")
        await scene.load("a")
        assert scene.statuses() == {"a": "loaded"}


async def test_crashes_outside_the_window_do_not_poison(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        for _ in range(6):
            scene.engine("a").crash()
            await scene.is_in("a", ModelStatus.RECOVERING)
            await scene.is_in("a", ModelStatus.LOADED)
            await trio.sleep(160)
        assert scene["a"].restarts == 6


async def test_restart_that_fails_counts_as_a_crash(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        scene.world.scripts["a"].exits_at_start = 1
        scene.engine("a").crash()
        await scene.is_in("a", ModelStatus.POISONED)
        assert len(scene.world.started) == 3


async def test_load_of_a_recovering_model_waits_for_it(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        scene.engine("a").crash()
        await scene.is_in("a", ModelStatus.RECOVERING)
        await scene.load("a")
        assert scene.statuses() == {"a": "loaded"}
        assert len(scene.world.started) == 2


@pytest.mark.parametrize("after_s", [0.5, 3.0])
async def test_recovering_model_can_be_unloaded(autojump_clock, after_s: float) -> None:
    """While it waits for its restart, and while it starts."""
    async with scripted_host(A) as scene:
        await scene.load("a")
        scene.engine("a").crash()
        await trio.sleep(after_s)
        assert scene.statuses() == {"a": "recovering"}
        await scene.host.unload("a")
        assert scene.statuses() == {"a": "unloaded"}


async def test_crash_holds_the_memory_for_the_restart(autojump_clock) -> None:
    text = model_table("a", vram_mb=20_000) + model_table("b", vram_mb=20_000)
    async with scripted_host(text, scripts={"a": Script(20_000), "b": Script(20_000)}) as scene:
        await scene.load("a")
        scene.engine("a").crash()
        await scene.is_in("a", ModelStatus.RECOVERING)
        with pytest.raises(DoesNotFit):
            await scene.load("b")
        assert scene.statuses() == {"a": "loaded", "b": "unloaded"}


async def test_hung_engine_is_restarted(autojump_clock) -> None:
    async with scripted_host(A) as scene:
        await scene.load("a")
        scene.world.scripts["a"].hangs = True
        began = trio.current_time()
        await trio.sleep(30)
        assert scene.statuses() == {"a": "loaded"}
        assert scene["a"].load is None  # older than 5 s
        await scene.is_in("a", ModelStatus.RECOVERING)
        assert 55 <= trio.current_time() - began <= 70
        assert scene["a"].reason == "the engine hung: no answer to /health for 60 s"
        scene.world.scripts["a"].hangs = False
        await scene.is_in("a", ModelStatus.LOADED)


async def test_silent_engine_without_work_is_left_alone(autojump_clock) -> None:
    async with scripted_host(A, forwarded=True) as scene:
        await scene.load("a")
        scene.world.scripts["a"].hangs = True
        await trio.sleep(600)
        assert scene.statuses() == {"a": "loaded"}
        scene["a"].begin_request()
        await scene.is_in("a", ModelStatus.RECOVERING)
        scene.world.scripts["a"].hangs = False
        await scene.is_in("a", ModelStatus.LOADED)
        scene["a"].end_request()


def test_crash_history() -> None:
    history = CrashHistory(max_restarts=3, window_s=100)
    assert [history.record(now) for now in (0, 1, 2)] == [1, 2, 4]
    assert history.record(99) is None
    assert history.record(250) == 1
    many = CrashHistory(max_restarts=50, window_s=1000)
    assert max(filter(None, map(many.record, range(50)))) == 60


def test_transition_that_must_not_happen_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="must not go from poisoned to loaded"):
        check_transition(ModelStatus.POISONED, ModelStatus.LOADED)


# Idle models, preload, end ............................................................................................


async def test_idle_model_is_unloaded(autojump_clock) -> None:
    async with scripted_host(model_table("a", idle_ttl_seconds=100)) as scene:
        await scene.load("a")
        scene.world.scripts["a"].in_flight = 1
        await trio.sleep(300)
        assert scene.statuses() == {"a": "loaded"}
        scene.world.scripts["a"].in_flight = 0
        await trio.sleep(95)
        assert scene.statuses() == {"a": "loaded"}
        await trio.sleep(15)
        assert scene.statuses() == {"a": "unloaded"}


async def test_preload_is_reported_while_it_runs(autojump_clock) -> None:
    text = model_table("a", preload=True) + model_table("b", preload=True) + model_table("c")
    async with scripted_host(text, scripts={"b": Script(exits_at_start=1)}) as scene:
        await trio.sleep(1)
        preload = scene.host.preload
        assert (preload.in_progress, preload.pending) == ("a", ["b"])
        await trio.sleep(20)
        assert (preload.in_progress, preload.pending, preload.completed) == (None, [], ["a"])
        assert preload.failed == [("b", "model 'b' did not start: the engine exited with status 1")]


async def test_end_stops_every_engine(autojump_clock) -> None:
    async with scripted_host(A + B) as scene:
        await scene.load("a")
        scene.nursery.start_soon(_ignore_failure, scene.load, "b")
        await trio.sleep(1)
        await scene.host.end(60)
        assert scene.world.running == {}


async def _ignore_failure(function, *arguments) -> None:
    with pytest.raises(StartFailed):
        await function(*arguments)
