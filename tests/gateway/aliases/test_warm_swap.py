"""gateway.aliases.warm_swap and warm_up, to the second: what an alias waits for, and how its swap ends. In memory."""

from __future__ import annotations

import dataclasses
import json

import pytest
import structlog
import trio
from fakes.fleets import a_catalogue
from fakes.scripted import read_request, with_length
from fakes.world import a_sim, a_sim_model, a_world, profile_of
from structlog.testing import capture_logs
from trio.testing import memory_stream_pair

from catalogue.models import Alias, Target
from gateway.config.settings import DeadlineSettings, EvictionSettings, Settings
from gateway.errors import ServiceUnavailable
from neuron.simulated.faults import Hang, HttpError, LoadFails, NotLoaded, Refuse, SilentPrefill

OLD, NEW, THIRD = a_sim_model("lab/old"), a_sim_model("lab/new"), a_sim_model("lab/third")
LOAD_S, PROBE_S = 5.0, 1.01  # as these models are made: a second of silence, and one token


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Loggers that were created while logs are captured must not outlive the capture."""
    yield
    structlog.reset_defaults()


def two_hosts(*, loaded_too=()):
    """Each host has memory for one of the models; the old one is loaded on the first."""
    return a_sim("a", OLD, NEW, THIRD, loaded=(OLD.id,)), a_sim("b", OLD, NEW, THIRD, loaded=loaded_too)


def pointing_at(model, **more):
    """A catalogue of all three models, in which the alias `x` has this target."""
    alias = Alias("x", (Target(model.id),), **more)
    return dataclasses.replace(a_catalogue(*map(profile_of, (OLD, NEW, THIRD))), aliases={"x": alias})


def in_force(world):
    return world.catalogue_store.current.aliases["x"].target


async def moved(world):
    """Wait until the alias has another target; returns the time."""
    before = in_force(world)
    while in_force(world) == before:
        await trio.sleep(0.01)
    return trio.current_time()


async def given_up(world):
    """Wait until a swap has failed; returns the reason."""
    while (reason := world.catalogue_store.current.warming["x"].failed) is None:
        await trio.sleep(0.01)
    return reason


def samples(world, name):
    lines = world.metrics.expose().decode().splitlines()
    return {line for line in lines if line.startswith(name) and "bucket" not in line and "_sum" not in line}


# Warm .................................................................................................................


async def test_alias_moves_once_its_target_is_loaded_and_has_answered(autojump_clock):
    """Until then its requests go to the old target; then there is one assignment, and it is logged."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began, generation = trio.current_time(), world.catalogue_store.current.generation
        with capture_logs() as logged:
            result = world.catalogue_store.accept(pointing_at(NEW))
            assert (result.result, list(result.catalogue.warming)) == ("applied", ["x"])
            assert (await world.ask("x")).headers["x-cortex-model"] == OLD.id
            moved_at = await moved(world)

        assert moved_at - began == pytest.approx(LOAD_S + PROBE_S, abs=0.2)
        assert world.catalogue_store.current.generation == generation + 2  # the file, and the move
        assert world.load_calls() == ["b"]
        answer = await world.ask("x")
        assert (answer.headers["x-cortex-model"], answer.node) == (NEW.id, "b")
        events = {entry["event"]: entry for entry in logged if entry["event"].startswith("swap_")}
        assert list(events) == ["swap_warming", "swap_done"]
        assert events["swap_done"]["phases_ms"] == {
            "load": pytest.approx(1000 * LOAD_S, abs=200),
            "probe": pytest.approx(1000 * PROBE_S, abs=50),
        }
        assert (events["swap_done"]["from"], events["swap_done"]["to"]) == (OLD.id, NEW.id)
        assert events["swap_done"]["generation"] == generation + 2
        assert samples(world, "cortex_alias_swap") >= {
            'cortex_alias_swaps_total{alias="x",result="done"} 1.0',
            'cortex_alias_swap_duration_seconds_count{alias="x"} 1.0',
        }
        assert not any("at_once" in line for line in samples(world, "cortex_alias_swaps"))
        assert world.violations() == []


async def test_old_target_may_be_evicted_when_its_last_request_has_ended(autojump_clock, nursery):
    """Not before, although the alias has moved: running requests end where they began."""
    async with a_world(*two_hosts()) as world:
        pinned = profile_of(THIRD, pinned_on=("a",))
        catalogues = [pointing_at(target) for target in (OLD, NEW)]
        first, second = (dataclasses.replace(each, models={**each.models, THIRD.id: pinned}) for each in catalogues)
        world.catalogue_store.accept(first)
        began = trio.current_time()
        world.hosts["a"].sim.faults.add(SilentPrefill(model=OLD.id, seconds=30))
        answers = []

        async def ask(model, stream):
            answers.append(await world.ask(model, stream=stream))

        nursery.start_soon(ask, "x", True)
        await trio.sleep(1)
        world.catalogue_store.accept(second)
        await moved(world)
        nursery.start_soon(ask, THIRD.id, False)
        await trio.sleep(20)
        assert world.load_calls(THIRD.id) == []
        while len(answers) < 2:
            await trio.sleep(0.1)

        old, third = answers
        assert (old.headers["x-cortex-model"], old.text, old.events[-1]) == (OLD.id, "Tbilisi", "[DONE]")
        assert old.ended_at - began == pytest.approx(30 + PROBE_S, abs=0.1)
        assert (third.headers["x-cortex-model"], third.node) == (THIRD.id, "a")
        assert third.ended_at == pytest.approx(old.ended_at + LOAD_S + PROBE_S, abs=1)
        assert [held.id for held in world.fleet.nodes["a"].models.values() if held.routable] == [THIRD.id]
        assert world.violations() == []


async def test_probe_is_one_token_with_a_tool_for_a_model_with_tools(autojump_clock):
    """Agents send tools, and a chat template that cannot format them fails only then."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await moved(world)

        [probe] = [entry for entry in world.hosts["b"].sim.requests if entry.path == "/v1/chat/completions"]
        body = json.loads(probe.body)
        assert (body["model"], body["max_tokens"], len(body["tools"])) == (NEW.id, 1, 1)


async def test_alias_moves_at_once_to_a_target_that_has_answered_clients(autojump_clock):
    """One assignment, without warming and without a probe."""
    async with a_world(*two_hosts(loaded_too=(NEW.id,))) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        assert (await world.ask(NEW.id)).status == 200
        generation, probes = world.catalogue_store.current.generation, len(world.hosts["b"].sim.requests)

        result = world.catalogue_store.accept(pointing_at(NEW))
        assert in_force(world) == NEW.id
        assert (result.catalogue.generation, dict(result.catalogue.warming)) == (generation + 1, {})
        await trio.sleep(10)
        assert len([entry for entry in world.hosts["b"].sim.requests if entry.path.startswith("/v1")]) == probes
        assert samples(world, "cortex_alias_swaps") == {'cortex_alias_swaps_total{alias="x",result="at_once"} 1.0'}


async def test_target_that_is_loaded_but_has_never_answered_is_probed(autojump_clock):
    """Being loaded does not prove that a model can answer."""
    async with a_world(*two_hosts(loaded_too=(NEW.id,))) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW))

        assert await moved(world) - began == pytest.approx(PROBE_S, abs=0.05)
        assert world.load_calls() == []


async def test_error_response_to_a_client_does_not_prove_a_model(autojump_clock):
    """A model that answers 500 must be probed."""
    async with a_world(*two_hosts(loaded_too=(NEW.id,))) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(HttpError(model=NEW.id, times=1))
        assert (await world.ask(NEW.id)).status == 500

        world.catalogue_store.accept(pointing_at(NEW))
        assert in_force(world) == OLD.id
        await moved(world)


async def test_model_reloaded_since_it_answered_is_probed_again(autojump_clock):
    """Answers before the reload prove nothing about the new instance."""
    async with a_world(*two_hosts(loaded_too=(NEW.id,))) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        await world.ask(NEW.id)
        world.scheduler.unload("b", NEW.id)
        await trio.sleep(1)
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW))

        assert await moved(world) - began == pytest.approx(LOAD_S + PROBE_S, abs=0.3)


@pytest.mark.parametrize(("capabilities", "path"), [(("embedding",), "/v1/embeddings"), (("rerank",), "/v1/rerank")])
async def test_model_that_does_not_chat_gets_a_probe_of_its_kind(autojump_clock, capabilities, path):
    """A chat completion would fail on it."""
    new = dataclasses.replace(NEW, capabilities=capabilities, tool_call=False)
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", new)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await moved(world)

        assert [entry.path for entry in world.hosts["b"].sim.requests if entry.path.startswith("/v1/")] == [path]


async def test_alias_with_several_new_targets_moves_when_all_are_ready(autojump_clock):
    """It moves to all of them at once."""
    sims = (*two_hosts(), a_sim("c", OLD, NEW, THIRD))
    async with a_world(*sims) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        both = Alias("x", (Target(NEW.id, 1), Target(THIRD.id, 1)))
        began = trio.current_time()
        world.catalogue_store.accept(dataclasses.replace(pointing_at(OLD), aliases={"x": both}))

        assert await moved(world) - began == pytest.approx(2 * (LOAD_S + PROBE_S), abs=0.4)
        assert world.catalogue_store.current.aliases["x"] == both


# At once ..............................................................................................................


async def test_cold_swap_moves_at_once_and_its_first_request_waits(autojump_clock):
    """The request waits for the load."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW, swap="cold"))

        assert in_force(world) == NEW.id
        answer = await world.ask("x")
        assert answer.headers["x-cortex-model"] == NEW.id
        assert answer.ended_at > LOAD_S


async def test_alias_whose_old_target_cannot_serve_moves_at_once(autojump_clock):
    """Its requests must wait for a load in any case; they wait for the new target."""
    async with a_world(a_sim("a", OLD, NEW)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))

        assert in_force(world) == NEW.id
        assert not world.catalogue_store.current.warming


async def test_alias_moves_at_once_when_its_old_target_dies(autojump_clock):
    """Its requests wait for the load that is already running."""
    slow = dataclasses.replace(NEW, load_seconds=300.0)
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", OLD, slow)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(10)
        world.hosts["a"].kill()

        assert await moved(world) < 60  # three misses of the poll, not the load
        assert [load.model for load in world.scheduler.loads()] == [NEW.id]


# Failed ..............................................................................................................


async def test_swap_without_memory_beside_the_old_target_fails_at_once(autojump_clock):
    """The reason names the way out: swap = "cold"."""
    async with a_world(a_sim("a", OLD, NEW, loaded=(OLD.id,))) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        reason = await given_up(world)

        assert trio.current_time() < 5
        assert reason == (
            "no room for model 'lab/new' (8000 MB): a is held by lab/old, which serves the alias until 'lab/new' is"
            ' loaded; set swap = "cold" on the alias to move it without waiting'
        )
        assert (await world.ask("x")).headers["x-cortex-model"] == OLD.id
        assert world.load_calls() == []
        [view] = world.swaps.views()
        assert (view.alias, view.in_force, view.wanted, view.state, view.reason) == (
            "x", OLD.id, NEW.id, "failed", reason,
        )  # fmt: skip
        world.catalogue_store.accept(pointing_at(NEW, swap="cold"))
        assert (await world.ask("x")).headers["x-cortex-model"] == NEW.id
        assert world.swaps.views() == []


async def test_swap_that_outlives_its_deadline_fails_and_can_be_retried(autojump_clock):
    """To the second, with what is unfinished. The load goes on, so the retry is short."""
    slow = dataclasses.replace(NEW, load_seconds=100.0)
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", slow)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began = trio.current_time()
        with capture_logs() as logged:
            world.catalogue_store.accept(pointing_at(NEW, warm_deadline_seconds=30.0))
            reason = await given_up(world)

        assert trio.current_time() - began == pytest.approx(30, abs=0.01)
        assert reason == "not ready within 30 s: the load is not finished"
        assert [entry["event"] for entry in logged if entry["event"].startswith("swap_")] == [
            "swap_warming",
            "swap_failed",
        ]
        assert samples(world, "cortex_alias_swaps") == {'cortex_alias_swaps_total{alias="x",result="failed"} 1.0'}
        await trio.sleep(50)
        assert not world.swaps.retry("y")
        assert world.swaps.retry("x")
        assert not world.swaps.retry("x")  # it is running again
        assert await moved(world) - began == pytest.approx(100 + PROBE_S, abs=0.3)
        assert world.load_calls() == ["b"]


async def test_default_deadline_of_a_swap_is_that_of_loads(autojump_clock):
    """As long as a request may wait for its model."""
    slow = dataclasses.replace(NEW, load_seconds=1000.0)
    settings = Settings(deadlines=DeadlineSettings(load_seconds=77.0))
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", slow), settings=settings) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW))
        await given_up(world)

        assert trio.current_time() - began == pytest.approx(77, abs=0.01)


async def test_unknown_target_fails_at_once(autojump_clock):
    """The reason is that of a request for an unknown model."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        typo = Alias("x", (Target("lab/nwe"),))
        world.catalogue_store.accept(dataclasses.replace(pointing_at(OLD), aliases={"x": typo}))

        assert await given_up(world) == (
            "model 'lab/nwe' not found on any node and not in catalogue; did you mean 'lab/new'?"
        )
        assert (await world.ask("x")).headers["x-cortex-model"] == OLD.id


async def test_alias_does_not_move_to_a_target_that_fails_its_probe(autojump_clock):
    """The model is loaded and broken; the probe finds that out before clients do."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(HttpError(model=NEW.id, text="CUDA error"))
        world.catalogue_store.accept(pointing_at(NEW))

        assert await given_up(world) == ("'lab/new' is loaded, but its probe request got 500: CUDA error")
        world.hosts["b"].sim.faults.clear()
        assert (await world.ask("x")).headers["x-cortex-model"] == OLD.id


@pytest.mark.parametrize("body", [b'{"error":{"message":"no kernel"}}', b"[]", b"pong", b""])
async def test_alias_does_not_move_to_a_target_with_an_invalid_answer(autojump_clock, nursery, body):
    """Some engines report their own errors with status 200."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.upstream._connect = _respond_with(with_length(body), nursery)
        world.catalogue_store.accept(pointing_at(NEW))

        reason = "its probe request got status 200 with a body that is not an answer"
        assert await given_up(world) == f"'lab/new' is loaded, but {reason}"


def _respond_with(answer, nursery):
    """Connections on which every model sends this response."""

    async def say(stream):
        await read_request(stream)
        await stream.send_all(answer)
        await stream.aclose()

    async def connect(origin):
        ours, theirs = memory_stream_pair()
        nursery.start_soon(say, theirs)
        return ours

    return connect


async def test_alias_does_not_move_to_a_target_that_cannot_be_loaded(autojump_clock):
    """Every neuron that could hold it was tried; the next accepted file tries again."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(LoadFails(model=NEW.id, times=1))
        world.catalogue_store.accept(pointing_at(NEW))
        assert "could not be loaded" in await given_up(world)

        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW, sticky="key"))
        assert await moved(world) - began == pytest.approx(
            5 + LOAD_S + PROBE_S, abs=0.5
        )  # 5 s: its neuron is left alone


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(times=2),
        *(HttpError(status=status, retry_after_s=1, times=2) for status in (503, 429)),
        NotLoaded(times=2),
    ],
)
async def test_probe_is_repeated_after_a_temporary_error(autojump_clock, fault):
    """A full queue or a broken connection says nothing about the model."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(fault)
        world.catalogue_store.accept(pointing_at(NEW))
        await moved(world)

        assert (await world.ask("x")).headers["x-cortex-model"] == NEW.id


async def test_probe_that_hangs_counts_against_the_deadline(autojump_clock):
    """The reason says that the probe has no response."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(Hang(model=NEW.id))
        world.catalogue_store.accept(pointing_at(NEW, warm_deadline_seconds=60.0))
        await trio.sleep(30)
        assert world.fleet.nodes["b"].models[NEW.id].leases == 1  # so that it is not unloaded

        assert await given_up(world) == "not ready within 60 s: the probe has no response"
        assert world.fleet.leases == 0


# Superseded ...........................................................................................................


async def test_file_with_the_old_target_supersedes_the_swap(autojump_clock):
    """The alias never moved; the load that was started goes on."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        result = world.catalogue_store.accept(pointing_at(OLD))

        assert not result.diff
        assert world.swaps.views() == []
        await trio.sleep(30)
        assert in_force(world) == OLD.id
        assert world.load_calls() == ["b"]
        assert samples(world, "cortex_alias_swaps") == {'cortex_alias_swaps_total{alias="x",result="superseded"} 1.0'}


async def test_newer_file_supersedes_the_running_swap(autojump_clock):
    """Only the last target counts."""
    async with a_world(*two_hosts(), a_sim("c", THIRD)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(1)
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(THIRD))

        assert await moved(world) - began == pytest.approx(LOAD_S + PROBE_S, abs=0.2)
        assert in_force(world) == THIRD.id
        await trio.sleep(30)
        assert in_force(world) == THIRD.id


async def test_file_with_another_change_does_not_restart_the_swap(autojump_clock):
    """The swap continues, and moves to the alias of the newest file."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        began = trio.current_time()
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(3)
        world.catalogue_store.accept(pointing_at(NEW, deadline_seconds=9.0))

        assert world.catalogue_store.current.aliases["x"].deadline_seconds == 9.0
        assert await moved(world) - began == pytest.approx(LOAD_S + PROBE_S, abs=0.2)
        assert world.catalogue_store.current.aliases["x"].deadline_seconds == 9.0


async def test_target_whose_neuron_is_killed_while_it_loads_is_loaded_elsewhere(autojump_clock):
    """The next candidate loads it."""
    third = a_sim("c", NEW, vram_mb=(9000,))
    async with a_world(*two_hosts(), third) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        world.hosts["b"].kill()
        await moved(world)

        assert world.load_calls() == ["b", "c"]
        assert (await world.ask("x")).node == "c"


async def test_target_whose_only_neuron_is_killed_while_it_loads_is_loaded_after_its_restart(autojump_clock):
    """A load that was broken off says nothing about the model."""
    async with a_world(a_sim("a", OLD, loaded=(OLD.id,)), a_sim("b", NEW)) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        world.hosts["b"].kill()
        await trio.sleep(60)
        assert world.swaps.views()[0].state in {"warming", "failed"}
        world.hosts["b"].restart()
        world.swaps.retry("x")
        await moved(world)

        assert world.load_calls() == ["b", "b"]


async def test_swap_waits_for_a_neuron_that_is_down(autojump_clock):
    """No other neuron has memory; the view says what it waits for."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].kill()
        await trio.sleep(60)
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(60)

        [view] = world.swaps.views()
        assert (view.state, view.phase) == ("warming", "wait")
        assert view.reason is not None
        assert view.reason.endswith("; b could hold it, but is unavailable now")
        world.hosts["b"].restart()
        await moved(world)
        assert (await world.ask("x")).node == "b"


async def test_drain_ends_all_swaps(autojump_clock):
    """The next process starts from its file; in this one no alias moves any more."""
    async with a_world(*two_hosts()) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(2)
        world.swaps.drain()
        world.catalogue_store.accept(pointing_at(THIRD))
        await trio.sleep(60)

        assert in_force(world) == OLD.id
        assert world.load_calls(THIRD.id) == []


# Guarded ..............................................................................................................


async def test_no_load_evicts_either_target_of_a_warming_alias(autojump_clock, nursery):
    """A request for a third model waits; after the move the old target may be evicted for it."""
    settings = Settings(eviction=EvictionSettings(idle_ttl_seconds=1.0))
    async with a_world(*two_hosts(), settings=settings) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].sim.faults.add(
            Hang(model=NEW.id, seconds=60.0, times=1)
        )  # so that the old target is idle for long
        world.catalogue_store.accept(pointing_at(NEW))
        await trio.sleep(20)
        with pytest.raises(ServiceUnavailable, match="being swapped"):
            world.scheduler.unload("a", OLD.id)
        answered = []

        async def want_the_third():
            answered.append(await world.ask(THIRD.id))

        nursery.start_soon(want_the_third)
        await trio.sleep(20)
        assert in_force(world) == OLD.id
        assert {held.id for node in world.fleet.nodes.values() for held in node.models.values()} == {OLD.id, NEW.id}

        await moved(world)
        await trio.sleep(LOAD_S + 5)
        assert (answered[0].status, answered[0].node) == (200, "a")
        assert world.violations() == []


async def test_request_for_the_new_target_does_not_evict_the_old_one(autojump_clock):
    """It gets a 503 with the reason."""
    async with a_world(a_sim("a", OLD, NEW, loaded=(OLD.id,)), a_sim("b", NEW, vram_mb=(20_000,))) as world:
        world.catalogue_store.accept(pointing_at(OLD))
        world.hosts["b"].kill()
        await trio.sleep(40)
        slow = pointing_at(NEW)
        world.catalogue_store.accept(slow)
        answer = await world.ask(NEW.id)

        assert answer.status == 503
        assert "which serves the alias until 'lab/new' is loaded" in answer.errors[0]["message"]
