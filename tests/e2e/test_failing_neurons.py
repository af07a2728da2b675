"""Neurons that die, hang, break off or are full: what each client gets. All in memory; see also test_processes."""

from __future__ import annotations

import pytest
import trio
from fakes.world import a_sim, a_sim_model, a_world, ask_many, profile_of

from gateway.config.settings import DeadlineSettings, RetrySettings, Settings
from gateway.fleet.circuit_breaker import FAILURES
from neuron.simulated.faults import Drop, Garbage, Hang, HttpError, LoadHangs, Refuse, Unresponsive

PROBE_S = 1.02
M = a_sim_model("lab/m")
LONG = "Write 200 words"  # 2 s of tokens after 1 s of silence


def approx(seconds):
    """A time to the millisecond."""
    return pytest.approx(seconds, abs=0.001)


# A neuron dies .......................................................................................................


async def test_killed_neuron_ends_each_of_its_streams_with_one_error_event(autojump_clock):
    """Thirty streams: what was sent stays, then one error event, no `[DONE]`, and the end."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        world.fleet.drain("b", draining=True)
        answers = []

        async def one():
            answers.append(await world.ask(M.id, stream=True, content=LONG))

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one)
            await trio.sleep(2)
            world.fleet.drain("b", draining=False)
            world.hosts["a"].kill()

        assert trio.current_time() == approx(2)
        assert len(answers) == 30
        for answer in answers:
            assert (answer.status, answer.whole) == (200, True)
            assert [error["code"] for error in answer.errors] == ["upstream_connection_error"]
            assert answer.events[-1] == {"error": answer.errors[0]}
            assert len(answer.events) > 50
        # Thirty failures open the circuit breaker: the neuron gets no more requests. Its failed polls mark it as down.
        assert not world.fleet.nodes["a"].breaker.closed
        after = await ask_many(world, M.id, 10)
        assert {(answer.text, answer.node) for answer in after} == {("Tbilisi", "b")}
        await trio.sleep(5)
        assert not world.fleet.nodes["a"].healthy


async def test_neurons_return_is_noticed_within_one_poll(autojump_clock):
    """And its circuit breaker is reset."""
    sim = a_sim("a", M, loaded=(M.id,))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        world.hosts["a"].kill()
        await ask_many(world, M.id, 30)
        await trio.sleep(60)
        assert (await world.ask(M.id)).status == 503
        world.hosts["a"].restart()
        await trio.sleep(world.settings.poll.interval_seconds)
        assert (await world.ask(M.id)).text == "Tbilisi"


async def test_requests_before_the_first_token_move_to_another_replica_unseen(autojump_clock):
    """Thirty requests without a stream lose their neuron in prefill; the other neuron answers all of them."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        answers = []

        async def one(number):
            answers.append(await world.ask(M.id, stream=number % 2 == 0))

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(one, number)
            await trio.sleep(0.5)
            world.hosts["a"].kill()

        assert [(answer.status, answer.text, answer.node) for answer in answers] == [(200, "Tbilisi", "b")] * 30


async def test_requests_waiting_for_a_load_on_a_dead_neuron_are_served_elsewhere(autojump_clock):
    """The broken load call is a failure like any other."""
    async with a_world(a_sim("a", M), a_sim("b", M), profiles=(profile_of(M),)) as world:
        async with trio.open_nursery() as nursery:
            answers = []

            async def many():
                answers.extend(await ask_many(world, M.id, 10))

            nursery.start_soon(many)
            await trio.sleep(2)
            world.hosts["a"].kill()

        assert {(answer.text, answer.node) for answer in answers} == {("Tbilisi", "b")}
        assert world.load_calls() == ["a", "b"]


async def test_load_on_a_host_that_lost_power_is_given_up_when_it_is_back(autojump_clock):
    """That call never gets an answer; the neuron's uptime shows that it has restarted."""
    sim = a_sim("a", M)
    sim.faults.add(LoadHangs(times=1))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        await world.ask(M.id, leave_after_s=1)
        sim.faults.add(Unresponsive())
        await trio.sleep(60)
        assert not world.fleet.nodes["a"].healthy
        assert [load.node for load in world.scheduler.loads()] == ["a"]  # it may only be busy with the load

        sim.faults.clear()
        sim.restart()
        await trio.sleep(6)  # one poll hangs for 5 s yet; a neuron that is down is polled every second

        assert world.scheduler.loads() == []
        assert "the neuron was restarted" in (await world.ask(M.id)).errors[0]["message"]
        await trio.sleep(5)
        assert (await world.ask(M.id)).text == "Tbilisi"


async def test_requests_waiting_for_a_load_on_a_host_without_power_are_served_elsewhere(autojump_clock):
    """Its call hangs without an error; after three polls without an answer the requests go elsewhere."""
    dark, other = a_sim("a", M, vram_mb=(20_000,)), a_sim("b", M)
    dark.faults.add(LoadHangs())
    async with a_world(dark, other, profiles=(profile_of(M),)) as world:
        answers = []

        async def one():
            answers.append(await world.ask(M.id))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
            await trio.sleep(1)
            assert world.load_calls(M.id) == ["a"]
            dark.faults.add(Unresponsive())

        assert {(answer.text, answer.node) for answer in answers} == {("Tbilisi", "b")}
        poll = world.settings.poll
        assert max(answer.ended_at for answer in answers) < (poll.misses + 1) * poll.interval_seconds + 10


# A neuron hangs ......................................................................................................


async def test_hanging_neuron_does_not_slow_the_requests_to_the_others(autojump_clock):
    """p99 of the first token on two of three neurons changes by less than 10 %: in memory, not at all."""

    async def p99(*, hanging: bool) -> float:
        sims = [a_sim(name, M, loaded=(M.id,)) for name in "abc"]
        async with a_world(*sims, profiles=(profile_of(M),)) as world:
            if hanging:
                sims[2].faults.add(Unresponsive())
            waited: list[float] = []

            async def one() -> None:
                began = trio.current_time()
                answer = await world.ask(M.id, stream=True, leave_after_s=30)
                if answer.node in {"a", "b"} and answer.first_token_at is not None:
                    waited.append(answer.first_token_at - began)

            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(one)
                    await trio.sleep(0.1)
            assert len(waited) >= 180
            return sorted(waited)[len(waited) * 99 // 100]

    before = await p99(hanging=False)
    after = await p99(hanging=True)
    assert before == approx(1.01)
    assert after <= before * 1.1


async def test_hanging_neuron_loses_its_requests_to_another_at_the_first_byte_deadline(autojump_clock):
    """The answer is late, and the neuron gets a strike."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    sims[0].faults.add(Hang())
    settings = Settings(deadlines=DeadlineSettings(first_byte_seconds=20))
    async with a_world(*sims, profiles=(profile_of(M),), settings=settings) as world:
        answer = await world.ask(M.id)
        assert (answer.text, answer.node) == ("Tbilisi", "b")
        assert trio.current_time() == approx(20 + PROBE_S)


# The circuit breaker .................................................................................................


async def test_neuron_whose_polls_are_good_but_whose_requests_fail_is_avoided(autojump_clock):
    """Good polls reset strikes, so with strikes alone it would get every other request for ever."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    sims[0].faults.add(Refuse())
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        for _ in range(30):
            assert (await world.ask(M.id)).text == "Tbilisi"
            await trio.sleep(0.2)

        assert world.fleet.nodes["a"].healthy
        # FAILURES open it, then one trial after 1, 2, 4, 8 and 16 s: about 37 s have passed.
        assert FAILURES < len(sims[0].requests) <= FAILURES + 5


@pytest.mark.parametrize("fault", [HttpError(), Garbage()])
async def test_neuron_that_fails_at_what_another_answers_is_avoided(fault, autojump_clock):
    """Its polls are good and it fails at once, so it looks the least busy; no client sees an error."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    sims[0].faults.add(fault)
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        for _ in range(20):
            assert (await world.ask(M.id)).node == "b"
        assert world.fleet.nodes["a"].healthy
        assert FAILURES < len(sims[0].requests) <= FAILURES + 4


async def test_request_that_every_neuron_answers_with_500_counts_against_none(autojump_clock):
    """Then the request is at fault: otherwise one client could open every circuit breaker."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    for sim in sims:
        sim.faults.add(HttpError(text="weird request", times=50))
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        answers = await ask_many(world, M.id, 25)
        assert {(answer.status, answer.errors[0]["message"]) for answer in answers} == {(500, "weird request")}
        assert all(node.healthy and node.breaker.closed for node in world.fleet.nodes.values())


async def test_breaker_lets_one_request_try_and_closes_when_it_succeeds(autojump_clock):
    """Half-open: other requests meanwhile get a 503 with Retry-After."""
    sim = a_sim("a", M, loaded=(M.id,))
    sim.faults.add(Refuse(times=FAILURES))
    settings = Settings(retries=RetrySettings(attempts=0))
    async with a_world(sim, profiles=(profile_of(M),), settings=settings) as world:
        statuses = []
        for _ in range(FAILURES):
            statuses.append((await world.ask(M.id)).status)
            await trio.sleep(0.3)  # a good poll in between
        assert statuses == [502] * FAILURES
        refused = await world.ask(M.id)
        (error,) = refused.errors
        assert (refused.status, error["code"], refused.headers["retry-after"]) == (503, "service_unavailable", "1")
        assert "a: the neuron closed the connection" in error["message"]

        await trio.sleep(1)
        answers = await ask_many(world, M.id, 5)
        assert sorted(answer.status for answer in answers) == [200, 503, 503, 503, 503]
        answers = await ask_many(world, M.id, 5)
        assert [answer.status for answer in answers] == [200] * 5


async def test_trial_whose_client_disconnects_decides_nothing(autojump_clock):
    """The next request is the trial then."""
    sim = a_sim("a", M, loaded=(M.id,))
    sim.faults.add(Refuse(times=FAILURES))
    settings = Settings(retries=RetrySettings(attempts=0))
    async with a_world(sim, profiles=(profile_of(M),), settings=settings) as world:
        for _ in range(FAILURES):
            await world.ask(M.id)
            await trio.sleep(0.3)
        await trio.sleep(1)
        assert (await world.ask(M.id, leave_after_s=0.5)).status == 0
        assert (await world.ask(M.id)).text == "Tbilisi"


async def test_streams_that_break_are_strikes_too(autojump_clock):
    """No neuron can take over after the commit point, but later requests can avoid this one."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    sims[0].faults.add(Drop(after=3))
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        answers = await ask_many(world, M.id, 6, stream=True, content=LONG)
        assert sorted(len(answer.errors) for answer in answers) == [0, 0, 0, 1, 1, 1]
        node = world.fleet.nodes["a"]
        assert node.healthy  # the third strike made it unhealthy, and the next poll healthy again
        await ask_many(world, M.id, 4, stream=True, content=LONG)
        assert not node.breaker.closed  # a poll does not close the circuit breaker


# Full neurons ........................................................................................................


async def test_neuron_gets_no_requests_within_its_retry_after(autojump_clock):
    """As long as there is another neuron; afterwards it is used again."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    sims[0].faults.add(HttpError(status=503, text="full", retry_after_s=20, times=1))
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        for _ in range(5):
            assert (await world.ask(M.id)).node == "b"
        assert len(sims[0].requests) == 1
        await trio.sleep(20)
        assert (await world.ask(M.id)).node == "a"


async def test_only_replica_gets_requests_within_its_retry_after(autojump_clock):
    """It may have room by now, and otherwise the client gets its second refusal."""
    sim = a_sim("a", M, loaded=(M.id,))
    sim.faults.add(HttpError(status=503, text="full", retry_after_s=20, times=1))
    async with a_world(sim, profiles=(profile_of(M),)) as world:
        assert (await world.ask(M.id)).status == 503
        assert (await world.ask(M.id)).text == "Tbilisi"


@pytest.mark.parametrize("patience", [(9, 4, 7), (4, 9, 7), (9, 7, 4)])
async def test_shortest_retry_after_is_passed_on_when_all_replicas_are_busy(patience, autojump_clock):
    """The neuron that is free first decides when to retry."""
    sims = [a_sim(name, M, loaded=(M.id,)) for name in "abc"]
    for sim, seconds in zip(sims, patience, strict=True):
        sim.faults.add(HttpError(status=503, text=f"{sim.name} is full", retry_after_s=seconds))
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        answer = await world.ask(M.id)
        assert (answer.status, answer.headers["retry-after"]) == (503, "4")
        assert [len(sim.requests) for sim in sims] == [1, 1, 1]
