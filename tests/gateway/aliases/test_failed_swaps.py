"""How the warm swap of an alias fails, to the second, and what supersedes it. In memory."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from fakes.scripted import read_request, with_length
from fakes.warm_swaps import LOAD_S, NEW, OLD, PROBE_S, THIRD, in_force, moved, pointing_at, samples, two_hosts
from fakes.world import a_sim, a_world
from structlog.testing import capture_logs
from trio.testing import memory_stream_pair

from catalogue.models import Alias, Target
from gateway.config.settings import DeadlineSettings, Settings
from neuron.simulated.faults import Hang, HttpError, LoadFails, NotLoaded, Refuse

pytestmark = pytest.mark.usefixtures("fresh_loggers")


async def given_up(world):
    """Wait until a swap has failed; returns the reason."""
    while (reason := world.catalogue_store.current.warming["x"].failed) is None:
        await trio.sleep(0.01)
    return reason


# Failed ..............................................................................................................


async def test_swap_without_memory_beside_the_old_target_fails_at_once(autojump_clock):
    """The reason names the way out: swap = "cold"."""
    async with a_world(a_sim("a", OLD, NEW, loaded=(OLD.id,))) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        reason = await given_up(world)

        assert trio.current_time() < 5
        assert reason == (
            "no room for model 'lab/new' (8000 MB): a's memory is taken by lab/old, which serves the alias until "
            "'lab/new' is loaded; "
            'set swap = "cold" on the alias to move it without waiting'
        )
        assert (await world.ask("x")).headers["x-cortex-model"] == OLD.id
        assert world.load_calls() == []
        [view] = world.swaps.views()
        assert (view.alias, view.in_force, view.wanted, view.state, view.reason) == (
            "x", OLD.id, NEW.id, "failed", reason,
        )  # fmt: skip
        world.catalogue_store.accept(pointing_at(NEW, swap="cold"))
        assert (await world.ask("x")).headers["x-cortex-model"] == NEW.id
        assert world.swaps.views() == []


async def test_swap_that_outlives_its_deadline_fails_and_can_be_retried(autojump_clock):
    """To the second, with what is unfinished. The load goes on, so the retry is short."""
    slow = dataclasses.replace(NEW, load_seconds=100.0)
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", slow)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began = trio.current_time()
        with capture_logs() as logged:
            world.catalogue_store.accept(pointing_at(NEW, warm_deadline_seconds=30.0))
            reason = await given_up(world)

        assert trio.current_time() - began == pytest.approx(30, abs=0.01)
        assert reason == "not ready within 30 s: the load is not finished"
        assert [entry["event"] for entry in logged if entry["event"].startswith("swap_")] == [
            "swap_warming",
            "swap_failed",
        ]
        assert samples(world, "cortex_alias_swaps") == {'cortex_alias_swaps_total{alias="x",result="failed"} 1.0'}
        await trio.sleep(50)
        assert not world.swaps.retry("y")
        assert world.swaps.retry("x")
        assert not world.swaps.retry("x")  # it is running again
        assert await moved(world) - began == pytest.approx(100 + PROBE_S, abs=0.3)
        assert world.load_calls() == ["b"]


async def test_default_deadline_of_a_swap_is_that_of_loads(autojump_clock):
    """As long as a request may wait for its model."""
    slow = dataclasses.replace(NEW, load_seconds=1000.0)
    settings = Settings(deadlines=DeadlineSettings(load_seconds=77.0))
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", slow), settings=settings) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW))
        await given_up(world)

        assert trio.current_time() - began == pytest.approx(77, abs=0.01)


async def test_unknown_target_fails_at_once(autojump_clock):
    """The reason is that of a request for an unknown model."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        typo = Alias("x", (Target("lab/nwe"),))
        world.catalogue_store.accept(dataclasses.replace(pointing_at(OLD), aliases={"x": typo}))

        assert await given_up(world) == (
            "model 'lab/nwe' not found on any node and not in catalogue; did you mean 'lab/new'?"
        )
        assert (await world.ask("x")).headers["x-cortex-model"] == OLD.id


async def test_alias_does_not_move_to_a_target_that_fails_its_probe(autojump_clock):
    """The model is loaded and broken; the probe finds that out before clients do."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(HttpError(model=NEW.id, text="CUDA error"))
        world.catalogue_store.accept(pointing_at(NEW))

        assert await given_up(world) == ("'lab/new' is loaded, but its probe request got 500: CUDA error")
        world.hosts["b"].sim.faults.clear()
        assert (await world.ask("x")).headers["x-cortex-model"] == OLD.id


@pytest.mark.parametrize("body", [b'{"error":{"message":"no kernel"}}', b"[]", b"pong", b""])
async def test_alias_does_not_move_to_a_target_with_an_invalid_answer(autojump_clock, nursery, body):
    """Some engines report their own errors with status 200."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.upstream._connect = _respond_with(with_length(body), nursery)
        world.catalogue_store.accept(pointing_at(NEW))

        reason = "its probe request got status 200 with a body that is not an answer"
        assert await given_up(world) == f"'lab/new' is loaded, but {reason}"


def _respond_with(answer, nursery):
    """Connections on which every model sends this response."""

    async def say(stream):
        await read_request(stream)
        await stream.send_all(answer)
        await stream.aclose()

    async def connect(origin):
        ours, theirs = memory_stream_pair()
        nursery.start_soon(say, theirs)
        return ours

    return connect


async def test_alias_does_not_move_to_a_target_that_cannot_be_loaded(autojump_clock):
    """Every neuron that could hold it was tried; the next accepted file tries again."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(LoadFails(model=NEW.id, times=1))
        world.catalogue_store.accept(pointing_at(NEW))
        assert "could not be loaded" in await given_up(world)

        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW, sticky="key"))
        assert await moved(world) - began == pytest.approx(
            5 + LOAD_S + PROBE_S, abs=0.5
        )  # 5 s: its neuron is left alone


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(times=2),
        *(HttpError(status=status, retry_after_s=1, times=2) for status in (503, 429)),
        NotLoaded(times=2),
    ],
)
async def test_probe_is_repeated_after_a_temporary_error(autojump_clock, fault):
    """A full queue or a broken connection says nothing about the model."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(fault)
        world.catalogue_store.accept(pointing_at(NEW))
        await moved(world)

        assert (await world.ask("x")).headers["x-cortex-model"] == NEW.id


async def test_probe_that_hangs_counts_against_the_deadline(autojump_clock):
    """The reason says that the probe has no response."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(Hang(model=NEW.id))
        world.catalogue_store.accept(pointing_at(NEW, warm_deadline_seconds=60.0))
        await trio.sleep(30)
        assert world.fleet.nodes["b"].models[NEW.id].leases == 1  # so that it is not unloaded

        assert await given_up(world) == "not ready within 60 s: the probe has no response"
        assert world.fleet.leases == 0


# Superseded ...........................................................................................................


async def test_file_with_the_old_target_supersedes_the_swap(autojump_clock):
    """The alias never moved; the load that was started goes on."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        result = world.catalogue_store.accept(pointing_at(OLD))

        assert not result.diff
        assert world.swaps.views() == []
        await trio.sleep(30)
        assert in_force(world) == OLD.id
        assert world.load_calls() == ["b"]
        assert samples(world, "cortex_alias_swaps") == {'cortex_alias_swaps_total{alias="x",result="superseded"} 1.0'}


async def test_newer_file_supersedes_the_running_swap(autojump_clock):
    """Only the last target counts."""
    async with a_world(*two_hosts(), a_sim("c", THIRD)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(1)
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(THIRD))

        assert await moved(world) - began == pytest.approx(LOAD_S + PROBE_S, abs=0.2)
        assert in_force(world) == THIRD.id
        await trio.sleep(30)
        assert in_force(world) == THIRD.id


async def test_file_with_another_change_does_not_restart_the_swap(autojump_clock):
    """The swap continues, and moves to the alias of the newest file."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(3)
        world.catalogue_store.accept(pointing_at(NEW, deadline_seconds=9.0))

        assert world.catalogue_store.current.aliases["x"].deadline_seconds == 9.0
        assert await moved(world) - began == pytest.approx(LOAD_S + PROBE_S, abs=0.2)
        assert world.catalogue_store.current.aliases["x"].deadline_seconds == 9.0


async def test_target_whose_neuron_is_killed_while_it_loads_is_loaded_elsewhere(autojump_clock):
    """The next candidate loads it."""
    third = a_sim("c", NEW, vram_mb=(9000,))
    async with a_world(*two_hosts(), third) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        world.hosts["b"].kill()
        await moved(world)

        assert world.load_calls() == ["b", "c"]
        assert (await world.ask("x")).node == "c"


async def test_target_whose_only_neuron_is_killed_while_it_loads_is_loaded_after_its_restart(autojump_clock):
    """A load that was broken off says nothing about the model."""
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", NEW)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        world.hosts["b"].kill()
        await trio.sleep(60)
        assert world.swaps.views()[0].state in {"warming", "failed"}
        world.hosts["b"].restart()
        world.swaps.retry("x")
        await moved(world)

        assert world.load_calls() == ["b", "b"]


async def test_swap_waits_for_a_neuron_that_is_down(autojump_clock):
    """No other neuron has memory; the view says what it waits for."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].kill()
        await trio.sleep(60)
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(60)

        [view] = world.swaps.views()
        assert (view.state, view.phase) == ("warming", "wait")
        assert view.reason is not None
        assert view.reason.endswith("; b could hold it, but is unavailable now")
        world.hosts["b"].restart()
        await moved(world)
        assert (await world.ask("x")).node == "b"


async def test_drain_ends_all_swaps(autojump_clock):
    """The next process starts from its file; in this one no alias moves any more."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        world.swaps.drain()
        world.catalogue_store.accept(pointing_at(THIRD))
        await trio.sleep(60)

        assert in_force(world) == OLD.id
        assert world.load_calls(THIRD.id) == []
