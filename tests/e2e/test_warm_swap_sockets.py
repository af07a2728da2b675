"""Warm swaps under load, on real sockets: no request fails, waits for a load, or mixes two models."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import trio
from fakes.fleets import assert_idle
from fakes.in_memory import Client
from fakes.patience import SAFETY_NET_S
from fakes.process import a_neuron, a_port_of_our_own
from fakes.running import running_gateway
from fakes.world import a_sim, a_sim_model
from structlog.testing import capture_logs

from catalogue.load import parse
from gateway.aliases.files import locked_edit, toml_edit, versions
from gateway.aliases.files.versions import VersionNotFound
from gateway.config.settings import EvictionSettings, NeuronSettings
from neuron.simulated.faults import Hang, HttpError

pytestmark = pytest.mark.usefixtures("fresh_loggers")

STREAMS, SWAPS = 200, 50
PATIENCE_S = 120  # so that a busy machine does not fail the test
ALIAS = "helexa/small"
# Mostly silence, so that two hundred streams leave a small machine some CPU time.
PACE = {"overhead_s": 2.0, "decode_tok_s": 100.0, "load_s": 0.05, "max_in_flight": 400}
FIRST, SECOND, THIRD = (a_sim_model(f"lab/{name}", 8000, **PACE) for name in ("first", "second", "third"))
# A model that a swap evicts must become idle first, and soon; clients of other models send requests more slowly.
BRIEF = {**PACE, "overhead_s": 0.1}
SLOW = a_sim_model("lab/slow", 8000, **PACE | {"overhead_s": 6.0})
BRIEF_ONES = [a_sim_model(f"lab/brief-{name}", 8000, **BRIEF) for name in "abc"]


def models_toml(*models, **aliases):
    """A file with these models and `alias = model` lines, under the names of the file that the gateway watches."""
    entries = [f'[[models]]\nid = "{model.id}"\nharness = "llamacpp"\nvram_mb = {model.vram_mb}\n' for model in models]
    lines = [f'"{name}" = "{target}"' for name, target in {ALIAS: models[0].id, **aliases}.items()]
    return "\n".join(["[aliases]", *lines, *entries]) + "\n"


class Load:
    """Clients that stream one answer after another, and their results."""

    def __init__(self, running):
        self.running = running
        self.going = True
        self.answered = Counter()
        self.wrong = []
        self.under_way = 0

    async def stream(self, model):
        """One answer, complete, and wholly from the model that the head names."""
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Write 4 words"}]}
        async with await trio.open_tcp_stream("127.0.0.1", self.running.port) as stream:
            self.under_way += 1
            answer = await Client(stream).ask(body)
            self.under_way -= 1
        events = answer.events
        named = {json.loads(event)["model"] for event in events[:-1]} if answer.status == 200 else set()
        if answer.status != 200 or events[-1] != "[DONE]" or {one.lower() for one in named} != {self.head(answer)}:
            self.wrong.append((answer.status, answer.body[-200:]))
        self.answered[self.head(answer)] += 1

    @staticmethod
    def head(answer):
        return answer.headers.get("x-cortex-model")

    async def keep_streaming(self, model):
        while self.going:
            await self.stream(model)


@asynccontextmanager
async def under_load(running, *clients):
    """So many clients of each model until the end of the block; all have ended then."""
    load = Load(running)
    async with trio.open_nursery() as nursery:
        for count, model in clients:
            for _ in range(count):
                nursery.start_soon(load.keep_streaming, model)
        with trio.fail_after(PATIENCE_S):
            while load.under_way < sum(count for count, _ in clients):
                await trio.sleep(0.01)
        yield load
        load.going = False


def assert_no_request_was_affected(load, logged, running, *, may_wait=False):
    """Every answer is complete, no request spent time on a load, and no neuron saw a violation."""
    requests = [entry for entry in logged if entry["event"] == "request"]
    assert load.wrong == []
    assert {entry["outcome"] for entry in requests} == {"ok"}
    assert may_wait or [entry for entry in requests if "load" in entry["phases_ms"]] == []
    assert len(requests) == sum(load.answered.values())
    assert [breach for sim in running.neurons for breach in sim.violations] == []
    assert_idle(running.gateway.fleet)


def loads_of(sim):
    return [entry for entry in sim.loads if (entry.action, entry.outcome) == ("load", "begun")]


async def until_nothing_lives(running):
    with trio.fail_after(PATIENCE_S):  # a client has its last byte shortly before its request's nursery closes
        while running.gateway.request_log.live:
            await trio.sleep(0.005)


@pytest.mark.slow
async def test_50_swaps_under_200_streams_between_two_models_that_fit_no_neuron_together(tmp_path):
    """The second is loaded where it fits, a third keeps its memory elsewhere, and the other swaps need no load."""
    sims = [
        a_sim(name, FIRST, SECOND, THIRD, loaded=(loaded_model,))
        for name, loaded_model in (("a", FIRST.id), ("c", THIRD.id))
    ]
    sims.append(a_sim("b", FIRST, SECOND))
    text = models_toml(FIRST, SECOND, THIRD, **{"helexa/third": THIRD.id})
    with capture_logs() as logged:
        async with running_gateway(tmp_path, sims, models_toml=text) as running:
            async with under_load(running, (STREAMS - 20, ALIAS), (20, "helexa/third")) as load:
                swaps = 0
                while swaps < SWAPS or min(load.answered[model.id] for model in (FIRST, SECOND, THIRD)) <= 20:
                    target = (SECOND, FIRST)[swaps % 2].id
                    running.swap(ALIAS, target)
                    await running.pointing_at(ALIAS, target)
                    swaps += 1
            await until_nothing_lives(running)

            assert_no_request_was_affected(load, logged, running)
            assert load.answered.keys() == {FIRST.id, SECOND.id, THIRD.id}
            assert [sim.name for sim in sims for _ in loads_of(sim)] == ["b"]


@pytest.mark.slow
async def test_50_swaps_that_each_evict_and_load(tmp_path):
    """Three models on two neurons with room for one each: a swap waits until one is idle, and loads."""
    sims = [
        a_sim(name, *BRIEF_ONES, loaded=loaded_model) for name, loaded_model in (("a", (BRIEF_ONES[0].id,)), ("b", ()))
    ]
    elsewhere = a_sim("c", SLOW, loaded=(SLOW.id,))
    text = models_toml(*BRIEF_ONES, SLOW, **{"helexa/third": SLOW.id})
    at_once = EvictionSettings(min_residency_seconds=0)
    with capture_logs() as logged:
        async with running_gateway(tmp_path, [*sims, elsewhere], models_toml=text, eviction=at_once) as running:
            async with under_load(running, (8, ALIAS), (STREAMS - 8, "helexa/third")) as load:
                for swap in range(SWAPS):
                    target = BRIEF_ONES[(swap + 1) % 3].id
                    running.swap(ALIAS, target)
                    await running.pointing_at(ALIAS, target)
            await until_nothing_lives(running)

            assert_no_request_was_affected(load, logged, running)
            assert sum(len(loads_of(sim)) for sim in sims) == SWAPS
            swaps = Counter(entry["event"] for entry in logged if entry["event"].startswith("swap_"))
            assert swaps == {"swap_warming": SWAPS, "swap_done": SWAPS}


RACES = 15


async def test_rollback_that_races_a_set_does_not_affect_streams(tmp_path):
    """Two commands at the same moment, repeatedly: the file is one of the two, the gateway follows it, and every
    stream is complete.
    """
    sims = [
        a_sim(name, FIRST, SECOND, loaded=(loaded_model.id,)) for name, loaded_model in (("a", FIRST), ("b", SECOND))
    ]
    text = models_toml(FIRST, SECOND)
    with capture_logs() as logged:
        async with running_gateway(tmp_path, sims, models_toml=text) as running:
            files, names = running.gateway.catalogue_files, (FIRST.id, SECOND.id)
            async with under_load(running, (40, ALIAS)) as load:
                for number in range(RACES):
                    async with trio.open_nursery() as shells:
                        shells.start_soon(trio.to_thread.run_sync, _set, files, names[(number + 1) % 2])
                        shells.start_soon(trio.to_thread.run_sync, _roll_back, files)
                    catalogue = parse(running.models_toml.read_bytes(), path="", generation=0, loaded_at=0.0)
                    assert catalogue.aliases[ALIAS].target in names
                    await running.pointing_at(ALIAS, catalogue.aliases[ALIAS].target)
                for name in names:  # in whichever order, both serve in the end
                    await trio.to_thread.run_sync(_set, files, name)
                    await running.pointing_at(ALIAS, name)
                    await until(lambda name=name: load.answered[name])
            await until_nothing_lives(running)

            assert_no_request_was_affected(load, logged, running)
            assert running.gateway.catalogue_store.last_error is None


def _set(files, target):
    """As `cortex alias set` does it."""
    locked_edit.edit_models(
        files, lambda data: toml_edit.set_alias(data, ALIAS, {target: 1.0}), who="anna", command="set"
    )


def _roll_back(files):
    """As `cortex alias rollback` does it; there may be no version to go back to yet."""
    with suppress(VersionNotFound):
        locked_edit.edit_models(files, lambda data: versions.read_previous(files, data), who="bert", command="rollback")


TIERS = [f"helexa/tier-{number}" for number in range(8)]
CAST = [a_sim_model(f"lab/cast-{number:02}", 8000, **BRIEF) for number in range(12)]
ROUNDS = 24


@pytest.mark.slow
async def test_8_aliases_move_among_12_models_with_room_for_10(tmp_path):
    """Two per file, at random; every third file is changed again before it is in force. No request fails."""
    sims = [a_sim(name, *CAST, vram_mb=(16_500,), loaded=_pair(2 * index)) for index, name in enumerate("abcde")]
    dice = random.Random(45)  # noqa: S311 - replayable, not secret
    wanted = {tier: CAST[number].id for number, tier in enumerate(TIERS)}
    at_once = EvictionSettings(min_residency_seconds=0)
    with capture_logs() as logged:
        text = models_toml(*CAST, **wanted)
        async with running_gateway(tmp_path, sims, models_toml=text, eviction=at_once) as running:
            async with under_load(running, *((3, tier) for tier in TIERS)) as load:
                for number in range(ROUNDS):
                    for _ in range(2 if number % 3 == 0 else 1):
                        targets = wanted | {tier: dice.choice(CAST).id for tier in dice.sample(TIERS, 2)}
                        running.save(models_toml(*CAST, **targets))
                        await until(lambda targets=targets: _is_in_force(running, targets))
                    for tier, target in targets.items():
                        await running.pointing_at(tier, target)
                    wanted = targets
            await until_nothing_lives(running)

            # Three clients may all be between two requests, so the target of their tier may be evicted for another's.
            assert_no_request_was_affected(load, logged, running, may_wait=True)
            swaps = Counter(entry["event"] for entry in logged if entry["event"].startswith("swap_"))
            assert swaps["swap_warming"] == swaps["swap_done"] + swaps["swap_superseded"]
            assert swaps["swap_failed"] == 0
            assert sum(len(loads_of(sim)) for sim in sims) > ROUNDS // 4
            assert load.answered.keys() <= {model.id for model in CAST}
            assert len(load.answered) > len(TIERS)


def _pair(index):
    return tuple(model.id for model in CAST[index : index + 2])


def _is_in_force(running, targets):
    """Whether the gateway has read this file; it may still be warming a target."""
    catalogue = running.gateway.catalogue_store.current
    warming = {name: each.wanted.target for name, each in catalogue.warming.items()}
    return {name: warming.get(name, catalogue.aliases[name].target) for name in targets} == targets


SMALL, MIDDLE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B"
TWO_MODELS = (
    f'[aliases]\n"{ALIAS}" = "{SMALL}"\n'
    f'[[models]]\nid = "{SMALL}"\nharness = "llamacpp"\nvram_mb = 4096\n'
    f'[[models]]\nid = "{MIDDLE}"\nharness = "llamacpp"\nvram_mb = 7168\n'
)


FAR = ("--name", "far", "--loaded", "", "--speed", "9")


async def make_loads_hang(url):
    """Every load from now on."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=SAFETY_NET_S) as client:
        assert (await client.post("/sim/faults", json={"fault": "load_hangs"})).is_success


async def test_new_targets_neuron_killed_while_it_warms_and_a_broken_file_in_between(tmp_path):
    """No client notices; the operator sees it; when the neuron is back, the alias moves after all."""
    near = a_sim("near", a_sim_model(SMALL, 4096, **BRIEF), vram_mb=(5000,), loaded=(SMALL,))
    with capture_logs() as logged:
        far_here = (*FAR, "--port", a_port_of_our_own())
        async with a_neuron(*far_here) as (process, url):
            far = NeuronSettings("far", url)
            await make_loads_hang(url)
            async with running_gateway(tmp_path, [near], models_toml=TWO_MODELS, backends=(far,)) as running:
                swaps = running.gateway.swaps
                async with under_load(running, (10, ALIAS)) as load:
                    running.swap(ALIAS, MIDDLE)
                    await until(running.gateway.scheduler.loads)
                    good = running.models_toml.read_text()
                    running.save("[aliases\n")
                    await until(lambda: running.gateway.catalogue_store.last_error)
                    process.kill()
                    await until(lambda: swaps.views()[0].reason)
                    running.save(good)
                    await until(lambda: not running.gateway.catalogue_store.last_error)
                    assert running.gateway.catalogue_store.current.aliases[ALIAS].target == SMALL
                    async with a_neuron(*far_here):
                        swaps.retry(ALIAS)  # no effect if a poll marked it as down first: then the swap waits for it
                        await running.pointing_at(ALIAS, MIDDLE)
                        await until(lambda: load.answered[MIDDLE.lower()])
                        load.going = False
                        await until(lambda: not load.under_way)
                await until_nothing_lives(running)

                assert_no_request_was_affected(load, logged, running)


async def test_failed_swap_shows_everywhere_until_it_is_retried(tmp_path):
    """Health, metrics, admin API; all clear then."""
    near = a_sim("near", a_sim_model(SMALL, 4096, **BRIEF), vram_mb=(5000,), loaded=(SMALL,))
    far = a_sim("far", a_sim_model(MIDDLE, 7168, **BRIEF))
    far.faults.add(HttpError(model=MIDDLE, text="CUDA error"))
    async with (
        running_gateway(tmp_path, [near, far], models_toml=TWO_MODELS) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=SAFETY_NET_S) as client,
    ):
        admin = httpx.AsyncClient(
            base_url=running.metrics_url.removesuffix("/metrics"),
            headers={"authorization": "Bearer secret"},
            trust_env=False,
            timeout=SAFETY_NET_S,
        )

        async def shown():
            health = (await client.get("/health")).json()
            metrics = (await admin.get("/metrics")).text
            gauges = [
                line for line in metrics.splitlines() if line.startswith(("cortex_alias_w", "cortex_alias_swap_f"))
            ]
            return health["status"], [swap["state"] for swap in health.get("swaps", [])], gauges

        async with admin:
            running.swap(ALIAS, MIDDLE)
            await until(lambda: [view for view in running.gateway.swaps.views() if view.state == "failed"])
            assert await shown() == ("impaired", ["failed"], [f'cortex_alias_swap_failed{{alias="{ALIAS}"}} 1.0'])
            [swap] = (await admin.get("/admin/fleet")).json()["swaps"]
            assert swap["reason"] == f"'{MIDDLE}' is loaded, but its probe request got 500: CUDA error"
            assert (await admin.post("/admin/reload")).json()["warming"] == [ALIAS]
            assert (await admin.post("/admin/swaps/nobody/retry")).status_code == 404

            far.faults.clear()
            far.faults.add(Hang(model=MIDDLE))
            again = await admin.post(f"/admin/swaps/{ALIAS}/retry")
            assert again.json() == {"alias": ALIAS, "warming": [ALIAS]}
            assert await shown() == ("ok", ["warming"], [f'cortex_alias_warming{{alias="{ALIAS}"}} 1.0'])
            far.faults.clear()
            running.swap(ALIAS, SMALL)
            await until(lambda: not running.gateway.catalogue_store.current.warming)
            running.swap(ALIAS, MIDDLE)
            await running.pointing_at(ALIAS, MIDDLE)
            assert await shown() == ("ok", [], [])


async def until(condition):
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.01)
