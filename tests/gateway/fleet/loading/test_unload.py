"""Evictions on a neuron that refuses, is slow, or is used by others. All in memory."""

from __future__ import annotations

import pytest
import trio
from fakes.world import a_sim, a_sim_model, a_world, profile_of

from neuron.simulated.faults import EndpointFails, SilentPrefill

M, N = a_sim_model("lab/m"), a_sim_model("lab/n")
PROFILES = (profile_of(M), profile_of(N))


async def test_victim_that_is_gone_already_is_no_failure(autojump_clock):
    """A 404 may mean "not here"; the list of models tells."""
    sim = a_sim("a", M, N, loaded=(M.id,), vram_mb=(16_500,))
    async with a_world(sim, profiles=(profile_of(M), profile_of(N, vram_mb=9000))) as world:
        sim.models[N.id] = a_sim_model(N.id, 9000)
        sim.unload(M.id)
        answer = await world.ask(N.id)
        assert answer.text == "Tbilisi"
        assert world.violations() == []


@pytest.mark.parametrize("status", [404, 400, 500])
async def test_neuron_that_refuses_to_unload_fails_the_load_and_keeps_its_model(autojump_clock, status):
    """The model is routable again, and another node is tried."""
    stubborn, other = a_sim("a", M, N, loaded=(M.id,), vram_mb=(15_000,)), a_sim("b", M, N, loaded=(M.id,))
    stubborn.faults.add(EndpointFails(path="/models/unload", status=status, text="pinned by its operator"))
    async with a_world(stubborn, other, profiles=PROFILES) as world:
        answer = await world.ask(N.id)
        assert (answer.text, answer.node) == ("Tbilisi", "b")
        assert world.fleet.nodes["a"].models[M.id].routable
        assert all("cortex_evictions_total" not in line or 'node="b"' in line for line in samples(world))


async def test_load_waits_for_memory_that_is_freed_late(autojump_clock, monkeypatch):
    """A driver frees memory two seconds after the unload; a load before that would fail."""
    sim = a_sim("a", M, N, loaded=(M.id,))
    free_mb = sim.vram_free_mb

    def freed_late(index):
        unloaded = [entry.at for entry in sim.loads if entry.action == "unload"]
        return 0 if unloaded and trio.current_time() < unloaded[0] + 2 else free_mb(index)

    monkeypatch.setattr(type(sim), "vram_free_mb", lambda _, index: freed_late(index))
    async with a_world(sim, profiles=PROFILES) as world:
        answer = await world.ask(N.id)

        assert answer.text == "Tbilisi"
        assert world.load_calls(N.id) == ["a"]
        assert answer.ended_at == pytest.approx(2 + 5 + 1.02, abs=0.2)
        assert world.scheduler.failing() == []


def samples(world):
    """Every sample line of the metrics."""
    return [line for line in world.metrics.expose().decode().splitlines() if not line.startswith("#")]


async def test_model_busy_with_requests_of_others_is_not_evicted(autojump_clock, nursery):
    """The neuron's counters are read before the unload."""
    sim = a_sim("a", M, N, loaded=(M.id,))
    sim.faults.add(SilentPrefill(model=M.id, seconds=20))
    async with a_world(sim, profiles=PROFILES) as world, a_world(sim, profiles=PROFILES) as other:
        nursery.start_soon(lambda: other.ask(M.id, stream=True))
        await trio.sleep(1)
        answer = await world.ask(N.id)
        assert answer.text == "Tbilisi"
        assert world.violations() == []
        assert trio.current_time() > 21
