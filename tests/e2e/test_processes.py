"""Real processes and signals: a neuron is killed, a gateway is stopped or killed."""

from __future__ import annotations

import json
import math
import signal
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.process import a_neuron, a_port_of_our_own, a_program, cortex
from fakes.running import MIDDLE, SMALL, running_gateway
from fakes.world import a_sim, a_sim_model

from gateway.config.settings import NeuronSettings

MANY = httpx.Limits(max_connections=200)
QUICK = [a_sim_model(name, 4096, overhead_s=0.005, decode_tok_s=2000.0) for name in (SMALL, MIDDLE)]
SLOW = "Qwen/Qwen3-14B"  # 32 tokens a second: thirty such streams are a small load
BOTH = ("--loaded", SLOW, "--max-in-flight", 100)


async def stream(client, model, content, begun=None):
    """The status and events of one stream; `begun` gets an entry at its first token."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": content}]}
    events = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 2 and begun is not None:
                    begun.append(model)
    return response.status_code, events


# A neuron is killed ...................................................................................................


@pytest.mark.slow
async def test_kill_dash_nine_of_a_neuron_process_with_thirty_streams_on_it(tmp_path):
    """Each stream ends with one error event, new requests go to the other neuron, and the restarted neuron is used."""
    port = a_port_of_our_own()
    a = ("--name", "a", "--port", port, *BOTH)
    async with (
        a_neuron(*a, "--speed", 0.5) as (process, first),
        a_neuron("--name", "b", "--speed", 50, *BOTH) as (_, second),
    ):
        backends = (NeuronSettings("a", first), NeuronSettings("b", second))
        async with running_gateway(tmp_path, [], backends=backends) as running:
            fleet = running.gateway.fleet
            fleet.drain("b", draining=True)
            async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=120, limits=MANY) as client:
                ended = await _thirty_streams_and_a_kill(client, process, fleet)
                for status, events in ended:
                    assert status == 200
                    assert json.loads(events[-1])["error"]["code"] == "upstream_connection_error"
                    assert len([event for event in events if '"error"' in event]) == 1
                    assert "[DONE]" not in events
                for _ in range(3):
                    status, events = await stream(client, SLOW, "hi")
                    assert (status, events[-1]) == (200, "[DONE]")
                await until(lambda: {replica.node.name for replica in fleet.replicas(SLOW)} == {"b"})

            async with a_neuron(*a, "--speed", 50):
                await until(lambda: fleet.nodes["a"].healthy and fleet.nodes["a"].breaker.closed)
                await until(lambda: len(fleet.replicas(SLOW)) == 2)
            await until(lambda: fleet.leases == 0)


async def _thirty_streams_and_a_kill(client, process, fleet):
    """Status and events of thirty streams, whose neuron is killed after their first token."""
    begun, ended = [], []

    async def one():
        ended.append(await stream(client, SLOW, "Write 4000 words", begun))

    async with trio.open_nursery() as streams:
        for _ in range(30):
            streams.start_soon(one)
        await until(lambda: len(begun) == 30)
        fleet.drain("b", draining=False)
        process.send_signal(signal.SIGKILL)
    return ended


# The gateway is stopped ...............................................................................................


@pytest.mark.slow
async def test_sigterm_with_thirty_streams_and_ten_requests_that_wait_for_a_load(tmp_path, nursery):
    """Waiting requests get 503 `shutting_down` at once; the streams run to their end; exit code 0."""
    # One token a second, so that no stream ends before the last has begun.
    models = (a_sim_model(SMALL, 4096, overhead_s=0.3, decode_tok_s=1), a_sim_model(MIDDLE, 7168, load_s=1e6))
    sim = a_sim("a", *models, vram_mb=(24_000,), loaded=(SMALL,))
    url = await nursery.start(sim.serve)
    config = _write_config(tmp_path, url)
    async with a_program("gateway.cli", "serve", "-c", config) as process:
        log = _Log(process.stderr)
        nursery.start_soon(log.read)
        await until(lambda: log.addresses)
        api = f"http://{log.addresses[0]['api']}"
        begun, finished, refused = [], [], []
        async with httpx.AsyncClient(base_url=api, trust_env=False, timeout=120, limits=MANY) as client:

            async def run_to_the_end():
                finished.append(await stream(client, SMALL, "Write 90 words", begun))

            async def wait_for_a_load():
                body = {"model": MIDDLE, "messages": [{"role": "user", "content": "hi"}]}
                answer = await client.post("/v1/chat/completions", json=body)
                refused.append((answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]))

            async with trio.open_nursery() as clients:
                for _ in range(10):
                    clients.start_soon(wait_for_a_load)
                for _ in range(30):
                    clients.start_soon(run_to_the_end)
                await until(lambda: len(begun) == 30)
                sim.speed = 1e-9  # nothing ends from here on
                await until(partial(_has_seen, sim, MIDDLE))
                await _ten_wait(client, log.addresses[0]["metrics"])
                process.send_signal(signal.SIGTERM)
                await until(lambda: len(refused) == 10)
                assert not finished
                sim.speed = math.inf

        assert set(refused) == {(503, "shutting_down", "5")}
        assert [(status, events[-1]) for status, events in finished] == [(200, "[DONE]")] * 30
        assert not any('"error"' in event for _, events in finished for event in events)
        with trio.fail_after(SAFETY_NET_S):
            assert await process.wait() == 0
        await until(lambda: log.is_over)
        assert "Traceback" not in log.text
        assert '"event":"drained"' in log.text
        assert '"event":"cut"' not in log.text
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_stream_left_after_the_drain_time_gets_an_error_event(tmp_path, nursery):
    """One error event and no `[DONE]`; a request without a stream gets 503; exit code 0."""
    model = a_sim_model(SMALL, 4096, overhead_s=0.3, decode_tok_s=10)
    sim = a_sim("a", model, vram_mb=(24_000,), loaded=(SMALL,))
    config = _write_config(tmp_path, await nursery.start(sim.serve), drain_s=0.5)
    async with a_program("gateway.cli", "serve", "-c", config) as process:
        log = _Log(process.stderr)
        nursery.start_soon(log.read)
        await until(lambda: log.addresses)
        begun, ended, plain = [], [], []
        api = f"http://{log.addresses[0]['api']}"
        async with httpx.AsyncClient(base_url=api, trust_env=False, timeout=120, limits=MANY) as client:

            async def one():
                ended.append(await stream(client, SMALL, "Write 4000 words", begun))

            async def request_without_a_stream():
                body = {"model": SMALL, "messages": [{"role": "user", "content": "Write 4000 words"}]}
                answer = await client.post("/v1/chat/completions", json=body)
                plain.append((answer.status_code, answer.json()["error"]["code"]))

            async with trio.open_nursery() as clients:
                clients.start_soon(request_without_a_stream)
                for _ in range(3):
                    clients.start_soon(one)
                await until(lambda: len(begun) == 3)
                sim.speed = 1e-9  # nothing ends from here on
                process.send_signal(signal.SIGTERM)

        for status, events in ended:
            assert status == 200
            assert json.loads(events[-1])["error"]["code"] == "shutting_down"
            assert len([event for event in events if '"error"' in event]) == 1
            assert "[DONE]" not in events
        assert plain == [(503, "shutting_down")]
        with trio.fail_after(SAFETY_NET_S):
            assert await process.wait() == 0
        await until(lambda: log.is_over)
        assert "Traceback" not in log.text
        assert '"event":"cut"' in log.text
    nursery.cancel_scope.cancel()


def _write_config(folder, neuron_url, *, drain_s=SAFETY_NET_S):
    (folder / "models.toml").write_text(
        "".join(
            f'[[models]]\nid = "{model}"\nharness = "llamacpp"\nvram_mb = {mb}\n'
            for model, mb in ((SMALL, 4096), (MIDDLE, 7168))
        )
    )
    config = folder / "cortex.toml"
    config.write_text(f"""
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
drain_seconds = {drain_s}
[admin]
token = "secret"
[log]
format = "json"
[deadlines]
connect_seconds = {SAFETY_NET_S}
[poll]
timeout_seconds = {SAFETY_NET_S}
[[neurons]]
name = "a"
endpoint = "{neuron_url}"
""")
    return config


class _Log:
    """The log of a gateway; `addresses` has its `listening` events."""

    def __init__(self, stream):
        self._stream = stream
        self._read = b""
        self.is_over = False

    async def read(self):
        async for data in self._stream:
            self._read += data
        self.is_over = True

    @property
    def text(self):
        """The complete lines so far."""
        return self._read[: self._read.rfind(b"\n") + 1].decode()

    @property
    def addresses(self):
        return [json.loads(line) for line in self.text.splitlines() if "listening" in line]


def _has_seen(sim, model):
    return model in sim.residents


# The gateway is killed in the middle of a rollout .....................................................................


@pytest.mark.slow
async def test_rollout_continues_after_kill_dash_nine_of_the_gateway(tmp_path, nursery):
    """The next process continues at the saved step and time; it is killed during the next step, and a third finishes.

    A step cannot end without requests, so the test decides in which step each process is killed.
    """
    url = await nursery.start(a_sim("a", *QUICK, loaded=(SMALL, MIDDLE)).serve)
    config = _write_config(tmp_path, url)
    models = tmp_path / "models.toml"
    models.write_text(f'# kept\n[aliases]\n"tier" = "{SMALL}"  # for now\n\n{models.read_text()}')
    async with a_gateway(config) as (api, _):
        command = ("alias", "rollout", "tier", MIDDLE, "--steps", "40,70,100", "--every", "0.1s", "--guard", "errors")
        begin = partial(cortex, *command, "-c", config, CORTEX_GATEWAY__LISTEN=api.removeprefix("http://"))
        done = await trio.to_thread.run_sync(begin)
        assert (done.returncode, done.stderr) == (0, "")
        await until(lambda: _rollout(tmp_path)["since"])
        saved = _rollout(tmp_path)
        assert (saved["step"], saved["state"]) == (0, "running")

    async with a_gateway(config) as (api, metrics):
        await _waits_for_requests(metrics)
        assert _rollout(tmp_path) == saved
        async with clients_of_a_tier(api):
            await until(lambda: _rollout(tmp_path)["step"] == 1)

    async with a_gateway(config) as (api, _), clients_of_a_tier(api) as answers:
        await until(lambda: _rollout(tmp_path)["state"] != "running")

    assert (_rollout(tmp_path)["state"], _rollout(tmp_path)["started"]) == ("done", saved["started"])
    assert f'# kept\n[aliases]\n"tier" = "{MIDDLE}"  # for now\n' in models.read_text()
    assert {status for _, status in answers} == {200}
    verified = await trio.to_thread.run_sync(cortex, "audit", "verify", "-c", config)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    nursery.cancel_scope.cancel()


@asynccontextmanager
async def a_gateway(config):
    """A gateway process that listens; yields the URLs of its ports, and kills it afterwards."""
    async with a_program("gateway.cli", "serve", "-c", config) as process, trio.open_nursery() as reading:
        log = _Log(process.stderr)
        reading.start_soon(log.read)
        await until(lambda: log.addresses)
        yield tuple(f"http://{log.addresses[0][port]}" for port in ("api", "metrics"))
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await until(lambda: log.is_over)
        assert "Traceback" not in log.text


@asynccontextmanager
async def clients_of_a_tier(api):
    """Four clients that send one request after another; yields the set of (model, status) of the answers."""
    answers, going_on = set(), True

    async def send_request(client):
        body = {"model": "tier", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        while going_on:
            answer = await client.post("/v1/chat/completions", json=body)
            answers.add((answer.headers.get("x-cortex-model"), answer.status_code))

    async with (
        httpx.AsyncClient(base_url=api, trust_env=False, timeout=SAFETY_NET_S) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(4):
            nursery.start_soon(send_request, client)
        try:
            yield answers
        finally:
            going_on = False


async def _waits_for_requests(metrics):
    """Wait until the step has lasted its minimum time and only requests are missing."""
    headers = {"authorization": "Bearer secret"}
    async with httpx.AsyncClient(base_url=metrics, trust_env=False, headers=headers, timeout=SAFETY_NET_S) as client:
        with trio.fail_after(SAFETY_NET_S):
            while [view["waits_for"] for view in (await client.get("/admin/rollouts")).json()["rollouts"]] != [
                "requests"
            ]:
                await trio.sleep(0.02)


def _rollout(folder):
    [state] = folder.glob("*rollout*.json")
    return json.loads(state.read_text())["rollouts"]["tier"]


async def _ten_wait(client, metrics):
    """Wait until all ten requests wait for the load."""
    with trio.fail_after(SAFETY_NET_S):
        while True:
            answer = await client.get(f"http://{metrics}/admin/requests", headers={"authorization": "Bearer secret"})
            if [request["state"] for request in answer.json()["requests"]].count("loading") == 10:
                return
            await trio.sleep(0.02)
