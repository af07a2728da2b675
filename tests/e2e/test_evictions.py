"""Evictions for a model that must be loaded: who makes room, who waits, who stays. All in memory."""

from __future__ import annotations

import pytest
import trio
from fakes.cold_loads import LOAD_S, PROBE_S, K, M, N
from fakes.fleets import a_catalogue
from fakes.world import a_sim, a_sim_model, a_world, profile_of

from gateway.config.settings import EvictionSettings, Settings
from neuron.simulated.faults import (
    HttpError,
    NotLoaded,
    ReportStatus,
    SilentPrefill,
)

# Evictions ..........................................................................................................


async def test_two_models_of_one_class_take_turns_on_one_neuron_under_load(autojump_clock):
    """Eight clients, fifty swaps in each direction: every request is answered, and no model is evicted while in use."""
    sim = a_sim("a", M, N)
    answers = []
    async with a_world(sim, profiles=(profile_of(M), profile_of(N))) as world:

        async def client(number):
            for turn in range(100):
                answers.append(await world.ask((M, N)[(number + turn) % 2].id, stream=number % 2 == 0))  # noqa: PERF401 - awaited one after the other

        async with trio.open_nursery() as clients:
            for number in range(8):
                clients.start_soon(client, number)

        assert [answer.text for answer in answers] == ["Tbilisi"] * 800
        assert world.violations() == []
        assert sim.counters["unloads"] >= 100
        assert sim.counters["loads"] == sim.counters["unloads"] + 1
        # Minimum residency does not stall the swaps: each is one load, and the requests that wait for it.
        assert trio.current_time() < 220 * (LOAD_S + PROBE_S + 0.3)


async def test_two_cold_models_for_the_same_memory_are_loaded_one_after_the_other(autojump_clock):
    """Both see the memory free at once; the second decides again when the first is loaded."""
    sim = a_sim("a", M, N, vram_mb=(12_000,))
    async with a_world(sim, profiles=(profile_of(M), profile_of(N))) as world:
        answers = []

        async def one(model):
            answers.append(await world.ask(model.id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, M)
            nursery.start_soon(one, N)

        assert [answer.text for answer in answers] == ["Tbilisi"] * 2
        assert world.violations() == []
        assert 2 * (LOAD_S + PROBE_S) <= trio.current_time() < 2 * (LOAD_S + PROBE_S) + 1.5


async def test_load_waits_for_the_lease_of_a_model_in_use(autojump_clock):
    """Its class permits eviction, its lease does not: when the lease is returned, the load starts."""
    sim = a_sim("a", M, N, loaded=(M.id,))
    sim.faults.add(SilentPrefill(model=M.id, seconds=40))
    async with a_world(sim, profiles=(profile_of(M), profile_of(N))) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: world.ask(M.id, stream=True))
            await trio.sleep(1)
            answer = await world.ask(N.id)

        assert answer.text == "Tbilisi"
        assert 40 + PROBE_S + LOAD_S < trio.current_time() < 40 + PROBE_S + LOAD_S + 3
        assert world.violations() == []


async def test_lower_class_never_evicts_a_higher_one(autojump_clock):
    """503 `no_room` at once, with the names of the models in memory; a higher class does evict a lower one."""
    sim = a_sim("a", M, N, loaded=(M.id,))
    profiles = (profile_of(M, residency_priority=200), profile_of(N, residency_priority=100))
    async with a_world(sim, profiles=profiles) as world:
        answer = await world.ask(N.id)

        (error,) = answer.errors
        assert (answer.status, error["code"], answer.headers["retry-after"]) == (503, "no_room", "30")
        assert M.id in error["message"]
        assert trio.current_time() == 0
        assert sim.counters["unloads"] == 0

    sim = a_sim("a", M, N, loaded=(N.id,))
    async with a_world(sim, profiles=profiles) as world:
        assert (await world.ask(M.id)).text == "Tbilisi"
        assert sim.counters["unloads"] == 1


async def test_waiting_request_uses_the_residency_classes_in_force(autojump_clock):
    """When the operator raises its class, a waiting request evicts, and does not wait for half an hour."""
    higher = profile_of(M, residency_priority=200)
    async with a_world(a_sim("a", M, N), profiles=(higher, profile_of(N))) as world:
        answers = {}

        async def one(model):
            answers[model.id] = await world.ask(model.id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, M)
            await trio.sleep(1)
            nursery.start_soon(one, N)  # while the neuron has a job, its memory may still become free
            await trio.sleep(1)
            world.catalogue_store.current = a_catalogue(profile_of(M), profile_of(N), generation=2)
        assert {model: answer.text for model, answer in answers.items()} == {M.id: "Tbilisi", N.id: "Tbilisi"}
        assert trio.current_time() < 20


async def test_request_whose_model_leaves_the_catalogue_while_it_waits_is_still_served(autojump_clock):
    """It keeps the catalogue of its start."""
    async with a_world(a_sim("a", M), profiles=(profile_of(M),)) as world:
        async with trio.open_nursery() as nursery:
            answers = []

            async def one():
                answers.append(await world.ask(M.id))

            nursery.start_soon(one)
            await trio.sleep(1)
            world.catalogue_store.current = a_catalogue(profile_of(N), generation=2)
            world.admission.wake_all()
        assert answers[0].text == "Tbilisi"


async def test_model_too_large_for_every_device_gets_an_error(autojump_clock):
    """No eviction and no wait helps: the neuron is infeasible, although the profile has no other requirement."""
    huge = a_sim_model("lab/huge", 30_000)
    async with a_world(a_sim("a", huge), profiles=(profile_of(huge),)) as world:
        (error,) = (await world.ask(huge.id)).errors
        assert (error["code"], error["message"]) == (
            "no_feasible_neuron",
            "model 'lab/huge' is in the catalogue but no healthy neuron's topology satisfies its constraints",
        )


async def test_memory_of_a_poisoned_model_is_not_waited_for(autojump_clock):
    """Only a restart of its neuron frees it, and the error says so at once."""
    sim = a_sim("a", M, N, loaded=(M.id,))
    sim.faults.add(ReportStatus(model=M.id, status="poisoned"))
    async with a_world(sim, profiles=(profile_of(M), profile_of(N))) as world:
        for model, code, text in ((N, "no_room", "lab/m (poisoned)"), (M, "service_unavailable", "poisoned on a")):
            answer = await world.ask(model.id)
            (error,) = answer.errors
            assert (answer.status, error["code"], text in error["message"]) == (503, code, True)
        assert trio.current_time() < 1
        assert world.load_calls() == []


async def test_models_without_a_reported_size_can_be_swapped(autojump_clock, monkeypatch):
    """`vram_used_mb` may be null: then the catalogue's figure counts."""
    from neuron.simulated import api  # noqa: PLC0415 - patched in this test only

    entry = api._model_entry
    monkeypatch.setattr(api, "_model_entry", lambda state, model: entry(state, model) | {"vram_used_mb": None})
    sim = a_sim("a", M, N, loaded=(M.id,))
    async with a_world(sim, profiles=(profile_of(M), profile_of(N))) as world:
        assert (await world.ask(N.id)).text == "Tbilisi"
        assert sim.counters["unloads"] == 1


async def test_request_for_a_model_that_is_being_evicted_waits_and_is_served(autojump_clock):
    """Neither 404 nor 503: it becomes a cold load."""
    sim = a_sim("a", M, N, loaded=(M.id,))
    async with a_world(sim, profiles=(profile_of(M), profile_of(N))) as world:
        answers = {}

        async def one(model):
            answers[model.id] = await world.ask(model.id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, N)
            while True:
                await trio.lowlevel.checkpoint()
                if world.fleet.nodes["a"].models[M.id].status == "unloading":
                    break
            nursery.start_soon(one, M)

        assert {model: answer.text for model, answer in answers.items()} == {M.id: "Tbilisi", N.id: "Tbilisi"}
        assert world.violations() == []


async def test_model_that_vanished_from_its_neuron_is_loaded_again(autojump_clock):
    """The neuron's `not loaded` means that the model is not loaded, not that it does not exist."""
    sim = a_sim("a", M, loaded=(M.id,))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        sim.unload(M.id)
        assert (await world.ask(M.id)).text == "Tbilisi"
        assert world.load_calls() == ["a"]


async def test_neuron_that_denies_a_listed_model_is_tried_a_limited_number_of_times(autojump_clock):
    """One retry budget covers all attempts; then the client gets the neuron's 404."""
    sim = a_sim("a", M, loaded=(M.id,))
    sim.faults.add(NotLoaded())
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        answer = await world.ask(M.id)
        assert (answer.status, answer.errors[0]["code"]) == (404, "model_not_found")
        assert len(sim.requests) == 3


async def test_busy_replica_does_not_cause_another_load(autojump_clock):
    """The client gets the 503 with Retry-After: a load takes minutes, and may evict another model."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, N, loaded=(N.id,))
    sims[0].faults.add(HttpError(status=503, text="full", retry_after_s=7))
    async with a_world(*sims, profiles=(profile_of(M), profile_of(N))) as world:
        answer = await world.ask(M.id)
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert world.load_calls() == []


# Residency ..........................................................................................................


async def test_freshly_loaded_model_is_not_evicted_if_another_place_will_do(autojump_clock):
    """Minimum residency decides between equal candidates: the older resident is evicted."""
    sims = a_sim("a", M, N, K), a_sim("b", M, N, K, vram_mb=(9000,))
    profiles = (profile_of(M, pinned_on=("b",), residency_priority=100), profile_of(N), profile_of(K))
    async with a_world(*sims, profiles=profiles) as world:
        await world.ask(M.id)
        await trio.sleep(40)
        await world.ask(N.id)  # to `a`, the larger: young
        answer = await world.ask(K.id)
        assert (answer.text, answer.node) == ("Tbilisi", "b")


async def test_idle_models_are_unloaded_at_their_ttl_and_pinned_ones_stay(autojump_clock):
    """A model's own TTL overrides the global one; a pin without a TTL never expires."""
    models = [a_sim_model(f"lab/{name}", 2000) for name in ("own", "global", "pinned")]
    own, common, pinned = models
    profiles = (profile_of(own, idle_ttl_seconds=20.0), profile_of(common), profile_of(pinned, pinned_on=("a",)))
    settings = Settings(eviction=EvictionSettings(idle_ttl_seconds=60))
    async with a_world(a_sim("a", *models), profiles=profiles, settings=settings) as world:
        for model in models:
            await world.ask(model.id)
        began = trio.current_time()
        unloaded_at_s = {}
        while trio.current_time() < began + 200:
            await trio.sleep(0.5)
            models_loaded = world.fleet.nodes["a"].models
            for model in models:
                if model.id not in models_loaded or models_loaded[model.id].status == "unloaded":
                    unloaded_at_s.setdefault(model.id, trio.current_time() - began)

    assert set(unloaded_at_s) == {own.id, common.id}
    assert unloaded_at_s[own.id] == pytest.approx(20 - 2 * (2 * LOAD_S + PROBE_S) / 2, abs=8)
    assert unloaded_at_s[common.id] == pytest.approx(60, abs=10)


async def test_warning_advises_to_defragment_after_n_evictions(autojump_clock, log_output):
    """Every n-th eviction on a neuron, one warning."""
    settings = Settings(eviction=EvictionSettings(defrag_after_cycles=4))
    async with a_world(a_sim("a", M, N), profiles=(profile_of(M), profile_of(N)), settings=settings) as world:
        for turn in range(10):
            await world.ask((M, N)[turn % 2].id)
    advised = [entry for entry in log_output if entry["event"] == "defrag_advised"]
    assert [entry["cycles"] for entry in advised] == [4, 8]


@pytest.fixture
def log_output():
    """The events logged inside the block."""
    from structlog.testing import capture_logs  # noqa: PLC0415 - only this test uses it

    with capture_logs() as entries:
        yield entries
