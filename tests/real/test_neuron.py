"""Two real llama.cpp engines behind one neuron behind a gateway. Runs with `pytest --real`.

The device is the CPU. Each model declares three fifths of the machine's memory, so that there is room for one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import tiny_model
import trio
from fakes.agents_host import RunningAgent, ports_of, running_agent
from fakes.patience import SAFETY_NET_S, until
from fakes.process import a_port_of_our_own, environment
from fakes.running import running_gateway, settled

from gateway.config.settings import NeuronSettings
from neuron.agent.devices.devices import CpuDevice
from neuron.agent.process.survivors import MARK, start_time

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
A, B = "Tiny/A", "Tiny/B"
HALF_MB = CpuDevice("").infos[0].memory_total_mb * 3 // 5
MODELS_TOML = f"""
[aliases]
tier = "{A}"

[[models]]
id = "{A}"
harness = "llamacpp"
vram_mb = {HALF_MB}

[[models]]
id = "{B}"
harness = "llamacpp"
vram_mb = {HALF_MB}
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.make(path)
    return path


def neuron_toml(gguf: Path, *, api: str = "", engine: str = "", memory_mb: int = HALF_MB) -> str:
    tables = "".join(
        f'[[models]]\nid = "{name}"\nengine = "llamacpp"\nsource = "{gguf}"\nvram_mb = {memory_mb}\ncontext = 16384\n'
        'args = ["--parallel", "8", "--threads", "1", "--no-warmup"]\n'
        for name in (A, B)
    )
    listen = api or '[api]\nlisten = "127.0.0.1:0"\n'
    return f'{listen}[engines.llamacpp]\nkind = "llamacpp"\nports = "{ports_of()}"\nstop_seconds = 5\n{engine}{tables}'


@asynccontextmanager
async def fleet(folder: Path, gguf: Path, *, token: str | None = None, **keys):
    """The neuron, the gateway, and a client of the gateway."""
    host = folder / "neuron"
    host.mkdir()
    async with running_agent(host, neuron_toml(gguf, **keys), token=token) as agent:
        backend = NeuronSettings("host", agent.url, token=token)
        async with (
            running_gateway(folder, [], models_toml=MODELS_TOML, backends=(backend,)) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=SAFETY_NET_S) as client,
        ):
            yield agent, running, client


def chat(model: str, tokens: int = 5, **more: object) -> dict[str, object]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
    return body | {"ignore_eos": True, "temperature": 1} | more


async def statuses(agent: RunningAgent) -> dict[str, str]:
    return {entry["id"]: entry["status"] for entry in (await agent.client.get("/models")).json()}


async def engine_pid(agent: RunningAgent) -> int:
    return (await agent.engine_processes())[0]


FORWARDING = '[api]\nlisten = "0.0.0.0:0"\ntoken = "secret"\n'


@pytest.mark.parametrize(("api", "token"), [("", None), (FORWARDING, "secret")])
async def test_cold_loads_and_eviction_with_memory_for_one(tmp_path, gguf, api, token) -> None:
    """Each request has its model loaded, and the other one evicted; directly and through the forwarder."""
    async with fleet(tmp_path, gguf, api=api, token=token) as (agent, running, client):
        for model, other in ((A, B), (B, A), (A, B)):
            answer = await client.post(CHAT, json=chat(model))
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 5
            found = await statuses(agent)
            assert (found[model], found[other]) == ("loaded", "unloaded")
        await settled(running.gateway)


async def test_warm_swap_under_eight_streaming_clients(tmp_path, gguf) -> None:
    """No request fails while the alias moves, the new model is loaded, and the old one stays until it is idle."""
    async with fleet(tmp_path, gguf, memory_mb=100) as (agent, running, client):
        assert (await client.post(CHAT, json=chat("tier"))).status_code == 200
        swapped = trio.Event()
        answers: list[tuple[str, bool]] = []

        async def ask_until_swapped() -> None:
            after = 0
            while after < 3:
                after += swapped.is_set()
                async with client.stream("POST", CHAT, json=chat("tier", 40, stream=True)) as answer:
                    text = (await answer.aread()).decode()
                answers.append((answer.headers.get("x-cortex-model", ""), text.rstrip().endswith("[DONE]")))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask_until_swapped)
            await until(lambda: len(answers) > 8)
            running.save(MODELS_TOML.replace(f'tier = "{A}"', f'tier = "{B}"'))
            await running.pointing_at("tier", B)
            swapped.set()
        assert all(complete for _, complete in answers)
        assert {model for model, _ in answers} == {A, B}
        assert (await statuses(agent))[B] == "loaded"
        await settled(running.gateway)


async def test_crash_in_the_middle_of_a_stream_and_recovery(tmp_path, gguf) -> None:
    async with fleet(tmp_path, gguf) as (agent, running, client):
        assert (await client.post(CHAT, json=chat(A))).status_code == 200
        received = b""
        with suppress(httpx.RemoteProtocolError):
            async with client.stream("POST", CHAT, json=chat(A, 12_000, stream=True)) as answer:
                async for piece in answer.aiter_raw():
                    if not received:
                        os.kill(await engine_pid(agent), signal.SIGKILL)
                    received += piece
        assert b"[DONE]" not in received
        assert b'"error"' in received
        entry = await agent.status_is(A, "recovering")
        assert "SIGKILL" in str(entry["reason"])
        await agent.status_is(A, "loaded")
        await until(lambda: running.gateway.fleet.replicas(A))
        assert (await client.post(CHAT, json=chat(A))).status_code == 200


async def test_repeated_crashes_poison_the_model_until_an_operator_unloads_it(tmp_path, gguf) -> None:
    async with fleet(tmp_path, gguf, engine="max_restarts = 1\n") as (agent, _, client):
        await client.post(CHAT, json=chat(A))
        os.kill(await engine_pid(agent), signal.SIGKILL)
        await agent.status_is(A, "recovering")
        await agent.status_is(A, "loaded")
        os.kill(await engine_pid(agent), signal.SIGKILL)
        entry = await agent.status_is(A, "poisoned")
        assert "crashed 2 times" in str(entry["reason"])
        refused = await client.post(CHAT, json=chat(A))
        assert refused.status_code >= 500
        await agent.unload(A)
        with trio.fail_after(SAFETY_NET_S):
            while (await client.post(CHAT, json=chat(A))).status_code != 200:
                await trio.sleep(0.2)


async def test_engine_that_hangs_is_restarted(tmp_path, gguf) -> None:
    async with fleet(tmp_path, gguf, engine="hang_seconds = 2\n") as (agent, _, client):
        await client.post(CHAT, json=chat(A))
        os.kill(await engine_pid(agent), signal.SIGSTOP)
        entry = await agent.status_is(A, "recovering")
        assert "the engine hung" in str(entry["reason"])
        await agent.status_is(A, "loaded")


async def test_reload_of_the_configuration(tmp_path, gguf) -> None:
    """Changed arguments apply at the next load; a removed model finishes its stream, and is then unloaded."""
    async with fleet(tmp_path, gguf, memory_mb=100) as (agent, _, client):
        await client.post(CHAT, json=chat(A))
        async with client.stream("POST", CHAT, json=chat(A, 600, stream=True)) as answer:
            text, begin_of = neuron_toml(gguf, memory_mb=100), '[[models]]\nid = "{}"'.format
            text = text[: text.index(begin_of(A))] + text[text.index(begin_of(B)) :]
            agent.path.write_text(text)
            assert (await agent.client.post("/reload")).json()["removed"] in ([A], [])  # [] if the watch was first
            assert (await answer.aread()).decode().rstrip().endswith("[DONE]")
        with trio.fail_after(SAFETY_NET_S):
            while A in await statuses(agent):
                await trio.sleep(0.1)
        assert (await client.post(CHAT, json=chat(B))).status_code == 200


async def test_drain_of_the_neuron_at_the_gateway(tmp_path, gguf) -> None:
    async with fleet(tmp_path, gguf) as (_, running, client):
        await client.post(CHAT, json=chat(A))
        async with client.stream("POST", CHAT, json=chat(A, 300, stream=True)) as answer:
            running.gateway.fleet.drain("host", draining=True)
            assert (await client.post(CHAT, json=chat(A))).status_code == 503
            assert (await answer.aread()).decode().rstrip().endswith("[DONE]")
        running.gateway.fleet.drain("host", draining=False)
        assert (await client.post(CHAT, json=chat(A))).status_code == 200


def test_nothing_is_left_after_the_neuron_is_killed(tmp_path, gguf) -> None:
    """Engines end with it, and the next start loads the model again."""
    path = tmp_path / "neuron.toml"
    path.write_text(neuron_toml(gguf, memory_mb=100).replace("context", "preload = true\ncontext"))
    mark = f"{MARK}={tmp_path / 'neuron-state'}".encode()
    for _ in range(2):
        with cortex("neuron", "serve", "-c", str(path)) as (process, url):
            wait(
                lambda url=url: (
                    [entry["status"] for entry in httpx.get(f"{url}/models", timeout=SAFETY_NET_S).json()]
                    == ["loaded"] * 2
                )
            )
            assert len(marked(mark)) == 4  # two launchers, two engines
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait(lambda: not marked(mark))


def marked(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if start_time(pid) is not None]


def wait(condition) -> None:
    deadline = time.monotonic() + SAFETY_NET_S
    while True:
        with suppress(httpx.HTTPError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def cortex(*arguments: str, cwd: Path | None = None, **env: str):
    """A `cortex` command in the background, and the address in its `listening` event."""
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    with subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True, env=environment(**env)) as process:
        try:
            listening = next(line for line in process.stderr if '"listening"' in line)
            yield process, json.loads(listening)["api"]
        finally:
            process.terminate()
            process.communicate(timeout=SAFETY_NET_S)


def test_commands_of_the_page_lead_to_a_chat_by_alias(tmp_path, gguf) -> None:
    """The first block of docs/neuron.md, from `init` on, with free ports in place of the usual ones."""
    page = (ROOT / "docs/neuron.md").read_text()
    block = re.search(r"```bash\n(.*?)```", page, re.DOTALL)[1].strip().splitlines()
    assert len(block) <= 5
    install, init, serve_neuron, serve_gateway, curl = (shlex.split(line, comments=True) for line in block)
    assert install[:2] == ["pip", "install"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny.gguf").symlink_to(gguf)
    init = [word.replace("~", str(tmp_path)) for word in init]
    command = [sys.executable, "-m", "gateway.cli", *init[1:]]
    env = environment(HOME=str(tmp_path))
    made = subprocess.run(command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    port = a_port_of_our_own()
    for name in ("neuron.toml", "cortex.toml"):
        file = tmp_path / name
        text = file.read_text().replace("[api]", f'[api]\nlisten = "127.0.0.1:{port}"')
        file.write_text(text.replace("13131", str(port)))
    ports = {"CORTEX_GATEWAY__LISTEN": "127.0.0.1:0", "CORTEX_GATEWAY__METRICS_LISTEN": "127.0.0.1:0"}
    with cortex(*serve_neuron[1:], cwd=tmp_path), cortex(*serve_gateway[1:], cwd=tmp_path, **ports) as (_, api):
        curl = [word.replace("127.0.0.1:31313", api) for word in curl]
        answer = subprocess.run([*curl, "--silent"], capture_output=True, text=True, check=False)
    assert json.loads(answer.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_demo_with_a_real_engine(tmp_path) -> None:
    """`scripts/demo --real --run`: every command that it prints succeeds, and a load evicts the other model."""
    command = [sys.executable, str(ROOT / "scripts/demo_real.py"), "--run", "--dir", str(tmp_path)]
    made = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    answered = re.findall(r"x-cortex-model: (\S+)", made.stdout)
    assert answered == ["Tiny/small-1M", "Tiny/large-30M", "Tiny/large-30M"]
    states = re.findall(r"^Tiny/(\w+)-\d+M +llamacpp +(\w+)", made.stdout, re.MULTILINE)
    assert states == [("small", "loaded"), ("large", "unloaded"), ("small", "unloaded"), ("large", "loaded")]
    assert "in force: generation 2" in made.stdout


def test_gpu_check_with_tiny_shapes(tmp_path) -> None:
    """`scripts/gpu_check --tiny --engine llamacpp`: both tiers are loaded, asked, unloaded; the page stays."""
    page = (ROOT / "docs/performance.md").read_bytes()
    options = ["--tiny", "--engine", "llamacpp", "--requests", "1", "--tokens", "8"]
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), *options, "--dir", str(tmp_path)]
    made = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    assert re.search(r"\| small \| 1\.0M \| \d+\.\d \| \d+ \|", made.stdout)
    assert re.search(r"large to small: \d+\.\d\d; real models of the full sizes had 2\.68", made.stdout)
    assert (ROOT / "docs/performance.md").read_bytes() == page


def test_script_that_is_ended_ends_its_daemons(tmp_path) -> None:
    """SIGTERM of `scripts/demo --real`."""
    command = [sys.executable, str(ROOT / "scripts/demo_real.py"), "--dir", str(tmp_path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert any("Ctrl-C ends everything" in line for line in process.stdout)
        (address,) = re.findall(r'endpoint = "(.*)"', (tmp_path / "cortex.toml").read_text())
        assert httpx.get(f"{address}/health", trust_env=False, timeout=SAFETY_NET_S).status_code == 200
        process.terminate()
        process.wait(SAFETY_NET_S)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", trust_env=False, timeout=SAFETY_NET_S)
