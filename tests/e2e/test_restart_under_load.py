"""Restarts under load: streams and requests go on while processes replace each other, and no client notices.

`RESTART_ROUNDS` is the number of restarts of each kind, 1 by default; docs/how-to/restart.md has the figures of 20.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.process import a_neuron, a_port_of_our_own
from fakes.running import SMALL
from fakes.supervised import ended, listening_sockets, stopped, supervised

ROUNDS = int(os.environ.get("RESTART_ROUNDS", "1"))
STREAMS = 50
REQUESTS_PER_S = 200
AT_ONCE = 100  # requests without a stream; on a slow machine the rate sinks instead
SLOW = "Qwen/Qwen3-14B"  # 16 tokens a second: fifty such streams are a small load
CHAT = "/v1/chat/completions"
NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


@dataclass
class Load:
    """Clients that send requests until `end`, and what became of the requests."""

    url: str
    outcomes: Counter = field(default_factory=Counter)
    slowest_s: float = 0.0
    ends: bool = False

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        """Half of the requests come on connections that stay open, half on new ones."""
        open_client = {"base_url": self.url, "trust_env": False, "timeout": SAFETY_NET_S * 2, "limits": NO_LIMITS}
        async with (
            httpx.AsyncClient(**open_client) as kept,
            httpx.AsyncClient(**open_client) as other,
            trio.open_nursery() as clients,
        ):
            for _ in range(STREAMS):
                clients.start_soon(self._stream_again_and_again, kept)
            task_status.started()
            running = trio.CapacityLimiter(AT_ONCE)
            number = 0
            while not self.ends:
                number += 1
                async with running:
                    pass
                clients.start_soon(self._request, (kept, other)[number % 2], number % 2 == 1, running)
                await trio.sleep(1 / REQUESTS_PER_S)

    async def _stream_again_and_again(self, client):
        body = {"model": SLOW, "stream": True, "messages": [{"role": "user", "content": "Write 20 words"}]}
        while not self.ends:
            with self._counted("stream"):
                async with client.stream("POST", CHAT, json=body) as response:
                    lines = [line async for line in response.aiter_lines() if line]
                assert response.status_code == 200, (response.status_code, lines)
                assert lines[-1] == "data: [DONE]", lines[-1]

    async def _request(self, client, on_a_new_connection, running):
        body = {"model": SMALL, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"connection": "close"} if on_a_new_connection else {}
        async with running:
            began = trio.current_time()
            with self._counted("request"):
                response = await client.post(CHAT, json=body, headers=headers)
                assert response.status_code == 200, (response.status_code, response.text)
            self.slowest_s = max(self.slowest_s, trio.current_time() - began)

    def _counted(self, kind):
        return _Counted(self.outcomes, kind)

    @property
    def failures(self):
        """The outcomes that are not `stream` or `request`."""
        return {outcome: times for outcome, times in self.outcomes.items() if outcome not in {"stream", "request"}}

    async def go_on(self):
        """Wait until every kind of request was answered again."""
        before = Counter(self.outcomes)
        await until(lambda: all(self.outcomes[kind] >= before[kind] + 10 for kind in ("stream", "request")))


@dataclass
class _Counted:
    """Counts how the block ends."""

    outcomes: Counter
    kind: str

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if error is None:
            self.outcomes[self.kind] += 1
        elif isinstance(error, httpx.HTTPError | AssertionError):
            self.outcomes[f"{type(error).__name__}: {error}"] += 1
            return True
        return False


@pytest.fixture
async def neuron_url():
    """A neuron with room for every request, twice as fast as real models."""
    async with a_neuron("--loaded", f"{SMALL},{SLOW}", "--max-in-flight", 2000, "--speed", 2) as (_, url):
        yield url


@asynccontextmanager
async def under_load(url):
    """Load on the gateway; at the end it must not have noticed anything."""
    load = Load(url)
    async with trio.open_nursery() as nursery:
        await nursery.start(load.run)
        await load.go_on()
        began = trio.current_time()
        yield load
        await load.go_on()
        load.ends = True
    took_s = trio.current_time() - began
    print(f"{dict(load.outcomes)} in {took_s:.0f} s, slowest request {load.slowest_s:.1f} s")  # noqa: T201
    assert load.failures == {}


def write_config(folder, neuron_url, ports):
    (folder / "models.toml").write_text("models = []\n")
    config = folder / "cortex.toml"
    config.write_text(f"""
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:{ports[0]}"
metrics_listen = "127.0.0.1:{ports[1]}"
drain_seconds = {SAFETY_NET_S}
access_log = false
[deadlines]
connect_seconds = {SAFETY_NET_S}
[poll]
timeout_seconds = {SAFETY_NET_S}
[[neurons]]
name = "a"
endpoint = "{neuron_url}"
""")
    return config


@pytest.mark.slow
async def test_restart_by_the_service_manager(tmp_path, neuron_url):
    """It has the sockets: while no process accepts, newcomers wait in their backlog."""
    sockets = listening_sockets()
    config = write_config(tmp_path, neuron_url, [sock.getsockname()[1] for sock in sockets])
    async with supervised(tmp_path, config) as manager:
        process = await manager.start(sockets=sockets)
        async with under_load(f"http://127.0.0.1:{sockets[0].getsockname()[1]}") as load:
            for _ in range(ROUNDS):
                assert await stopped(process) == 0
                assert "STOPPING=1" in manager.sent(process.pid)
                process = await manager.start(sockets=sockets)
                await load.go_on()
        assert await stopped(process) == 0
        assert "Traceback" not in manager.log
    for sock in sockets:
        sock.close()


@pytest.mark.slow
async def test_takeover(tmp_path, neuron_url):
    """Without a service manager: the new process starts beside the old one, and takes its sockets."""
    ports = [a_port_of_our_own(), a_port_of_our_own()]
    async with supervised(tmp_path, write_config(tmp_path, neuron_url, ports)) as manager:
        process = await manager.start()
        async with under_load(f"http://127.0.0.1:{ports[0]}") as load:
            for _ in range(ROUNDS):
                successor = await manager.start("--takeover")
                assert await ended(process) == 0
                process = successor
                await load.go_on()
        assert await stopped(process) == 0
        assert "Traceback" not in manager.log


@pytest.mark.slow
async def test_restart_in_place(tmp_path, neuron_url):
    """SIGUSR2, which `systemctl reload` sends: the process starts its successor, which becomes the main process."""
    sockets = listening_sockets()
    config = write_config(tmp_path, neuron_url, [sock.getsockname()[1] for sock in sockets])
    async with supervised(tmp_path, config) as manager:
        process = await manager.start(sockets=sockets)
        async with under_load(f"http://127.0.0.1:{sockets[0].getsockname()[1]}") as load:
            pids = [process.pid]
            for _ in range(ROUNDS):
                os.kill(pids[-1], signal.SIGUSR2)
                await until(lambda: manager.main_pid != pids[-1])
                pids.append(manager.main_pid)
                await until(lambda: "READY=1" in manager.sent(pids[-1]))
                await load.go_on()
        assert await ended(process) == 0
        assert [line for line in manager.sent(process.pid) if not line.startswith(("STATUS", "MONOTONIC"))] == [
            "READY=1",
            "RELOADING=1",
            f"MAINPID={pids[1]}",
        ]
        os.kill(pids[-1], signal.SIGTERM)
        await until(lambda: "STOPPING=1" in manager.sent(pids[-1]))
        await until(lambda: _has_ended(pids[-1]))
        assert "Traceback" not in manager.log
    for sock in sockets:
        sock.close()


def _has_ended(pid):
    """Also if its parent, which is not this process, has not asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
