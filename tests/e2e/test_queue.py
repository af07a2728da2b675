"""A model with `max_concurrent`: which requests wait, how long, and how a wait may end. All in memory."""

from __future__ import annotations

import random

import pytest
import trio
from fakes.fleets import a_catalogue, assert_idle
from fakes.known_keys import KnownKeys
from fakes.world import a_sim, a_sim_model, a_world, ask_many, profile_of
from rich.console import Console
from trio.testing import wait_all_tasks_blocked

from gateway.access.keys.key import Key
from gateway.cli.views import explain_view
from gateway.cli.views.status_view import requests_table
from gateway.config.settings import DeadlineSettings, LimitSettings, Settings
from gateway.errors import ServiceUnavailable
from gateway.server.request_views import live_request_json
from gateway.telemetry.explain import explain_requests
from neuron.simulated.faults import HttpError, NotLoaded, Refuse

PROBE_S = 1.02
LOAD_S = 5.0

# It takes no more than the limit and queues nothing: it would refuse one request too many, and the client would see.
M = a_sim_model("lab/m", max_in_flight=2, max_queue_depth=0)
N = a_sim_model("lab/n", max_in_flight=1, max_queue_depth=0)
M_ONLY = (profile_of(M, max_concurrent=2),)


def approx(seconds):
    """A time to the millisecond."""
    return pytest.approx(seconds, abs=0.001)


# Waiting ..............................................................................................................


@pytest.mark.parametrize("stream", [False, True])
async def test_neuron_never_exceeds_the_limit_and_every_request_is_served(stream, autojump_clock):
    """Two neurons with two slots each, twenty requests at once: five rounds, none refused."""
    async with a_world(*(a_sim(name, M, loaded=(M.id,)) for name in "ab"), profiles=M_ONLY) as world:
        answers = await ask_many(world, M.id, 20, stream=stream)

        assert [answer.text for answer in answers] == ["Tbilisi"] * 20
        assert sorted(answer.ended_at for answer in answers) == [
            approx(round_ * PROBE_S) for round_ in range(1, 6) for _ in range(4)
        ]
        assert [sim.residents[M.id].places.rejected_queue_full for sim in world.sims] == [0, 0]


async def test_first_come_is_first_served(autojump_clock):
    """In order of arrival, streaming or not."""
    async with a_world(a_sim("a", N, loaded=(N.id,)), profiles=(profile_of(N, max_concurrent=1),)) as world:
        served = []

        async def one(number):
            await world.ask(N.id, stream=number % 2 == 0)
            served.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(one, number)
                await trio.sleep(0.01)
        assert served == list(range(12))


async def test_requests_that_waited_for_a_load_are_served_in_order_of_arrival(autojump_clock):
    """The load wakes all of them at once; they keep their order, and a new request comes after them."""
    async with a_world(a_sim("a", N), profiles=(profile_of(N, max_concurrent=1),)) as world:
        served = []

        async def one(number):
            assert (await world.ask(N.id)).text == "Tbilisi"
            served.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
                await trio.sleep(0.01)
            await trio.sleep_until(LOAD_S)
            nursery.start_soon(one, 10)
        assert served == list(range(11))
        assert world.load_calls() == ["a"]


async def test_two_models_with_limits_alternate_on_one_neuron(autojump_clock):
    """Queued requests count as use: a model is not evicted between two of its requests, and all are served."""
    sim = a_sim("a", M, N)
    profiles = (profile_of(M, max_concurrent=1), profile_of(N, max_concurrent=1))
    async with a_world(sim, profiles=profiles) as world:
        answers = []

        async def one(model):
            answers.append(await world.ask(model.id))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, (M, N)[number % 2])
        assert [answer.text for answer in answers] == ["Tbilisi"] * 20
        assert sim.counters["loads"] == 2
        assert world.violations() == []


async def test_queued_stream_gets_its_200_and_comments_early(autojump_clock):
    """As while waiting for a load: after `early_commit_seconds`, then once a second."""
    async with a_world(a_sim("a", N, loaded=(N.id,)), profiles=(profile_of(N, max_concurrent=1),)) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(world.ask, N.id)
                await wait_all_tasks_blocked()
            answer = await world.ask(N.id, stream=True)

        assert (answer.status, answer.began_at) == (200, 5.0)
        comments = [at for at, piece in answer.pieces if piece.startswith(b":")]
        assert comments[:3] == [5.0, 6.0, 7.0]
        assert (answer.text, answer.events[-1], answer.ended_at) == ("Tbilisi", "[DONE]", approx(10 * PROBE_S))


async def test_positions_are_shown_and_move_up(autojump_clock):
    """In `/admin/requests` and `cortex status`."""
    async with (
        a_world(a_sim("a", N, loaded=(N.id,)), profiles=(profile_of(N, max_concurrent=1),)) as world,
        trio.open_nursery() as nursery,
    ):
        for _ in range(4):
            nursery.start_soon(world.ask, N.id)
            await wait_all_tasks_blocked()
        live = list(world.request_log.live.values())
        assert [(record.routing.ticket.waits_for, record.routing.ticket.position) for record in live] == [
            (None, None),
            ("place", 1),
            ("place", 2),
            ("place", 3),
        ]
        (line,) = world.admission.views()
        assert (line.model, line.max_concurrent, line.leases, line.waiting_for_slot) == (N.id, 1, 1, 3)
        await trio.sleep(1.5)
        assert [record.routing.ticket.position for record in live[1:]] == [None, 1, 2]


# How a wait may end ...................................................................................................


async def test_wait_that_outlives_its_deadline_is_504_with_its_phase(autojump_clock):
    """To the second; later requests move up."""
    settings = Settings(deadlines=DeadlineSettings(queue_seconds=3))
    slow = a_sim_model("lab/slow", overhead_s=100.0)
    async with (
        a_world(
            a_sim("a", slow, loaded=(slow.id,)), profiles=(profile_of(slow, max_concurrent=1),), settings=settings
        ) as world,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(world.ask, slow.id)
        await wait_all_tasks_blocked()
        answer = await world.ask(slow.id)
        (error,) = answer.errors
        assert (answer.status, error["code"], error["param"]) == (504, "deadline_exceeded", "queue")
        assert error["message"] == "model 'lab/slow' is busy: waited 3 s for a free slot at a neuron (queue)"
        assert answer.ended_at == approx(3)
        assert world.admission.views() == []


async def test_stream_whose_wait_outlives_its_deadline_ends_in_an_error_event(autojump_clock):
    """It has its 200 by then."""
    settings = Settings(deadlines=DeadlineSettings(queue_seconds=30))
    slow = a_sim_model("lab/slow", overhead_s=100.0)
    async with a_world(
        a_sim("a", slow, loaded=(slow.id,)), profiles=(profile_of(slow, max_concurrent=1),), settings=settings
    ) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask, slow.id)
            await wait_all_tasks_blocked()
            answer = await world.ask(slow.id, stream=True)
        assert (answer.status, answer.whole, answer.ended_at) == (200, True, approx(30))
        assert [(error["code"], error["param"]) for error in answer.errors] == [("deadline_exceeded", "queue")]
        assert b"[DONE]" not in answer.body


async def test_full_queue_refuses_at_once(autojump_clock):
    """503 `overloaded` with Retry-After; queued requests are not affected."""
    settings = Settings(limits=LimitSettings(queue=3))
    async with a_world(
        a_sim("a", N, loaded=(N.id,)), profiles=(profile_of(N, max_concurrent=1),), settings=settings
    ) as world:
        answers = await ask_many(world, N.id, 6)
        refused = [answer for answer in answers if answer.status != 200]
        assert [(answer.status, answer.errors[0]["code"], answer.ended_at) for answer in refused] == [
            (503, "overloaded", 0.0)
        ] * 2
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert len(answers) - len(refused) == 4


async def test_requests_that_waited_for_a_load_are_not_refused_after_it(autojump_clock):
    """They were admitted when there was room; the limit is for new requests."""
    settings = Settings(limits=LimitSettings(queue=2))
    async with a_world(a_sim("a", N), profiles=(profile_of(N, max_concurrent=1),), settings=settings) as world:
        answers = await ask_many(world, N.id, 8)
        assert [answer.text for answer in answers] == ["Tbilisi"] * 8


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_disconnects_leaves_the_queue_at_once(stream, autojump_clock):
    """The neuron never gets its request."""
    sim = a_sim("a", N, loaded=(N.id,))
    async with a_world(sim, profiles=(profile_of(N, max_concurrent=1),)) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask, N.id)
            await wait_all_tasks_blocked()
            nursery.start_soon(lambda: world.ask(N.id, stream=stream, leave_after_s=0.5))
            await wait_all_tasks_blocked()
            nursery.start_soon(world.ask, N.id)
            await trio.sleep(0.6)
            (line,) = world.admission.views()
            assert line.waiting_for_slot == 1
        assert trio.current_time() == approx(2 * PROBE_S)
        assert len(sim.requests) == 2


async def test_drain_refuses_queued_requests_and_lets_running_ones_finish(autojump_clock):
    """503 `shutting_down` at once; also for the retry of a request that failed on another neuron."""
    sims = a_sim("a", N, loaded=(N.id,)), a_sim("b", N, loaded=(N.id,))
    sims[1].faults.add(HttpError(status=503, text="full"))
    async with a_world(*sims, profiles=(profile_of(N, max_concurrent=1),)) as world:
        answers = {}

        async def one(number):
            answers[number] = await world.ask(N.id)

        async with trio.open_nursery() as nursery:
            for number in range(4):  # `b` refuses the second request, which then waits for `a`
                nursery.start_soon(one, number)
                await wait_all_tasks_blocked()
            await trio.sleep(0.5)
            assert [record.routing.is_waiting for record in world.request_log.live.values()] == [
                False,
                True,
                True,
                True,
            ]
            world.inference.drain()
            await wait_all_tasks_blocked()
            assert {number: answer.errors[0]["code"] for number, answer in answers.items()} == dict.fromkeys(
                (1, 2, 3), "shutting_down"
            )
        assert answers[0].text == "Tbilisi"


async def test_operator_ends_a_queued_request(autojump_clock):
    """By its record, as `DELETE /admin/requests/{id}` does."""
    async with (
        a_world(a_sim("a", N, loaded=(N.id,)), profiles=(profile_of(N, max_concurrent=1),)) as world,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(world.ask, N.id)
        await wait_all_tasks_blocked()
        answers = []

        async def one():
            answers.append(await world.ask(N.id))

        nursery.start_soon(one)
        await wait_all_tasks_blocked()
        record = next(record for record in world.request_log.live.values() if record.routing.is_waiting)
        record.cancel(ServiceUnavailable("cancelled by an operator"))
        await wait_all_tasks_blocked()
        assert (answers[0].status, answers[0].errors[0]["message"]) == (503, "cancelled by an operator")


# Changes during the wait ..............................................................................................


async def test_raised_limit_admits_waiting_requests(autojump_clock):
    """A reload of models.toml applies to waiting requests too."""
    many = a_sim_model("lab/many", max_in_flight=10)
    async with a_world(a_sim("a", many, loaded=(many.id,)), profiles=(profile_of(many, max_concurrent=1),)) as world:
        answers = []

        async def one():
            answers.append(await world.ask(many.id))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
            await trio.sleep(0.5)
            world.catalogue_store.current = a_catalogue(profile_of(many, max_concurrent=10), generation=2)
            world.admission.wake_all()
        assert sorted(answer.ended_at for answer in answers) == [approx(PROBE_S)] + [approx(0.5 + PROBE_S)] * 4


async def test_queue_moves_to_another_neuron_when_its_own_dies(autojump_clock):
    """The running request is retried too: it keeps its place, and goes first."""
    sims = a_sim("a", N, loaded=(N.id,)), a_sim("b", N, loaded=(N.id,))
    async with a_world(*sims, profiles=(profile_of(N, max_concurrent=1),)) as world:
        served = []

        async def one(number):
            answer = await world.ask(N.id)
            served.append((number, answer.text, answer.node))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, number)
                await trio.sleep(0.01)
            await trio.sleep(0.3)
            world.hosts["a"].kill()
        assert [number for number, _, _ in served] == [1, 0, 2, 3, 4, 5]
        assert {(text, node) for _, text, node in served} == {("Tbilisi", "b")}


async def test_queue_of_a_model_that_vanished_waits_for_its_load(autojump_clock):
    """One request's `not loaded` applies to all of them."""
    sim = a_sim("a", N, loaded=(N.id,))
    async with a_world(sim, profiles=(profile_of(N, max_concurrent=1),)) as world:
        sim.unload(N.id)
        answers = await ask_many(world, N.id, 5)
        assert [answer.text for answer in answers] == ["Tbilisi"] * 5
        assert world.load_calls() == ["a"]


async def test_model_that_comes_up_elsewhere_ends_the_wait_for_a_load(autojump_clock):
    """An operator loads it on another neuron: no request waits for the slow load any longer."""
    slow, quick = a_sim_model("lab/n", load_s=500), N
    sims = a_sim("a", slow, vram_mb=(20_000,)), a_sim("b", quick)
    async with a_world(*sims, profiles=(profile_of(N, max_concurrent=1),)) as world, trio.open_nursery() as nursery:
        answers = []

        async def many():
            answers.extend(await ask_many(world, N.id, 3))

        nursery.start_soon(many)
        await trio.sleep(20)
        sims[1].end_load(sims[1].begin_load(N.id, None, None, None))
        await trio.sleep(world.settings.poll.interval_seconds + 4)
        assert [(answer.text, answer.node) for answer in answers] == [("Tbilisi", "b")] * 3
        nursery.cancel_scope.cancel()


# Keys .................................................................................................................


async def test_waiting_requests_go_by_priority_of_their_keys_and_show_it(autojump_clock):
    """Three batch requests wait, then a chat of an interactive key comes; both lists and explain say who is next."""
    known = KnownKeys(Key("b1", "nightly", priority="batch"), Key("c1", "chat"), mode="open")
    async with a_world(
        a_sim("a", N, loaded=(N.id,)), profiles=(profile_of(N, max_concurrent=1),), access=known.access
    ) as world:
        served = []

        async def one(name, number):
            header = b"authorization", f"Bearer {known.secrets[name]}".encode()
            id_ = b"x-request-id", f"{name}-{number}".encode()
            await world.ask(N.id, headers=(header, id_))
            served.append(f"{name}-{number}")

        async with trio.open_nursery() as nursery:
            for name, number in (("nightly", 1), ("nightly", 2), ("nightly", 3), ("chat", 1)):
                nursery.start_soon(one, name, number)
                await trio.sleep(0.1)
            now = trio.current_time()
            live = [live_request_json(record, now) for record in world.request_log.live.values()]
            assert {each["request_id"]: (each["state"], each["position"], each["priority"]) for each in live} == {
                "nightly-1": ("running", None, None),
                "chat-1": ("queued", 1, "interactive"),
                "nightly-2": ("queued", 2, "batch"),
                "nightly-3": ("queued", 3, "batch"),
            }
            [explained] = explain_requests("nightly-3", world.request_log, lambda *_: [], now)
            shown = "\n".join(line.plain for line in explain_view.lines(explained))
            assert "queued as batch, position 3, for " in shown
            console = Console(width=200)
            with console.capture() as table:
                console.print(requests_table(live))
            assert "queued, as batch, position 3" in table.get()
            assert world.admission.waiting_counts() == {(N.id, "interactive"): 1, (N.id, "batch"): 2}
        assert served == ["nightly-1", "chat-1", "nightly-2", "nightly-3"]
        assert world.admission.views() == []


async def test_flood_of_one_key_leaves_another_its_share_of_the_slots(autojump_clock):
    """Over the whole request path: answers come in turn, at a ratio of the weights, while the flood has 40 waiting.

    Requests that fail and are sent again, and clients that leave, leave no slot charged for ever.
    """
    known = KnownKeys(Key("f1", "flood", weight=100), Key("c1", "calm", weight=300), mode="open")
    sim = a_sim("a", N, loaded=(N.id,))
    async with a_world(sim, profiles=(profile_of(N, max_concurrent=1),), access=known.access) as world:
        served = []

        async def one(name, leave_after_s):
            header = b"authorization", f"Bearer {known.secrets[name]}".encode()
            answer = await world.ask(N.id, headers=(header,), leave_after_s=leave_after_s)
            if answer.status == 200:
                served.append(name)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, "flood", 0.5 if number % 4 == 3 else None)
            await trio.sleep(0.1)
            for number in range(12):
                nursery.start_soon(one, "calm", 0.5 if number % 4 == 3 else None)
            sim.faults.add(NotLoaded(times=1))
        assert served[1:13].count("calm") == 9
        assert served.count("flood") == 30
        assert world.admission.views() == []
        assert world.admission.room.waiting == 0


# Any order ............................................................................................................


async def test_2000_random_requests_leave_no_queue_and_no_lease(autojump_clock):
    """Clients disconnect while queued, while served, or not at all; neurons hang up, refuse and forget."""
    moments = random.Random(20261125)  # noqa: S311 - replayable, not secret
    sims = [a_sim(name, M, loaded=(M.id,)) for name in "abc"]
    async with a_world(*sims, profiles=M_ONLY) as world:
        left = served = 0

        async def one(stream, patience_s):
            nonlocal left, served
            answer = await world.ask(M.id, stream=stream, leave_after_s=patience_s)
            served += answer.whole and not answer.errors
            left += answer.status == 0

        async with trio.open_nursery() as nursery:
            for number in range(2000):
                patience_s = moments.choice([None, moments.uniform(0, 8)])
                nursery.start_soon(one, moments.random() < 0.5, patience_s)
                await trio.sleep(moments.expovariate(7))
                if number % 40 == 0:
                    fault = moments.choice([Refuse(times=1), NotLoaded(times=1), HttpError(status=503, times=1)])
                    moments.choice(sims).faults.add(fault)
        assert min(left, served) > 200
        assert_idle(world.fleet)
        assert world.admission.views() == []
        assert world.admission.waiting == 0
        assert world.request_log.live == {}
