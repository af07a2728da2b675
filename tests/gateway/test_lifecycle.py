"""The jobs themselves: what they tell, what they refuse, and what a difficult neuron does to them. All in memory."""

from __future__ import annotations

import pytest
import trio
from fakes.world import a_sim, a_sim_model, a_world, ask_many, profile_of

from gateway.breaker import FAILURES, Breaker
from gateway.errors import ServiceUnavailable
from gateway.sim.faults import EndpointFails, LoadFails, SilentPrefill

M, N = a_sim_model("lab/m"), a_sim_model("lab/n")
PROFILES = (profile_of(M), profile_of(N))


async def test_load_under_way_is_shown_with_its_age_estimate_and_waiters(autojump_clock, nursery):
    """For `cortex status`: the estimate is None until it was once timed."""
    async with a_world(a_sim("a", M), profiles=PROFILES) as world:
        for estimate_s in (None, 5.0):
            nursery.start_soon(ask_many, world, M.id, 3)
            await trio.sleep(2)
            (load,) = world.lifecycle.loads()
            assert (load.node, load.model, load.elapsed_s, load.waiters) == ("a", M.id, pytest.approx(2), 3)
            assert load.estimate_s == (estimate_s and pytest.approx(estimate_s))
            assert world.lifecycle.retry_after_s(M.id) == (28 if estimate_s is None else 3)
            await trio.sleep(10)
            world.lifecycle.unload("a", M.id)
            await trio.sleep(1)


async def test_operator_may_not_unload_what_is_in_use_or_not_there(autojump_clock, nursery):
    """Nor while the node has another job. Each says which of them it is."""
    async with a_world(a_sim("a", M, N, loaded=(M.id,)), profiles=PROFILES) as world:
        with pytest.raises(ServiceUnavailable, match="is gone, not loaded"):
            world.lifecycle.unload("a", N.id)
        nursery.start_soon(world.ask, M.id)
        await trio.sleep(0.5)
        with pytest.raises(ServiceUnavailable, match="is in use: 1 request of ours under way"):
            world.lifecycle.unload("a", M.id)
        nursery.start_soon(world.ask, N.id)
        await trio.sleep(3)
        assert len(world.lifecycle.loads()) == 1
        with pytest.raises(ServiceUnavailable, match="a is busy with another load or unload"):
            world.lifecycle.unload("a", M.id)
        await trio.sleep(10)
        assert world.violations() == []


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


async def test_waiters_of_a_load_have_the_model_before_anybody_may_evict_it(autojump_clock, nursery):
    """A request for another model that comes at the very moment does not take it from under them."""
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


async def test_waiter_of_a_failing_load_hears_of_every_neuron(autojump_clock):
    """All reasons in one answer, so that one look is enough."""
    sims = a_sim("a", M), a_sim("b", M)
    for sim in sims:
        sim.faults.add(LoadFails(text=f"no kernel on {sim.name}"))
    async with a_world(*sims, profiles=PROFILES) as world:
        (error,) = (await world.ask(M.id)).errors
        assert "a: 400: no kernel on a" in error["message"]
        assert "b: 400: no kernel on b" in error["message"]


# The breaker ..........................................................................................................


def opened(at=0.0):
    """A breaker after just enough failures."""
    breaker = Breaker()
    changes = [breaker.failed(at, "reset") for _ in range(FAILURES)]
    assert changes == [False] * (FAILURES - 1) + [True]
    return breaker


def test_breaker_admits_everybody_until_failures_in_a_row():
    """A success in between begins the count anew."""
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0, "reset")
        breaker.succeeded()
    assert breaker.closed
    assert breaker.admits(0.0)
    assert not breaker.begin_trial(0.0)


def test_breaker_admits_one_at_a_time_once_it_has_cooled_down():
    """Until the trial has ended, nobody else."""
    breaker = opened()
    assert [breaker.admits(now) for now in (0.0, 0.99, 1.0)] == [False, False, True]
    assert breaker.begin_trial(1.0)
    assert not breaker.admits(1.5)
    breaker.end_trial()
    assert breaker.admits(1.5)
    assert breaker.succeeded()
    assert breaker.closed


def test_breaker_cools_down_twice_as_long_after_each_failed_trial():
    """1, 2, 4, 8, 16, 30, 30 s; what fails meanwhile was sent before and counts for nothing."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        waits.append(breaker.until - now)
        assert not breaker.failed(now, "late news")
        now = breaker.until
        assert breaker.failed(now, "reset")
    assert waits == [1, 2, 4, 8, 16, 30, 30]
