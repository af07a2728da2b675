"""Requests for a model that is loaded nowhere: one load, every request answered. All in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from fakes.cold_loads import LOAD_S, PROBE_S, K, M, N
from fakes.world import a_sim, a_sim_model, a_world, ask_many, profile_of

from gateway.config.settings import DeadlineSettings, Settings
from neuron.simulated.faults import (
    EndpointFails,
    LoadFails,
    LoadHangs,
)


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
