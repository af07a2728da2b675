"""gateway.aliases.warm_swap and warm_up, to the second: what an alias waits for until it moves. In memory."""

from __future__ import annotations

import dataclasses
import json

import pytest
import trio
from fakes.warm_swaps import LOAD_S, NEW, OLD, PROBE_S, THIRD, in_force, moved, pointing_at, samples, two_hosts
from fakes.world import a_sim, a_world, profile_of
from structlog.testing import capture_logs

from catalogue.models import Alias, Target
from gateway.config.settings import EvictionSettings, Settings
from gateway.errors import ServiceUnavailable
from neuron.simulated.faults import Hang, HttpError, SilentPrefill

pytestmark = pytest.mark.usefixtures("fresh_loggers")


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
