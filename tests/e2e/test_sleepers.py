"""Models that sleep: waking is a load with a price of its own, in placement, in plans and for those who wait.

All in memory. `M` and `N` may sleep and keep 500 MB then; each GPU has room for one of them.
"""

from __future__ import annotations

import json

import pytest
import trio
from fakes.fleets import a_catalogue
from fakes.world import World, a_sim, a_sim_model, a_world, profile_of

from gateway.aliases.plan import plan
from gateway.config.settings import DeadlineSettings, EvictionSettings, Settings
from gateway.telemetry.explain import explain_requests

LOAD_S, WAKE_S, PROBE_S = 60.0, 3.0, 1.02
M, N = (
    a_sim_model(name, load_s=LOAD_S, sleep=1, wake_seconds=WAKE_S, asleep_vram_mb=500) for name in ("lab/m", "lab/n")
)
PROFILES = (profile_of(M), profile_of(N))
SETTINGS = Settings(eviction=EvictionSettings(min_residency_seconds=0))


def steps(sim) -> list[tuple[str, str]]:
    """What the neuron has done, without the beginnings."""
    return [(entry.action, entry.model) for entry in sim.loads if entry.outcome in {"loaded", "unloaded", "asleep"}]


async def put_to_sleep(world: World, node: str, model: str) -> None:
    """As an operator does it at the gateway."""
    world.scheduler.unload(node, model)
    while world.fleet.nodes[node].models.get(model) is None or world.fleet.nodes[node].models[model].status != "asleep":
        await trio.sleep(0.1)


async def test_request_for_a_sleeper_wakes_it(autojump_clock) -> None:
    """In the time of a wake, and nothing is loaded."""
    async with a_world(a_sim("a", M), profiles=PROFILES, settings=SETTINGS) as world:
        await world.ask(M.id)
        await put_to_sleep(world, "a", M.id)
        (device,) = world.fleet.nodes["a"].devices
        assert device.vram_used_mb == 500
        began = trio.current_time()

        answer = await world.ask(M.id)

        assert (answer.status, answer.text) == (200, "Tbilisi")
        assert trio.current_time() - began == pytest.approx(WAKE_S + PROBE_S, abs=0.2)
        assert steps(world.sims[0]) == [("load", M.id), ("sleep", M.id), ("wake", M.id)]
        assert world.violations() == []


async def test_two_models_that_share_a_gpu_take_turns_by_sleeping(autojump_clock) -> None:
    """What a sleeper keeps is not counted twice: 8000 MB fit beside 500 MB on 10,000 MB."""
    async with a_world(a_sim("a", M, N), profiles=PROFILES, settings=SETTINGS) as world:
        for model in (M, N, M, N):
            assert (await world.ask(model.id)).status == 200
        assert steps(world.sims[0]) == [
            ("load", M.id), ("sleep", M.id), ("load", N.id), ("sleep", N.id), ("wake", M.id), ("sleep", M.id),
            ("wake", N.id),
        ]  # fmt: skip
        assert world.violations() == []


async def test_sleeper_that_leaves_too_little_memory_is_unloaded(autojump_clock) -> None:
    """Only when the memory that it keeps is needed."""
    large = a_sim_model("lab/large", 9_800)
    profiles = (*PROFILES, profile_of(large))
    async with a_world(a_sim("a", M, large), profiles=profiles, settings=SETTINGS) as world:
        await world.ask(M.id)
        await put_to_sleep(world, "a", M.id)

        assert (await world.ask(large.id)).status == 200

        assert steps(world.sims[0])[-2:] == [("unload", M.id), ("load", large.id)]
        assert world.violations() == []


async def test_operator_unloads_a_sleeper_for_good(autojump_clock) -> None:
    """The first unload puts it to sleep, the second one frees the rest."""
    async with a_world(a_sim("a", M), profiles=PROFILES, settings=SETTINGS) as world:
        await world.ask(M.id)
        await put_to_sleep(world, "a", M.id)
        world.scheduler.unload("a", M.id)
        await trio.sleep(11)

        assert steps(world.sims[0])[-1] == ("unload", M.id)
        (device,) = world.fleet.nodes["a"].devices
        assert device.vram_used_mb == 0


@pytest.mark.parametrize(("wake_s", "chosen"), [(3.0, "a"), (200.0, "b")])
async def test_waking_is_priced_against_a_load_into_free_memory(autojump_clock, wake_s, chosen) -> None:
    """M sleeps on `a`, where N would have to leave and return; `b` is empty. The learnt seconds decide."""
    sleepy = a_sim_model("lab/m", load_s=LOAD_S, sleep=1, wake_seconds=wake_s, asleep_vram_mb=500)
    quick = a_sim_model("lab/n", load_s=2.0)
    a, b = a_sim("a", sleepy, quick), a_sim("b", sleepy)
    profiles = profile_of(sleepy, residency_priority=1000), profile_of(quick, pinned_on=("a",))
    async with a_world(a, b, profiles=profiles, settings=SETTINGS) as world:
        world.fleet.drain("b", draining=True)
        for _ in range(2):  # one load and one wake of M on `a` are timed
            await world.ask(sleepy.id)
            await put_to_sleep(world, "a", sleepy.id)
        await world.ask(quick.id)
        world.fleet.drain("b", draining=False)
        imagined = plan(a_catalogue(*profiles), with_alias(*profiles), world.fleet, times=world.scheduler.times)
        (placement,) = imagined.aliases[0].placements

        answer = await world.ask(sleepy.id)

        assert answer.node == chosen
        assert placement.nodes == (chosen,)
        assert (placement.wakes, placement.evicts) == ((True, ("lab/n",)) if chosen == "a" else (False, ()))
        assert placement.expected_s == (pytest.approx(wake_s, abs=0.2) if chosen == "a" else None)


def with_alias(*profiles):
    return a_catalogue(*profiles, aliases={"tier": "lab/m"}, generation=2)


async def test_sleeper_whose_gpu_is_taken_is_loaded_on_another(autojump_clock, nursery) -> None:
    """It sleeps on GPU 0, which a busy model fills; GPU 1 is free. The sleeper is ended first."""
    large = a_sim_model("lab/large", 9_000, decode_tok_s=0.01)
    sim = a_sim("a", M, large, vram_mb=(10_000, 10_000))
    async with a_world(sim, profiles=(*PROFILES, profile_of(large)), settings=SETTINGS) as world:
        await world.ask(M.id)
        await put_to_sleep(world, "a", M.id)
        (slept_on,) = world.fleet.nodes["a"].models[M.id].report.devices
        sim.end_load(sim.begin_load(large.id, None, None, [slept_on]))
        await trio.sleep(11)  # a poll
        nursery.start_soon(world.ask, large.id)
        await trio.sleep(2)

        assert (await world.ask(M.id)).status == 200

        assert steps(sim)[-2:] == [("unload", M.id), ("load", M.id)]
        assert world.fleet.nodes["a"].models[M.id].report.devices != (slept_on,)
        assert world.violations() == []
        nursery.cancel_scope.cancel()


async def test_warm_swap_targets_a_sleeper(autojump_clock) -> None:
    """Waking is a load: the alias moves once the model is awake and has answered."""
    sim = a_sim("a", M, N, vram_mb=(10_000, 10_000))
    async with a_world(sim, profiles=PROFILES, settings=SETTINGS) as world:
        for model in (M, N):
            await world.ask(model.id)
        await put_to_sleep(world, "a", N.id)
        world.catalogue_store.accept(a_catalogue(*PROFILES, aliases={"tier": M.id}))
        began = trio.current_time()
        world.catalogue_store.accept(a_catalogue(*PROFILES, aliases={"tier": N.id}, generation=2))
        assert [view.state for view in world.swaps.views()] == ["warming"]
        while world.swaps.views():
            assert (await world.ask("tier")).headers["x-cortex-model"] == M.id
        assert (await world.ask("tier")).headers["x-cortex-model"] == N.id
        assert trio.current_time() - began < LOAD_S / 2
        assert steps(sim)[-1] == ("wake", N.id)


async def test_waiting_stream_gets_the_progress_as_comments_and_never_as_content(autojump_clock) -> None:
    async with a_world(a_sim("a", M), profiles=PROFILES, settings=SETTINGS) as world:
        answer = await world.ask(M.id, stream=True)
        comments = [line for line in answer.body.decode().splitlines() if line.startswith(":")]

        assert comments[0].startswith(": loading")
        assert any("%, " in line and " s so far, about " in line for line in comments)
        assert answer.text == "Tbilisi"
        assert b"loading" not in b"".join(json.dumps(event).encode() for event in answer.events)
        await put_to_sleep(world, "a", M.id)

        settings = world.settings.streaming
        assert settings.early_commit_seconds > WAKE_S  # so this wait shows nothing
        assert b": waking" not in (await world.ask(M.id, stream=True)).body


async def test_ping_of_an_anthropic_stream_carries_the_progress(autojump_clock) -> None:
    """A comment before the event, in whose data it does not appear."""
    async with a_world(a_sim("a", M), profiles=PROFILES, settings=SETTINGS) as world:
        head = (b"anthropic-version", b"2023-06-01")
        answer = await world.ask(M.id, stream=True, path="/v1/messages", headers=[head])
        data = [line for line in answer.body.decode().splitlines() if line.startswith("data:")]

        assert b": loading" in answer.body
        assert data
        assert not any("loading" in line for line in data)


@pytest.mark.parametrize("asleep", [False, True])
async def test_refused_request_learns_when_the_load_or_wake_ends(autojump_clock, asleep) -> None:
    """By the fraction that the neuron reports, before any load was timed: 20 s in all, of which 10 s are over."""
    model = a_sim_model("lab/m", load_s=20.0, sleep=1, wake_seconds=20.0)
    settings = Settings(eviction=EvictionSettings(min_residency_seconds=0), deadlines=DeadlineSettings(load_seconds=10))
    sim = a_sim("a", model, loaded=(model.id,))
    async with a_world(sim, profiles=PROFILES, settings=settings) as world:
        if asleep:
            await put_to_sleep(world, "a", model.id)
        else:
            sim.unload(model.id)
            await trio.sleep(11)
        answer = await world.ask(model.id)

        (error,) = answer.errors
        assert answer.status == 503
        assert f"({'waking' if asleep else 'loading'} " in error["message"]
        assert 9 <= int(answer.headers["retry-after"]) <= 15  # the fraction is up to 2 s old
        await trio.sleep(11)
        assert (await world.ask(model.id)).status == 200


async def test_explain_tells_that_a_model_slept_and_was_woken(autojump_clock) -> None:
    async with a_world(a_sim("a", M), profiles=PROFILES, settings=SETTINGS) as world:
        await world.ask(M.id)
        await put_to_sleep(world, "a", M.id)
        answer = await world.ask(M.id)
        (story,) = explain_requests(
            answer.headers["x-request-id"], world.request_log, world.scheduler.loads_between, trio.current_time()
        )

        verdict = story["choices"][0]["candidates"][0]
        assert (verdict["state"], "its memory was wanted" in verdict["detail"]) == ("asleep", True)
        assert "to be woken: it fits" in verdict["detail"]
        assert [load["woke"] for load in story["loads"]] == [True]


async def test_status_shows_a_wake_under_way(autojump_clock, nursery) -> None:
    async with a_world(a_sim("a", M), profiles=PROFILES, settings=SETTINGS) as world:
        await world.ask(M.id)
        await put_to_sleep(world, "a", M.id)
        nursery.start_soon(world.ask, M.id)
        await trio.sleep(2.5)
        (load,) = world.scheduler.loads()

        assert load.wakes
        assert load.progress == pytest.approx(2.5 / WAKE_S, abs=0.75)
        await trio.sleep(5)
