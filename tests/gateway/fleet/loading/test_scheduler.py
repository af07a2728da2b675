"""Load and unload jobs: their views, and what they refuse. All in memory."""

from __future__ import annotations

import pytest
import trio
from fakes.world import a_sim, a_sim_model, a_world, ask_many, profile_of

from gateway.errors import ServiceUnavailable
from neuron.simulated.faults import LoadFails

M, N = a_sim_model("lab/m"), a_sim_model("lab/n")
PROFILES = (profile_of(M), profile_of(N))


async def test_load_under_way_is_shown_with_its_age_estimate_and_waiters(autojump_clock, nursery):
    """The estimate is None until a load was timed."""
    async with a_world(a_sim("a", M), profiles=PROFILES) as world:
        for estimate_s in (None, 5.0):
            nursery.start_soon(ask_many, world, M.id, 3)
            await trio.sleep(2)
            (load,) = world.scheduler.loads()
            assert (load.node, load.model, load.elapsed_s, load.waiters) == ("a", M.id, pytest.approx(2), 3)
            assert load.estimate_s == (estimate_s and pytest.approx(estimate_s))
            assert world.scheduler.retry_after_s(M.id) == (28 if estimate_s is None else 3)
            await trio.sleep(10)
            world.scheduler.unload("a", M.id)
            await trio.sleep(1)


async def test_operator_cannot_unload_a_model_that_is_in_use_or_not_there(autojump_clock, nursery):
    """Nor while the node has another job. Each error says which."""
    async with a_world(a_sim("a", M, N, loaded=(M.id,)), profiles=PROFILES) as world:
        with pytest.raises(ServiceUnavailable, match="'lab/n' is not on a"):
            world.scheduler.unload("a", N.id)
        nursery.start_soon(world.ask, M.id)
        await trio.sleep(0.5)
        with pytest.raises(ServiceUnavailable, match="is in use by 1 request of this gateway"):
            world.scheduler.unload("a", M.id)
        nursery.start_soon(world.ask, N.id)
        await trio.sleep(3)
        assert len(world.scheduler.loads()) == 1
        with pytest.raises(ServiceUnavailable, match="a is busy with another load or unload"):
            world.scheduler.unload("a", M.id)
        await trio.sleep(10)
        assert world.violations() == []


async def test_requests_that_wait_for_a_load_get_the_model_before_it_can_be_evicted(autojump_clock, nursery):
    """A request for another model that comes when the load ends has to wait."""
    sim = a_sim("a", M, N)
    async with a_world(sim, profiles=PROFILES) as world:
        answers = []

        async def many():
            answers.extend(await ask_many(world, M.id, 20))

        def pounce(change):
            if (change.model, change.after) == (M.id, "loaded"):
                nursery.start_soon(world.ask, N.id)

        world.fleet.observers.append(pounce)
        await many()
        assert [answer.ended_at for answer in answers] == [pytest.approx(6.02)] * 20
        assert [entry.model for entry in sim.loads if entry.outcome == "begun"] == [M.id]
        await trio.sleep(10)
        assert [entry.model for entry in sim.loads if entry.outcome == "begun"] == [M.id, N.id]


async def test_error_of_a_failed_load_has_the_reason_of_every_node(autojump_clock):
    """One error has all reasons."""
    sims = a_sim("a", M), a_sim("b", M)
    for sim in sims:
        sim.faults.add(LoadFails(text=f"no kernel on {sim.name}"))
    async with a_world(*sims, profiles=PROFILES) as world:
        (error,) = (await world.ask(M.id)).errors
        assert "a: 400: no kernel on a" in error["message"]
        assert "b: 400: no kernel on b" in error["message"]


async def test_idle_model_from_a_source_has_the_time_to_live_of_its_profile(autojump_clock):
    """A neuron lists it as `source:id`, and the profile's TTL applies to that name."""
    profile = profile_of(M, source="hf", idle_ttl_seconds=20)
    async with a_world(a_sim("a", M), profiles=(profile,)) as world:
        assert [world.scheduler._ttl_s(name) for name in (M.id, f"hf:{M.id}", "other")] == [20, 20, 0]


@pytest.mark.parametrize(("draining", "unloads"), [(False, 1), (True, 0)])
async def test_draining_gateway_unloads_no_idle_model(autojump_clock, draining, unloads):
    """The process that has replaced it may use a model that this one has not used for long."""
    profile = profile_of(M, idle_ttl_seconds=20)
    sim = a_sim("a", M)
    async with a_world(sim, profiles=(profile,)) as world:
        assert (await world.ask(M.id)).status == 200
        if draining:
            world.scheduler.drain()
        await trio.sleep(60)
        assert sim.counters["unloads"] == unloads


async def test_second_gpu_is_filled_before_a_model_is_evicted(autojump_clock):
    """Then the third model takes the GPU of the least recently used one; the load calls name the devices."""
    third = a_sim_model("lab/o")
    sim = a_sim("a", M, N, third, vram_mb=(10_000, 10_000))
    async with a_world(sim, profiles=(*PROFILES, profile_of(third))) as world:
        for model in (M, N, M, third):
            assert (await world.ask(model.id)).status == 200
        begun = [(entry.model, entry.devices) for entry in sim.loads if entry.outcome == "begun"]
        assert begun == [(M.id, (0,)), (N.id, (1,)), (third.id, (1,))]
        assert sim.counters["unloads"] == 1
        assert world.violations() == []


async def test_model_that_no_gpu_can_hold_is_refused_at_once(autojump_clock):
    """Nothing is evicted for it, and no load is tried. The profile has no other requirement than its size."""
    vast = a_sim_model("lab/vast", 12_000)
    sim = a_sim("a", M, vast, vram_mb=(10_000, 10_000), loaded=(M.id,))
    async with a_world(sim, profiles=(*PROFILES, profile_of(vast))) as world:
        answer = await world.ask(vast.id)
        assert (answer.status, answer.errors[0]["code"]) == (503, "no_feasible_neuron")
        assert (sim.counters["unloads"], world.load_calls()) == (0, [])


async def test_load_after_an_unload_takes_the_memory_that_it_freed(autojump_clock):
    """The last poll is older than the unload, and by it only an eviction makes room."""
    third = a_sim_model("lab/o")
    sim = a_sim("a", M, N, third, vram_mb=(10_000, 10_000), loaded=(M.id, N.id))
    async with a_world(sim, profiles=(*PROFILES, profile_of(third))) as world:
        (freed,) = world.fleet.nodes["a"].models[N.id].report.devices
        await world.scheduler._unloader.unload("a", N.id)
        assert not world.fleet.is_confirmed("a")

        assert (await world.ask(third.id)).status == 200

        assert world.fleet.nodes["a"].models[third.id].report.devices == (freed,)
        assert M.id in world.fleet.nodes["a"].models
        assert sim.counters["unloads"] == 1
