"""What a difficult neuron, and somebody else who uses it, do to an eviction. All in memory."""

from __future__ import annotations

import trio
from fakes.world import a_sim, a_sim_model, a_world, profile_of

from gateway.sim.faults import EndpointFails, SilentPrefill

M, N = a_sim_model("lab/m"), a_sim_model("lab/n")
PROFILES = (profile_of(M), profile_of(N))


async def test_victim_that_is_gone_already_is_no_failure(autojump_clock):
    """404 to an unload means "not here" as well: its list tells which."""
    sim = a_sim("a", M, N, loaded=(M.id,), vram_mb=(16_500,))
    async with a_world(sim, profiles=(profile_of(M), profile_of(N, vram_mb=9000))) as world:
        sim.models[N.id] = a_sim_model(N.id, 9000)
        sim.unload(M.id)
        answer = await world.ask(N.id)
        assert answer.text == "Tbilisi"
        assert world.violations() == []


async def test_neuron_that_refuses_to_unload_fails_the_load_and_keeps_its_model(autojump_clock):
    """Its model is routable again, and another neuron is tried."""
    stubborn, other = a_sim("a", M, N, loaded=(M.id,), vram_mb=(15_000,)), a_sim("b", M, N, loaded=(M.id,))
    stubborn.faults.add(EndpointFails(path="/models/unload", status=404, text="pinned by its operator"))
    async with a_world(stubborn, other, profiles=PROFILES) as world:
        answer = await world.ask(N.id)
        assert (answer.text, answer.node) == ("Tbilisi", "b")
        assert world.fleet.nodes["a"].models[M.id].routable


async def test_busy_victim_of_somebody_else_is_not_evicted(autojump_clock, nursery):
    """Requests that did not come through us count: the neuron's own numbers are asked for before the unload."""
    sim = a_sim("a", M, N, loaded=(M.id,))
    sim.faults.add(SilentPrefill(model=M.id, seconds=20))
    async with a_world(sim, profiles=PROFILES) as world, a_world(sim, profiles=PROFILES) as other:
        nursery.start_soon(lambda: other.ask(M.id, stream=True))
        await trio.sleep(1)
        answer = await world.ask(N.id)
        assert answer.text == "Tbilisi"
        assert world.violations() == []
        assert trio.current_time() > 21
