"""Rollouts through a whole gateway: real requests, a neuron that misbehaves for one model, and restarts in between."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial

import httpx
import msgspec
import pytest
import trio
from fakes.patience import PATIENT_DEADLINES, PATIENT_POLL, until

from gateway.aliases import rollout
from gateway.aliases.files import rollout_state
from gateway.aliases.files.rollout_state import Rollout
from gateway.config.settings import AdminSettings, GatewaySettings, Listen, LogSettings, NeuronSettings, Settings
from gateway.server.gateway import Gateway
from gateway.server.serve import serve
from neuron.simulated import SimDevice, SimModel, SimNeuron
from neuron.simulated.faults import HttpError, SilentPrefill

MODELS = b"""\
# Both are loaded, and as quick as each other.
[aliases]
"tier" = "old/model"   # for now

[[models]]
id = "old/model"
harness = "llamacpp"
vram_mb = 4000

[[models]]
id = "new/model"
harness = "llamacpp"
vram_mb = 4000
"""
PACE = {"overhead_s": 0.005, "prefill_tok_s": 1e9, "decode_tok_s": 2000.0, "max_in_flight": 64}


class RolloutScene:
    """One neuron, one folder, and the gateways that start and stop."""

    def __init__(self, folder, nursery):
        self.models = folder / "models.toml"
        self.models.write_bytes(MODELS)
        self.nursery = nursery
        known = [SimModel(name, 4000, 1.0, **PACE) for name in ("old/model", "new/model")]
        self.neuron = SimNeuron("beast", [SimDevice(0, "GPU", 24_000)], known, loaded=("old/model", "new/model"))

    async def open(self):
        self.endpoint = await self.nursery.start(self.neuron.serve)

    @asynccontextmanager
    async def gateway(self):
        """One gateway process."""
        here = Listen("127.0.0.1", 0)
        gateway = Gateway(
            Settings(
                gateway=GatewaySettings(listen=here, metrics_listen=here),
                poll=PATIENT_POLL,
                deadlines=PATIENT_DEADLINES,
                admin=AdminSettings(token="secret"),
                log=LogSettings(level="warning"),
                neurons=(NeuronSettings("beast", self.endpoint),),
                models_config=self.models,
            )
        )
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(partial(serve, gateway, stop=trio.sleep_forever))
            yield gateway, addresses.url
            nursery.cancel_scope.cancel()

    def begin(self, gateway, **how):
        """Write the state as `cortex alias rollout` does. Guards on times are off unless a test is about them."""
        data = self.models.read_bytes()
        wanted = {
            "alias": "tier",
            "target": "new/model",
            "steps": (20, 50, 100),
            "every_s": 0.2,
            "guards": {"errors": 0.02, "finish": 0.1},
            "minimum": 10,
            "who": "anna",
            "started": time.time(),
            "before": gateway.catalogue_files.history.keep(data),
            "old": {"old/model": 1.0},
        }
        rollout_state.begin(gateway.catalogue_files, Rollout(**wanted | how))

    def state(self, gateway):
        return rollout_state.read(gateway.catalogue_files)["tier"]


@pytest.fixture
async def scene(tmp_path, nursery, monkeypatch):
    monkeypatch.setattr(rollout, "RECONCILE_INTERVAL_S", 0.05)
    monkeypatch.setattr(rollout, "RETRY_S", 0.05)
    scene = RolloutScene(tmp_path, nursery)
    await scene.open()
    yield scene
    nursery.cancel_scope.cancel()


@asynccontextmanager
async def clients(url, answers):
    """Four clients that send one request after another; `answers` counts them by model and status."""
    going_on = True

    async def send_request(http):
        body = {"model": "tier", "stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "Why?"}]}
        while going_on:
            answer = await http.post("/v1/chat/completions", json=body)
            key = (answer.headers.get("x-cortex-model"), answer.status_code)
            answers[key] = answers.get(key, 0) + 1

    limits = httpx.Limits(max_connections=8)
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits) as http,
        trio.open_nursery() as nursery,
    ):
        for _ in range(4):
            nursery.start_soon(send_request, http)
        try:
            yield
        finally:
            going_on = False  # each client reads its last answer to the end: httpx leaks when it is cancelled


def over(scene, gateway):
    return scene.state(gateway).state != "running"


async def test_equal_candidate_gets_all_requests(scene):
    """Step by step, without a failed request; the final file has the alias in one plain line."""
    answers = {}
    async with scene.gateway() as (gateway, url), clients(url, answers):
        scene.begin(gateway)
        await until(lambda: over(scene, gateway))
        assert scene.state(gateway).state == "done", scene.state(gateway).reason

    assert scene.models.read_bytes() == MODELS.replace(b'"tier" = "old/model"', b'"tier" = "new/model"')
    assert {status for _, status in answers} == {200}


async def test_failing_candidate_is_rolled_back_at_the_first_step(scene):
    """The file is as before, byte for byte; audit log and state name the figure that decided."""
    async with scene.gateway() as (gateway, url), clients(url, {}):
        scene.begin(gateway, every_s=3600)
        await until(lambda: scene.state(gateway).since is not None)
        scene.neuron.faults.add(HttpError(model="new/model", status=500))
        await until(lambda: over(scene, gateway))
        state = scene.state(gateway)
        command = f"rollout tier: rolled back: {state.reason}"
        await until(lambda: next(gateway.catalogue_files.audit_log.newest_first()).fields.get("command") == command)
        line = next(gateway.catalogue_files.audit_log.newest_first()).fields

    assert (state.state, state.step) == ("rolled_back", 0)
    assert state.reason.startswith("errors: ")
    assert "requests failed at new/model (most often: upstream 500)" in state.reason
    assert scene.models.read_bytes() == MODELS
    assert line["who"] == "rollout (anna)"


async def test_candidate_that_does_not_answer_at_all_never_gets_a_request(scene):
    """Its probe fails, and that is the reason."""
    scene.neuron.faults.add(HttpError(model="new/model", status=500))
    answers = {}
    async with scene.gateway() as (gateway, url), clients(url, answers):
        scene.begin(gateway)
        await until(lambda: over(scene, gateway))
        state = scene.state(gateway)

    assert (state.state, state.step) == ("rolled_back", 0)
    assert state.reason.startswith("new/model could not be warmed: ")
    assert scene.models.read_bytes() == MODELS
    assert set(answers) == {("old/model", 200)}


async def test_slow_candidate_is_rolled_back_for_being_slow(scene):
    """Nothing else is wrong with it."""
    scene.neuron.faults.add(SilentPrefill(model="new/model", seconds=2.0))
    async with scene.gateway() as (gateway, url), clients(url, {}):
        # On a busy machine the old target is sometimes slow too, so the guard needs more requests.
        scene.begin(gateway, every_s=3600, guards={"errors": 0.02, "ttft": 0.25})
        await until(lambda: over(scene, gateway))
        state = scene.state(gateway)

    assert (state.state, state.step) == ("rolled_back", 0)
    assert state.reason.startswith("ttft: p95 of the time to the first token is ")
    assert scene.models.read_bytes() == MODELS


async def test_restarted_gateway_continues_the_rollout(scene):
    """The second process finds the step in the state file and continues it to the end."""
    async with scene.gateway() as (gateway, url), clients(url, {}):
        scene.begin(gateway, every_s=3600)
        await until(lambda: scene.state(gateway).since is not None)
        left = scene.state(gateway)
    data = msgspec.structs.replace(left, every_s=0.2)
    rollout_state._store(gateway.catalogue_files, data)

    async with scene.gateway() as (gateway, url), clients(url, {}):
        assert scene.state(gateway).step == 0
        await until(lambda: over(scene, gateway))
        state = scene.state(gateway)

    assert state.state == "done", state.reason
    assert b'"tier" = "new/model"   # for now' in scene.models.read_bytes()


async def test_gateway_killed_in_the_middle_of_a_failing_step_rolls_back_later(scene):
    """The figures are collected again, with the same result."""
    async with scene.gateway() as (gateway, _):
        scene.begin(gateway)
        await until(lambda: scene.state(gateway).since is not None)
    scene.neuron.faults.add(HttpError(model="new/model", status=500))

    async with scene.gateway() as (gateway, url), clients(url, {}):
        await until(lambda: over(scene, gateway))
        assert scene.state(gateway).state == "rolled_back"

    assert scene.models.read_bytes() == MODELS


async def test_admin_api_shows_how_the_targets_compare(scene):
    """With the token."""
    async with scene.gateway() as (gateway, url), clients(url, {}):
        scene.begin(gateway, every_s=3600)
        await until(lambda: any(view.requests_new >= 10 for view in gateway.rollouts.views()))
        view = gateway.rollouts.views()[0]

    assert (view.alias, view.step, view.steps, view.percent) == ("tier", 1, 3, 20)
    assert view.new["failed"] == 0
    assert view.new["first_token_p95_s"] > 0
