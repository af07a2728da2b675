"""Requests for a model that is loaded nowhere: one load, evictions for it, every request answered. All in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from fakes.fleets import a_catalogue
from fakes.world import a_sim, a_sim_model, a_world, ask_many, profile_of

from gateway.config.settings import DeadlineSettings, EvictionSettings, Settings
from neuron.simulated.faults import (
    EndpointFails,
    HttpError,
    LoadFails,
    LoadHangs,
    NotLoaded,
    ReportStatus,
    SilentPrefill,
)

PROBE_S = 1.02  # the time in which `a_sim_model` answers
LOAD_S = 5.0

M = a_sim_model("lab/m")
N = a_sim_model("lab/n")


def approx(seconds):
    """A time to the millisecond: prefill at 1e9 tokens a second takes a little time."""
    return pytest.approx(seconds, abs=0.001)


# One load for any number of requests .................................................................................


@pytest.mark.parametrize("stream", [False, True])
async def test_hundred_simultaneous_requests_for_a_cold_model_cause_one_load(stream, autojump_clock):
    """Three neurons could load it; one of them does, once, and every request is answered."""
    async with a_world(*(a_sim(name, M) for name in "abc"), profiles=(profile_of(M),)) as world:
        answers = await ask_many(world, M.id, 100, stream=stream)

        assert [answer.text for answer in answers] == ["Tbilisi"] * 100
        assert all(answer.whole and not answer.errors for answer in answers)
        assert world.load_calls() == ["a"]
        assert trio.current_time() == approx(LOAD_S + PROBE_S)
        assert world.violations() == []


async def test_disconnect_of_the_first_client_does_not_stop_the_load(autojump_clock, nursery):
    """The load belongs to the gateway: 99 answers, still one load."""
    async with a_world(*(a_sim(name, M) for name in "abc"), profiles=(profile_of(M),)) as world:
        nursery.start_soon(lambda: world.ask(M.id, leave_after_s=0.01))
        await trio.testing.wait_all_tasks_blocked()
        answers = await ask_many(world, M.id, 99)

        assert [answer.text for answer in answers] == ["Tbilisi"] * 99
        assert world.load_calls() == ["a"]


async def test_load_without_waiting_requests_continues_and_serves_later_ones(autojump_clock):
    """A neuron cannot stop a load, so its result is used."""
    async with a_world(a_sim("a", M), profiles=(profile_of(M),)) as world:
        left = await world.ask(M.id, leave_after_s=0.01)
        assert left.status == 0
        assert [(load.node, load.waiters) for load in world.scheduler.loads()] == [("a", 0)]
        await trio.sleep(LOAD_S)

        answer = await world.ask(M.id)

        assert (answer.text, world.load_calls()) == ("Tbilisi", ["a"])
        assert trio.current_time() == approx(0.01 + LOAD_S + PROBE_S)


async def test_model_loaded_by_another_client_is_used(autojump_clock):
    """`already loaded` is success."""
    async with a_world(a_sim("a", M), profiles=(profile_of(M),)) as world:
        sim = world.sims[0]
        sim.end_load(sim.begin_load(M.id, None, None, None))

        answer = await world.ask(M.id)

        assert answer.text == "Tbilisi"
        assert trio.current_time() < PROBE_S + 0.3


async def test_model_with_a_source_is_loaded_and_requested_by_the_neurons_own_name(autojump_clock):
    """The load call has `source:id`; outgoing bodies have the name that the neuron then lists."""
    full = replace(M, id=f"hf:{M.id}")
    profile = profile_of(M, source="hf")
    async with a_world(a_sim("a", full), profiles=(profile,)) as world:
        answers = await ask_many(world, M.id, 3)

        assert [answer.text for answer in answers] == ["Tbilisi"] * 3
        assert {request.model for request in world.sims[0].requests} == {f"hf:{M.id}"}
        assert {answer.headers["x-cortex-model"] for answer in answers} == {M.id}
        await trio.sleep(11)  # after a poll it is still the same model, and there is no second one
        assert (await world.ask(M.id)).text == "Tbilisi"
        assert len(world.load_calls()) == 1


async def test_model_over_two_devices_is_loaded_with_both_and_makes_room_on_both(autojump_clock):
    """Half of its memory is needed on each, so models on either device are evicted."""
    wide = a_sim_model("lab/wide", 16_000)
    left, right = a_sim_model("lab/left", 6000), a_sim_model("lab/right", 6000)
    sim = a_sim("a", wide, left, right, vram_mb=(10_000, 10_000))
    for model, device in ((left, 0), (right, 1)):
        sim.end_load(sim.begin_load(model.id, None, None, [device]))
    profiles = (profile_of(wide, min_devices=2), profile_of(left), profile_of(right))
    async with a_world(sim, profiles=profiles) as world:
        answer = await world.ask(wide.id)

        assert answer.text == "Tbilisi"
        assert sim.residents[wide.id].devices == (0, 1)
        assert sim.counters["unloads"] == 2
        assert world.violations() == []


# Unknown values .....................................................................................................


async def test_neuron_with_unknown_readings_still_gets_loads(autojump_clock):
    """Unknown is not zero: the neuron itself knows whether the model fits."""
    sim = a_sim("a", M)
    sim.faults.add(EndpointFails(path="/health"))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        assert (await world.ask(M.id)).text == "Tbilisi"


async def test_model_of_unknown_size_is_loaded_without_evictions(autojump_clock):
    """Without a known need there is no reason to evict."""
    sim = a_sim("a", M, N, loaded=(N.id,), vram_mb=(20_000,))
    async with a_world(sim, profiles=(profile_of(M, vram_mb=None), profile_of(N))) as world:
        assert (await world.ask(M.id)).text == "Tbilisi"
        assert sim.counters["unloads"] == 0


# Failing loads ......................................................................................................


async def test_next_feasible_neuron_is_tried_after_a_failed_load(autojump_clock):
    """The client does not see the first two failures."""
    sims = [a_sim(name, M) for name in "abc"]
    for sim in sims[:2]:
        sim.faults.add(LoadFails(seconds=1))
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        answer = await world.ask(M.id)

        assert (answer.text, answer.node) == ("Tbilisi", "c")
        assert world.load_calls() == ["a", "b", "c"]
        assert trio.current_time() == approx(1 + 1 + LOAD_S + PROBE_S)


async def test_failing_pair_of_neuron_and_model_backs_off_and_reports_it(autojump_clock):
    """5 s, 10 s, 20 s. The error has the neuron, its message, the number of failures, and when it is retried."""
    sim = a_sim("a", M)
    sim.faults.add(LoadFails(text="out of memory", times=3))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        for times, wait_s in ((1, 5), (2, 10), (3, 20)):
            answer = await world.ask(M.id)
            (error,) = answer.errors
            assert (answer.status, error["code"]) == (502, "cold_load_failed")
            assert answer.headers["retry-after"] == str(wait_s)
            assert "a: 400: out of memory" in error["message"]
            assert f"failures in a row: {times};" in error["message"]
            assert f"in {wait_s} s" in error["message"]

            await trio.sleep(wait_s - 0.1)
            assert (await world.ask(M.id)).status == 502
            assert len(world.load_calls()) == times  # not tried before that time
            await trio.sleep(0.2)
        assert (await world.ask(M.id)).text == "Tbilisi"


async def test_pair_that_fails_for_days_is_tried_every_five_minutes(autojump_clock):
    """With a request every minute. Once the neuron is repaired, it serves within five minutes."""
    sim = a_sim("a", M)
    sim.faults.add(LoadFails(text="out of memory"))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        backoffs = world.scheduler._backoffs
        for _ in range(3_000):
            backoffs.note_failure("a", M.id, "out of memory")
        assert (await world.ask(M.id)).headers["retry-after"] == "300"
        await trio.sleep(300.1)
        calls = len(world.load_calls())
        assert (await world.ask(M.id)).headers["retry-after"] == "300"
        assert len(world.load_calls()) == calls + 1

        sim.faults.clear()
        await trio.sleep(300.1)
        assert (await world.ask(M.id)).text == "Tbilisi"


async def test_wait_beyond_the_load_deadline_gets_a_retry_after(autojump_clock):
    """503 with Retry-After and an estimate from earlier loads of that model on that neuron."""
    sim = a_sim("a", M)
    settings = Settings(deadlines=DeadlineSettings(load_seconds=20))
    async with a_world(sim, profiles=(profile_of(M),), settings=settings) as world:
        await world.ask(M.id)
        sim.unload(M.id)
        sim.faults.add(LoadHangs(times=1))
        began = trio.current_time()

        answers = await ask_many(world, M.id, 2)

        assert trio.current_time() == approx(began + 20)
        for answer in answers:
            (error,) = answer.errors
            assert (answer.status, error["code"], error["param"]) == (503, "service_unavailable", "load")
            assert answer.headers["retry-after"] == "1"  # by the estimate it should be loaded by now
            assert "earlier loads took 5 s on a" in error["message"]


async def test_load_that_hangs_is_given_up_at_twice_the_deadline(autojump_clock):
    """Then the pair backs off like any that failed, and the neuron is free for other loads."""
    sim = a_sim("a", M)
    sim.faults.add(LoadHangs(times=1))
    settings = Settings(deadlines=DeadlineSettings(load_seconds=20))
    async with a_world(sim, profiles=(profile_of(M),), settings=settings) as world:
        assert (await world.ask(M.id)).status == 503
        await trio.sleep(20.01)
        assert (await world.ask(M.id)).status == 502
        await trio.sleep(5)
        assert (await world.ask(M.id)).text == "Tbilisi"


async def test_overdue_load_lets_its_model_load_on_another_neuron(autojump_clock):
    """Half of the load deadline if no earlier load is known; then the next feasible neuron loads it."""
    sims = a_sim("a", M), a_sim("b", M)
    sims[0].faults.add(LoadHangs())
    settings = Settings(deadlines=DeadlineSettings(load_seconds=400))
    async with a_world(*sims, profiles=(profile_of(M),), settings=settings) as world:
        answers = await ask_many(world, M.id, 10)

        assert {(answer.text, answer.node) for answer in answers} == {("Tbilisi", "b")}
        assert world.load_calls() == ["a", "b"]
        assert trio.current_time() == approx(200 + LOAD_S + PROBE_S)
        (load,) = world.scheduler.loads()
        assert (load.node, load.overdue) == ("a", True)


async def test_load_is_overdue_sooner_where_earlier_ones_are_known(autojump_clock):
    """Four times the longest, but at least two minutes. If there is only one neuron, the request continues to wait for
    it.
    """
    sim = a_sim("a", M)
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        await world.ask(M.id)
        sim.unload(M.id)
        sim.faults.add(LoadHangs(seconds=300, times=1))
        await trio.sleep(20)
        async with trio.open_nursery() as nursery:
            answers = []

            async def one():
                answers.append(await world.ask(M.id))

            nursery.start_soon(one)
            await trio.sleep(119.9)
            assert not world.scheduler.loads()[0].overdue
            await trio.sleep(0.2)
            assert world.scheduler.loads()[0].overdue
        assert answers[0].text == "Tbilisi"
        assert world.load_calls() == ["a", "a"]


async def test_hanging_load_does_not_block_loads_of_other_models(autojump_clock):
    """A request waits for a better neuron that is busy, but not for ever."""
    large = a_sim("large", M, N, vram_mb=(40_000,))
    small = a_sim("small", N, K, loaded=(K.id,))
    large.faults.add(LoadHangs(model=M.id))
    profiles = (profile_of(M, pinned_on=("large",)), profile_of(N), profile_of(K))
    async with a_world(large, small, profiles=profiles) as world:
        await world.ask(M.id, leave_after_s=1)

        answer = await world.ask(N.id)

        assert (answer.text, answer.node) == ("Tbilisi", "small")
        assert trio.current_time() < 40


K = a_sim_model("lab/k")


# Waiting streams ....................................................................................................


async def test_stream_that_waits_for_a_load_gets_its_200_and_comments_early(autojump_clock):
    """After `early_commit_seconds`, long before the first token."""
    slow = a_sim_model("lab/slow", load_s=60)
    async with a_world(a_sim("a", slow), profiles=(profile_of(slow),)) as world:
        answer = await world.ask(slow.id, stream=True)

        assert (answer.status, answer.began_at) == (200, 5.0)
        comments = [at for at, piece in answer.pieces if piece.startswith(b":")]
        assert comments[:3] == [5.0, 6.0, 7.0]
        assert 10 < len(comments) < 55, "in a long silence they come less often"
        assert (answer.text, answer.events[-1]) == ("Tbilisi", "[DONE]")


@pytest.mark.parametrize(("fails_after_s", "status"), [(4, 502), (6, 200)])
async def test_load_that_fails_has_a_proper_status_until_the_early_commit(fails_after_s, status, autojump_clock):
    """Before: 502. After: one error event, and no `[DONE]`."""
    sim = a_sim("a", M)
    sim.faults.add(LoadFails(seconds=fails_after_s))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        answer = await world.ask(M.id, stream=True)

        assert answer.status == status
        assert [error["code"] for error in answer.errors] == ["cold_load_failed"]
        assert answer.whole
        assert b"[DONE]" not in answer.body


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
