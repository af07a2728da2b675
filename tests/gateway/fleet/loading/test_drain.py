"""Drains: which models are moved, what stops a move, and that no request waits for one. All in memory."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from fakes.fleets import a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers
from fakes.world import a_sim, a_sim_model, a_world, profile_of

from gateway.errors import ServiceUnavailable
from gateway.fleet.loading.drain import Drains
from gateway.fleet.loading.drain_plan import models_only_on
from neuron.simulated.faults import LoadFails, LoadHangs, SilentPrefill

LOAD_S, PROBE_S = 5.0, 1.02
M, N = a_sim_model("lab/m"), a_sim_model("lab/n", 4000)
DOUBLE = a_sim_model("lab/double")


@asynccontextmanager
async def a_draining_world(*sims, profiles, load_s=1800.0):
    async with a_world(*sims, profiles=profiles) as world, trio.open_nursery() as nursery:
        drains = Drains(
            world.fleet,
            catalogue=world.catalogue_store,
            scheduler=world.scheduler,
            load_s=load_s,
            min_residency_s=0,
        )
        await nursery.start(drains.run)
        yield world, drains
        nursery.cancel_scope.cancel()


async def until_over(drains, node):
    while drains.view(node).state == "moving":
        await trio.sleep(0.1)
    return drains.view(node)


async def test_drained_neuron_finishes_what_it_has_and_gets_nothing_new(autojump_clock):
    """It is draining until its last lease ends, then drained; undrain lets requests on again."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, loaded=(M.id,))
    async with a_draining_world(*sims, profiles=(profile_of(M),)) as (world, drains):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask, M.id)
            await trio.sleep(0.5)
            view = drains.drain("a")
            assert (view.state, view.leases, view.draining) == ("draining", 1, True)
            assert {(await world.ask(M.id)).node for _ in range(3)} == {"b"}
        assert drains.view("a").state == "drained"
        assert drains.undrain("a").state == "open"
        assert (await world.ask(M.id)).node == "a"


async def test_drained_neuron_stays_drained_when_it_is_restarted(autojump_clock):
    """Operators drain a node for a restart, too."""
    async with a_draining_world(a_sim("a", M, loaded=(M.id,)), profiles=(profile_of(M),)) as (world, drains):
        drains.drain("a")
        world.hosts["a"].kill()
        await trio.sleep(60)
        world.hosts["a"].restart()
        await trio.sleep(60)
        assert world.fleet.nodes["a"].healthy
        assert drains.view("a").state == "drained"
        answer = await world.ask(M.id)
        assert (answer.status, answer.errors[0]["code"]) == (503, "service_unavailable")


async def test_models_only_it_holds_are_loaded_elsewhere_before_it_goes(autojump_clock):
    """The node serves meanwhile. Models with another replica are not moved."""
    sims = a_sim("a", M, N, vram_mb=(20_000,), loaded=(M.id, N.id)), a_sim("b", M, N, vram_mb=(20_000,), loaded=(N.id,))
    async with a_draining_world(*sims, profiles=(profile_of(M), profile_of(N))) as (world, drains):
        view = drains.drain("a", move=True)
        assert (view.state, view.draining) == ("moving", False)
        await trio.sleep(1)
        began = trio.current_time()
        answer = await world.ask(M.id)
        assert (answer.text, answer.node, trio.current_time() - began) == (
            "Tbilisi",
            "a",
            pytest.approx(PROBE_S, abs=0.01),
        )

        view = await until_over(drains, "a")
        assert [(move.model, move.state, move.node) for move in view.moves] == [(M.id, "moved", "b")]
        assert view.state == "drained"
        assert trio.current_time() == pytest.approx(LOAD_S, abs=0.3)
        assert (await world.ask(M.id)).node == "b"
        assert world.load_calls() == ["b"]


async def test_nothing_moves_if_there_is_room_for_one_of_two_models(autojump_clock):
    """Known before the first load: the second model would need the place of the first."""
    sims = a_sim("a", M, N, vram_mb=(20_000,), loaded=(M.id, N.id)), a_sim("b", M, N, vram_mb=(9_000,))
    async with a_draining_world(*sims, profiles=(profile_of(M), profile_of(N)), load_s=60) as (world, drains):
        view = drains.drain("a", move=True)
        assert [(move.model, move.state) for move in view.moves] == [(N.id, "failed")]
        assert view.moves[0].reason == (
            "no other neuron has room for it: b has no room beside lab/m, which would move there first"
        )
        assert (view.state, view.draining) == ("open", False)
        assert world.load_calls() == []
        assert sims[1].counters["unloads"] == 0
        assert {(await world.ask(M.id)).node, (await world.ask(N.id)).node} == {"a"}


async def test_room_is_made_where_no_model_loses_its_last_replica(autojump_clock):
    """Two nodes could have the model; one of them has a model that has another replica."""
    other, third = a_sim("b", M, N, loaded=(N.id,)), a_sim("d", DOUBLE, loaded=(DOUBLE.id,))
    sims = a_sim("a", M, loaded=(M.id,)), other, a_sim("c", M, DOUBLE, loaded=(DOUBLE.id,)), third
    profiles = profile_of(M, pinned_on=("a", "b", "c")), profile_of(N), profile_of(DOUBLE)
    async with a_draining_world(*sims, profiles=profiles) as (world, drains):
        drains.drain("a", move=True)
        view = await until_over(drains, "a")
        assert [(move.node, move.displaced) for move in view.moves] == [("c", ())]
        assert other.counters["unloads"] == 0
        assert {replica.node.name for replica in world.fleet.replicas(DOUBLE.id)} == {"d"}


async def test_models_that_lose_their_last_replica_to_a_move_are_named(autojump_clock):
    """Without other memory they are evicted, as for any load, and the view names them."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M, N, loaded=(N.id,))
    async with a_draining_world(*sims, profiles=(profile_of(M), profile_of(N))) as (world, drains):
        drains.drain("a", move=True)
        view = await until_over(drains, "a")
        assert [(move.model, move.node, move.displaced) for move in view.moves] == [(M.id, "b", (N.id,))]
        assert view.state == "drained"
        assert world.fleet.replicas(N.id) == ()


@pytest.mark.parametrize(
    ("profile", "fault", "reason"),
    [
        (profile_of(M, pinned_on=("a",)), None, "fits only on a"),
        (profile_of(M), LoadFails(text="no kernel"), "no kernel"),
        (None, None, "not in models.toml"),
    ],
)
async def test_model_that_can_go_nowhere_keeps_the_neuron_open(profile, fault, reason, autojump_clock):
    """The view says why."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M)
    if fault is not None:
        sims[1].faults.add(fault)
    async with a_draining_world(*sims, profiles=() if profile is None else (profile,)) as (world, drains):
        drains.drain("a", move=True)
        view = await until_over(drains, "a")
        assert (view.state, view.moves[0].state) == ("open", "failed")
        assert reason in view.moves[0].reason
        assert (await world.ask(M.id)).node == "a"
        # A drain without `move` works all the same, and the view forgets the failed moves.
        assert drains.drain("a") == drains.view("a")
        assert (drains.view("a").state, drains.view("a").moves) == ("drained", ())


async def test_no_model_is_moved_if_one_cannot_be(autojump_clock):
    """A load may cost another model its place, so impossible moves are found first."""
    sims = a_sim("a", M, N, vram_mb=(20_000,), loaded=(M.id, N.id)), a_sim("b", M, N)
    profiles = (profile_of(M), profile_of(N, pinned_on=("a",)))
    async with a_draining_world(*sims, profiles=profiles) as (world, drains):
        view = drains.drain("a", move=True)
        assert (view.state, [(move.model, move.state) for move in view.moves]) == ("open", [(N.id, "failed")])
        assert world.load_calls() == []


async def test_undrain_ends_a_move(autojump_clock):
    """The load under way runs to its end; the node stays open."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M)
    sims[1].faults.add(LoadHangs(seconds=100))
    async with a_draining_world(*sims, profiles=(profile_of(M),)) as (world, drains):
        drains.drain("a", move=True)
        await trio.sleep(10)
        assert drains.drain("a", move=True).state == "moving"  # asked twice, moved once
        assert drains.undrain("a").state == "open"
        await trio.sleep(200)
        assert (drains.view("a").state, drains.view("a").moves) == ("open", ())
        assert {replica.node.name for replica in world.fleet.replicas(M.id)} == {"a", "b"}
        assert world.load_calls() == ["b"]


async def test_model_that_comes_to_the_neuron_while_others_move_is_moved_too(autojump_clock):
    """The node serves meanwhile, so a request may load a model on it."""
    large = a_sim("a", M, N, vram_mb=(20_000,), loaded=(M.id,))
    other = a_sim("b", M, N, vram_mb=(20_000,))
    other.faults.add(LoadHangs(model=M.id, seconds=60, times=1))
    profiles = (profile_of(M), profile_of(N))
    async with a_draining_world(large, other, profiles=profiles) as (world, drains):
        drains.drain("a", move=True)
        await trio.sleep(1)
        assert (await world.ask(N.id)).node == "a"
        view = await until_over(drains, "a")
        assert [(move.model, move.node) for move in view.moves] == [(M.id, "b"), (N.id, "b")]
        assert view.state == "drained"


async def test_stream_on_a_neuron_that_moves_away_ends_as_it_would_have(autojump_clock):
    """The node is moving, then draining while the stream runs, then drained."""
    sims = a_sim("a", M, loaded=(M.id,)), a_sim("b", M)
    sims[0].faults.add(SilentPrefill(seconds=30))
    async with a_draining_world(*sims, profiles=(profile_of(M),)) as (world, drains):
        answers = []

        async def one():
            answers.append(await world.ask(M.id, stream=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await trio.sleep(1)
            drains.drain("a", move=True)
            await trio.sleep(10)
            assert (drains.view("a").state, drains.view("a").leases) == ("draining", 1)
        assert (answers[0].text, answers[0].node, drains.view("a").state) == ("Tbilisi", "a", "drained")


async def test_gateway_that_has_not_started_moves_nothing():
    """It raises; a drain without moves needs no job."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    drains = Drains(fleet, catalogue=None, scheduler=None, load_s=1, min_residency_s=0)
    with pytest.raises(ServiceUnavailable):
        drains.drain("a", move=True)
    assert drains.drain("a").state == "drained"


def test_models_only_on_are_those_without_another_replica():
    """By catalogue id. A model from a source is the same model; an unservable one need not be moved."""
    fleet = a_fleet("a", "b", "c")
    catalogue = a_catalogue(a_profile("m", source="hf"), a_profile("both"))
    answers(fleet, "a", a_model("hf:m"), a_model("both"), a_model("stray"), a_model("sick", "poisoned"))
    answers(fleet, "b", a_model("both"))
    answers(fleet, "c", a_model("stray"))
    assert models_only_on("a", fleet, catalogue) == ["m"]
    answers(fleet, "c", a_model("m"))
    assert models_only_on("a", fleet, catalogue) == ["stray"]
    fleet.drain("b", draining=True)
    assert models_only_on("a", fleet, catalogue) == ["both", "stray"]


class OneLoad:
    """A load scheduler whose load ends when the test says so."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.news = trio.Event()

    async def wait_until_routable(self, decision):
        await self.news.wait()

    def loads_between(self, model, since, until):
        return []

    def ends_well(self, node, report):
        self.fleet.loaded(node, report)
        self.news.set()


@pytest.mark.parametrize("free_mb", [10_000, 1000])
async def test_moves_are_decided_once_a_poll_has_seen_the_last_unload(free_mb, autojump_clock):
    """Until then the memory of the unloaded model reads as taken: there is room, or there is not."""
    fleet = a_fleet("a", "b")
    full = (a_gpu(0, 10_000, 0),)
    answers(fleet, "a", a_model("m"))
    answers(fleet, "b", a_model("x", vram_used_mb=10_000), devices=full)
    scheduler = OneLoad(fleet)
    catalogue = SimpleNamespace(current=a_catalogue(a_profile("m", vram_mb=8000)))
    drains = Drains(fleet, catalogue=catalogue, scheduler=scheduler, load_s=60, min_residency_s=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(drains.run)
        fleet.dropped("b", "x")
        assert drains.drain("a", move=True).state == "moving"
        await trio.sleep(1)
        assert drains.view("a").moves == ()

        answers(fleet, "b", devices=(a_gpu(0, 10_000, free_mb),))
        await trio.sleep(1)

        view = drains.view("a")
        expected = ("moving", "loading") if free_mb == 10_000 else ("open", "failed")
        assert (view.state, view.moves[0].state) == expected
        nursery.cancel_scope.cancel()


async def test_undrain_wins_over_a_move_that_ends_in_the_same_step():
    """The job has been woken already, so cancelling its scope does not stop it."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m"))
    answers(fleet, "b")
    scheduler = OneLoad(fleet)
    catalogue = SimpleNamespace(current=a_catalogue(a_profile("m", vram_mb=1000)))
    drains = Drains(fleet, catalogue=catalogue, scheduler=scheduler, load_s=60, min_residency_s=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(drains.run)
        drains.drain("a", move=True)
        await trio.testing.wait_all_tasks_blocked()
        assert drains.view("a").state == "moving"

        scheduler.ends_well("b", a_model("m"))
        drains.undrain("a")
        await trio.testing.wait_all_tasks_blocked()

        assert drains.view("a").state == "open"
        nursery.cancel_scope.cancel()
