"""Every transition that a model may make, each by its own scenario, with a scripted engine under a virtual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from scripted_host import Scene, Script, model_table, scripted_host

from neuron.agent.errors import NeuronRequestError
from neuron.agent.supervision.model_status import TRANSITIONS, ModelStatus
from neuron.agent.supervision.model_supervisor import ModelSupervisor

S = ModelStatus
Pair = tuple[ModelStatus, ModelStatus]


async def load(scene: Scene) -> None:
    await scene.load("a")


async def load_fails(scene: Scene) -> None:
    scene.world.scripts["a"] = Script(exits_at_start=1)
    await scene.load("a")


async def load_ended_by_an_unload(scene: Scene) -> None:
    scene.nursery.start_soon(quietly, scene.load("a"))
    await trio.sleep(1)
    await scene.host.unload("a", force=True)


async def load_without_memory(scene: Scene) -> None:
    scene.world.foreign_mb = 24_000
    scene.reload(model_table("a", vram_mb=8_000, sleep=1))
    await scene.load("a")


async def unload(scene: Scene) -> None:
    await scene.load("a")
    await scene.host.unload("a", force=True)


async def crash(scene: Scene) -> None:
    await scene.load("a")
    scene.engine("a").crash()
    await scene.is_in("a", S.RECOVERING)
    await scene.is_in("a", S.LOADED)


async def second_crash_at_once(scene: Scene) -> None:
    await scene.load("a")
    scene.world.scripts["a"].exits_at_start = 1
    scene.engine("a").crash()
    await scene.is_in("a", S.RECOVERING)
    await trio.sleep(2)
    scene.world.scripts["a"].exits_at_start = None
    await scene.is_in("a", S.LOADED)


async def unload_while_recovering(scene: Scene) -> None:
    await scene.load("a")
    scene.engine("a").crash()
    await scene.is_in("a", S.RECOVERING)
    await scene.host.unload("a", force=True)


async def poison(scene: Scene) -> None:
    await scene.load("a")
    for _ in range(3):
        scene.engine("a").crash()
        await scene["a"].changed()
        while scene["a"].is_in(S.RECOVERING):
            await scene["a"].changed()
    assert scene["a"].is_in(S.POISONED)


async def poison_and_unload(scene: Scene) -> None:
    await poison(scene)
    await scene.host.unload("a")


async def sleep(scene: Scene) -> None:
    await scene.load("a")
    await scene.host.unload("a")


async def wake(scene: Scene) -> None:
    await sleep(scene)
    await scene.load("a")


async def wake_without_memory(scene: Scene) -> None:
    await sleep(scene)
    scene.world.foreign_mb = 20_000
    await scene.load("a")


async def sleeper_unloaded(scene: Scene) -> None:
    await sleep(scene)
    await scene.host.unload("a")


SCENARIOS: dict[Pair, Callable[[Scene], Awaitable[None]]] = {
    (S.UNLOADED, S.LOADING): load,
    (S.LOADING, S.LOADED): load,
    (S.LOADING, S.UNLOADED): load_without_memory,
    (S.LOADING, S.UNLOADING): load_ended_by_an_unload,
    (S.LOADING, S.ASLEEP): wake_without_memory,
    (S.LOADED, S.RECOVERING): crash,
    (S.LOADED, S.UNLOADING): unload,
    (S.RECOVERING, S.LOADED): crash,
    (S.RECOVERING, S.RECOVERING): second_crash_at_once,
    (S.RECOVERING, S.POISONED): poison,
    (S.RECOVERING, S.UNLOADING): unload_while_recovering,
    (S.POISONED, S.UNLOADED): poison_and_unload,
    (S.ASLEEP, S.LOADING): wake,
    (S.ASLEEP, S.UNLOADING): sleeper_unloaded,
    (S.UNLOADING, S.UNLOADED): load_fails,
    (S.UNLOADING, S.ASLEEP): sleep,
}


async def quietly(what: Awaitable[None]) -> None:
    """What a client sees is not the question here."""
    try:
        await what
    except NeuronRequestError:
        await trio.lowlevel.checkpoint()


def test_every_transition_has_a_scenario() -> None:
    assert SCENARIOS.keys() == {(before, after) for before, afters in TRANSITIONS.items() for after in afters}


@pytest.mark.parametrize("pair", SCENARIOS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
async def test_transition(autojump_clock, monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    """It happens, and nothing is left at the end."""
    seen: list[Pair] = []
    become = ModelSupervisor.become

    def noting(self: ModelSupervisor, status: ModelStatus, reason: str | None = None) -> None:
        before = self.status
        become(self, status, reason)
        seen.append((before, status))

    monkeypatch.setattr(ModelSupervisor, "become", noting)
    async with scripted_host(model_table("a", sleep=1), scripts={"a": Script()}) as scene:
        await quietly(SCENARIOS[pair](scene))
        assert pair in seen
        assert scene.statuses()["a"] == seen[-1][1].value
