"""The admin API and the commands that use it, on real sockets."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from fakes import process
from fakes.engine import SimEngine, start_gateway
from fakes.in_memory import Client
from fakes.patience import SAFETY_NET_S, until
from fakes.running import MIDDLE, PROBE, SMALL, running_gateway

from gateway.config.settings import AdminSettings, NeuronSettings
from gateway.errors import NotFound
from neuron.simulated.faults import Hang, LoadHangs
from neuron.simulated.fleet import neuron

TOKEN = {"authorization": "Bearer secret"}
MODELS_TOML = f"""
[aliases]
"helexa/small" = "{SMALL}"
"helexa/middle" = "{MIDDLE}"

[[models]]
id = "{SMALL}"
harness = "llamacpp"
vram_mb = 4096
max_concurrent = 1

[[models]]
id = "{MIDDLE}"
harness = "llamacpp"
vram_mb = 7168
"""


@pytest.fixture
def neurons():
    """Two hosts: only the first has the small model loaded; both can load the middle one."""
    return [neuron("beast", [24576], [SMALL], speed=100), neuron("mule", [12288], [], speed=100)]


@pytest.fixture
async def cortex(tmp_path, neurons):
    async with running_gateway(tmp_path, neurons, models_toml=MODELS_TOML) as running:
        yield running


@pytest.fixture
async def admin(cortex):
    """An operator's client of the metrics port."""
    async with client_of(f"http://{cortex.addresses.metrics}") as client:
        yield client


def client_of(url, headers=TOKEN):
    return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=SAFETY_NET_S)


# Authorization ........................................................................................................

ROUTES = [
    ("POST", "/admin/reload"),
    ("GET", "/admin/fleet"),
    ("GET", "/admin/requests"),
    ("DELETE", "/admin/requests/x"),
    ("GET", "/admin/nodes/beast"),
    ("POST", "/admin/nodes/beast/drain"),
    ("POST", "/admin/nodes/beast/undrain"),
    ("POST", "/admin/load"),
    ("POST", "/admin/unload"),
]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "bearer secret2"},
        {"authorization": "Bearer sécret".encode()},
        {"authorization": "secret"},
        {"authorization": "Basic secret"},
        {"authorization": "Bearer"},
    ],
)
async def test_request_without_the_token_is_refused(cortex, headers):
    """401 on every route; the message distinguishes a missing key from a wrong one."""
    async with client_of(f"http://{cortex.addresses.metrics}", headers) as client:
        for method, path in ROUTES:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
            is_given = "authorization" in headers
            assert ("credentials are no key" in answer.json()["error"]["message"]) == is_given
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER   secret"])
async def test_scheme_of_the_token_is_case_insensitive(cortex, header):
    """RFC 9110, section 11.1."""
    async with client_of(f"http://{cortex.addresses.metrics}", {"authorization": header}) as client:
        assert (await client.get("/admin/fleet")).status_code == 200


async def test_public_port_serves_the_admin_api_only_if_configured(cortex, tmp_path, neurons):
    """By default it answers 404; with `[admin] public` it serves the same API with the same token, without CORS."""
    async with client_of(cortex.url) as client:
        for method, path in ROUTES:
            assert (await client.request(method, path)).status_code == 404, path
    settings = AdminSettings(token="secret", public=True)
    async with running_gateway(tmp_path, [neuron("other", [24576])], admin=settings) as running:
        async with client_of(running.url) as client:
            answer = await client.get("/admin/fleet", headers={"origin": "https://evil.example"})
            assert answer.status_code == 200
            assert "access-control-allow-origin" not in answer.headers
        async with client_of(running.url, {}) as client:
            assert (await client.get("/admin/fleet")).status_code == 401


# Loading and unloading ................................................................................................


async def test_load_and_unload_at_a_neuron(cortex, admin, neurons):
    """202 if it starts a load, 200 if the model is loaded already. An alias is accepted."""
    body = {"model": "helexa/middle", "node": "mule"}
    answer = await admin.post("/admin/load", json=body)
    assert (answer.status_code, answer.json()) == (
        202,
        {"model": MIDDLE, "node": "mule", "state": "loading", "estimate_s": None},
    )
    await until(lambda: cortex.gateway.fleet.replicas(MIDDLE))
    answer = await admin.post("/admin/load", json=body)
    assert (answer.status_code, answer.json()["state"]) == (200, "loaded")

    answer = await admin.post("/admin/unload", json={"model": MIDDLE})
    assert (answer.status_code, answer.json()["nodes"], answer.json()["refused"]) == (202, ["mule"], [])
    await until(lambda: neurons[1].counters["unloads"] == 1)
    with trio.fail_after(
        SAFETY_NET_S
    ):  # the unload ends a moment after the model is gone; until then the neuron is busy
        while (answer := await admin.post("/admin/load", json=body)).status_code == 503:
            assert answer.headers["retry-after"] == "5"
    assert answer.json()["estimate_s"] >= 0.09  # 9 s at a hundred times the speed, at the least
    await until(lambda: cortex.gateway.fleet.replicas(MIDDLE))


async def test_load_without_a_neuron_is_placed_as_for_a_request(cortex, admin, neurons):
    """On the neuron with the most free memory."""
    answer = await admin.post("/admin/load", json={"model": MIDDLE})
    assert (answer.status_code, answer.json()["node"]) == (202, "beast")
    await until(lambda: cortex.gateway.fleet.replicas(MIDDLE))
    assert neurons[0].loaded(MIDDLE)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/admin/load", {"model": "nobody/has-it"}, 404, "model_not_found"),
        ("/admin/load", {"model": MIDDLE, "node": "nobody"}, 404, "not_found"),
        ("/admin/load", {}, 400, "malformed_json"),
        ("/admin/load", {"model": MIDDLE, "nodes": ["beast"]}, 400, "malformed_json"),
        ("/admin/unload", {"model": MIDDLE}, 404, "not_found"),
        ("/admin/unload", {"model": SMALL, "node": "mule"}, 404, "not_found"),
        ("/admin/unload", {"model": SMALL, "node": "nobody"}, 404, "not_found"),
        ("/admin/nodes/nobody/drain", {}, 404, "not_found"),
        ("/admin/nodes/beast/drain", {"mvoe": True}, 400, "malformed_json"),
    ],
)
async def test_invalid_load_unload_or_drain_is_refused(cortex, admin, path, body, status, code):
    """In the error envelope; unknown fields are errors."""
    answer = await admin.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_model_in_use_is_not_unloaded(cortex, admin, neurons):
    """503 with `retry-after` and the reason. An idle replica elsewhere is unloaded; `refused` names the other."""
    neurons[0].faults.add(Hang())
    async with a_request(cortex):
        await until(lambda: cortex.gateway.fleet.leases == 1)
        answer = await admin.post("/admin/unload", json={"model": SMALL})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        why = f"'{SMALL}' on beast is in use by 1 request of this gateway"
        assert answer.json()["error"]["message"] == why

        await admin.post("/admin/load", json={"model": SMALL, "node": "mule"})
        await until(lambda: len(cortex.gateway.fleet.replicas(SMALL)) == 2 and not cortex.gateway.scheduler.loads())
        answer = await admin.post("/admin/unload", json={"model": SMALL})
        assert (answer.status_code, answer.json()["nodes"], answer.json()["refused"]) == (202, ["mule"], [why])


async def test_engines_load_only_where_cortex_can_control_them(nursery):
    """llama.cpp's router loads a model; for other engines the error says that cortex cannot."""
    engine = SimEngine(SMALL)
    url = await nursery.start(engine.serve)
    names = {"router": "llamacpp", "plain": "vllm"}
    settings = [NeuronSettings(name, url, "openai", engine=kind) for name, kind in names.items()]
    gateway, _ = await start_gateway(nursery, settings)
    loading = gateway.manual_loads.load(SMALL, "router")
    assert (loading.node, loading.state) == ("router", "loading")
    await until(lambda: not gateway.scheduler.loads())
    assert engine.managed == ["/models/load"]
    for action in (gateway.manual_loads.load, gateway.manual_loads.unload):
        with pytest.raises(NotFound, match="cannot load or unload models on plain"):
            action(SMALL, "plain")
        with pytest.raises(NotFound):
            action("nobody/has-it", "router")
    nursery.cancel_scope.cancel()


# Cancelling requests ..................................................................................................


@asynccontextmanager
async def a_request(cortex, model=SMALL, *, stream=False, body=None):
    """A client that has sent a request; the caller may read the answer."""
    async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as connection:
        client = Client(connection)
        await client.send(body or {"model": model, "messages": PROBE}, stream=stream)
        yield client


async def one_request(admin, state):
    """The first request in this state; waits until there is one."""
    with trio.fail_after(SAFETY_NET_S):
        while True:
            requests = (await admin.get("/admin/requests")).json()["requests"]
            if found := [request for request in requests if request["state"] == state]:
                return found[0]
            await trio.sleep(0.01)


async def cancel_request(admin, state):
    """Cancel the request in this state."""
    request = await one_request(admin, state)
    answer = await admin.delete(f"/admin/requests/{request['request_id']}")
    assert answer.json() == {"cancelled": 1}
    return request


async def test_queued_request_is_cancelled(cortex, admin, neurons):
    """The running request is not disturbed."""
    neurons[0].faults.add(Hang())
    async with a_request(cortex):
        await until(lambda: cortex.gateway.fleet.leases == 1)
        async with a_request(cortex) as client:
            request = await cancel_request(admin, "queued")
            answer = await client.answer()
        fleet = (await admin.get("/admin/fleet")).json()
        assert cortex.gateway.fleet.leases == 1
    assert (request["position"], request["node"]) == (1, None)
    assert (answer.status, answer.error["message"]) == (503, "cancelled by an operator")
    assert fleet["queue"] == []


async def test_request_waiting_for_a_load_is_cancelled(cortex, admin, neurons):
    """The load continues."""
    for each in neurons:
        each.faults.add(LoadHangs())
    async with a_request(cortex, MIDDLE) as client:
        await cancel_request(admin, "loading")
        answer = await client.answer()
    assert (answer.status, answer.error["message"]) == (503, "cancelled by an operator")
    assert [load.model for load in cortex.gateway.scheduler.loads()] == [MIDDLE]


async def test_streaming_request_is_cancelled(cortex, admin, neurons):
    """The stream ends with an error event, and the neuron is free."""
    body = {"model": SMALL, "messages": [{"role": "user", "content": "Write 4000 words"}]}
    async with a_request(cortex, stream=True, body=body) as client:
        _, headers = await client.head()
        assert await client.piece(headers)
        neurons[0].speed = 1e-9  # after the first token the neuron practically stops
        request = await cancel_request(admin, "running")
        answer = b""
        while piece := await client.piece(headers):
            answer += piece
    assert request["node"] == "beast"
    assert json.loads(answer.rpartition(b"data: ")[2])["error"]["message"] == "cancelled by an operator"
    await until(lambda: neurons[0].residents[SMALL].places.in_flight == 0)


async def test_request_whose_body_is_arriving_is_cancelled(cortex, admin):
    """A slow upload counts as a running request too."""
    async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n{"
        await connection.send_all(head.encode())
        await cancel_request(admin, "arriving")
        answer = await Client(connection).answer()
    assert (answer.status, answer.error["message"]) == (503, "cancelled by an operator")


async def test_unknown_request_cannot_be_cancelled(admin):
    """404."""
    assert (await admin.delete("/admin/requests/nobody")).status_code == 404


# The commands .........................................................................................................


async def command(*arguments):
    """`cortex` as a process: exit code and output."""
    done = await trio.to_thread.run_sync(
        partial(process.cortex, *arguments, CORTEX_ADMIN__TOKEN="secret", COLUMNS="180")
    )
    return done.returncode, done.stdout + done.stderr


async def test_cortex_drain_returns_when_the_last_request_has_ended(cortex, admin, neurons):
    """It prints the number of running requests whenever it changes; undrain opens the neuron again."""
    neurons[0].faults.add(Hang(times=1))
    metrics = f"http://{cortex.addresses.metrics}"
    async with trio.open_nursery() as nursery:
        ended = []

        async def drain():
            ended.append(await command("drain", "beast", "--admin", metrics))

        async with a_request(cortex):
            await until(lambda: cortex.gateway.fleet.leases == 1)
            nursery.start_soon(drain)
            await until(lambda: cortex.gateway.fleet.nodes["beast"].draining)
            assert (await admin.get("/admin/nodes/beast")).json()["state"] == "draining"
            await trio.sleep(0.1)
            assert ended == []
    assert ended == [(0, "beast: draining, 1 running request left\nbeast: drained\n")]
    assert "healthy, drained" in (await command("status", "-e", cortex.url, "--admin", metrics))[1]
    assert await command("undrain", "beast", "--admin", metrics) == (0, "beast: open\n")


async def test_cortex_drain_move_loads_elsewhere_first(cortex, neurons):
    """It prints the progress. A model that cannot be moved keeps the neuron open: exit code 1."""
    metrics = f"http://{cortex.addresses.metrics}"
    neurons[1].speed = 1e-9  # until the output has been read
    env = {"CORTEX_ADMIN__TOKEN": "secret", "COLUMNS": "180"}
    with process.running_cortex("drain", "beast", "--move", "--admin", metrics, **env) as drain:
        first = await trio.to_thread.run_sync(drain.read_until, "\n")
        neurons[1].speed = 100
        code, rest, err = await trio.to_thread.run_sync(drain.end)
    assert first == f"{SMALL}: loaded only on beast; loading it on another neuron\n"
    assert (code, rest, err) == (0, f"{SMALL}: loaded on mule\nbeast: drained\n", "")
    assert neurons[1].loaded(SMALL)
    code, output = await command("drain", "mule", "--move", "--admin", metrics)
    assert code == 1
    assert f"{SMALL}: cannot be moved:" in output
    assert output.endswith("mule: open\n")


async def test_cortex_drain_move_names_evicted_models(tmp_path):
    """The only neuron with enough memory must evict another model."""
    hosts = [neuron("beast", [24576], [SMALL], speed=100), neuron("tiny", [8192], [MIDDLE], speed=100)]
    async with running_gateway(tmp_path, hosts, models_toml=MODELS_TOML) as running:
        metrics = f"http://{running.addresses.metrics}"
        code, output = await command("drain", "beast", "--move", "--admin", metrics)
    assert (code, output.splitlines()[-3:]) == (
        0,
        [f"{SMALL}: loaded on tiny", f"{MIDDLE}: evicted to make room; no neuron has it loaded now", "beast: drained"],
    )


@pytest.mark.parametrize("what", ["drain", "undrain"])
async def test_refused_drain_command_prints_the_reason(cortex, what):
    """Exit code 1 for an unknown neuron and for the wrong port."""
    metrics = f"http://{cortex.addresses.metrics}"
    code, output = await command(what, "a/b", "--admin", metrics)
    assert (code, "does not exist" in output or "no such path" in output) == (1, True)
    code, output = await command(what, "beast", "--admin", cortex.url)
    assert (code, "no such path" in output) == (1, True)


async def test_cortex_status_shows_devices_loads_queues_and_requests(cortex, admin, neurons):
    """As tables and as JSON."""
    metrics = f"http://{cortex.addresses.metrics}"
    neurons[0].faults.add(Hang())
    for each in neurons:
        each.faults.add(LoadHangs())
    async with a_request(cortex), a_request(cortex), a_request(cortex, MIDDLE):
        await one_request(admin, "queued")
        await one_request(admin, "loading")
        code, output = await command("status", "-e", cortex.url, "--admin", metrics)
        _, as_json = await command("status", "-e", cortex.url, "--admin", metrics, "--json")
    assert code == 0
    for expected in ("queued, position 1", "waiting for a load", " / 24576", f"{MIDDLE}  beast"):
        assert expected in output
    fleet = json.loads(as_json)["fleet"]
    assert [(line["model"], line["ceiling"], line["waiting_for_place"]) for line in fleet["queue"]] == [
        (SMALL, 1, 1),
        (MIDDLE, None, 0),
    ]
    assert [(drain["node"], drain["state"]) for drain in fleet["drains"]] == [("beast", "open"), ("mule", "open")]
