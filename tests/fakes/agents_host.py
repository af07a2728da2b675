"""A neuron over real processes and sockets, in this process, for one test: its engines are `fake_engine.py`."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import trio
from fakes.patience import SAFETY_NET_S, until

from neuron.agent.devices.devices import CpuDevice
from neuron.agent.process.launcher import descendants
from neuron.agent.serve import NeuronServer

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
COMMAND = [sys.executable, "-P", str(FAKE_ENGINE), "--host", "{host}", "--port", "{port}", "--name", "{model_id}"]
ENGINE = f"""
[engines.fake]
kind = "llamacpp"
command = {json.dumps(COMMAND)}
stop_seconds = 2
"""


def ports_of(worker: str = os.environ.get("PYTEST_XDIST_WORKER", "gw0")) -> str:
    """Ports for this worker's engines, away from those of other workers."""
    first = 21_000 + 100 * int(worker.removeprefix("gw"))
    return f"{first}-{first + 99}"


def engine_table(**keys: object) -> str:
    """The table of the fake engine, with further keys."""
    engine = ENGINE.replace('kind = "llamacpp"\n', "") if "kind" in keys else ENGINE
    return (
        engine + f'ports = "{ports_of()}"\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    )


def model(model_id: str, *args: str, **keys: object) -> str:
    """The table of a model, with options of the fake engine."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in {"args": list(args), **keys}.items()]
    return f'[[models]]\nid = "{model_id}"\nengine = "fake"\n' + "".join(lines)


@dataclass
class RunningAgent:
    """What a test needs of a neuron."""

    url: str
    client: httpx.AsyncClient
    path: Path
    stop: trio.Event = field(default_factory=trio.Event)

    async def load(self, model_id: str, **keys: object) -> httpx.Response:
        return await self.client.post("/models/load", json={"model_id": model_id, "harness": "fake", **keys})

    async def unload(self, model_id: str, **keys: object) -> httpx.Response:
        return await self.client.post("/models/unload", json={"model_id": model_id, **keys})

    async def entry(self, model_id: str) -> dict[str, object]:
        entries = (await self.client.get("/models")).json()
        return next(entry for entry in entries if entry["id"] == model_id)

    async def status_is(self, model_id: str, status: str) -> dict[str, object]:
        """Wait until `GET /models` reports this status; the entry."""
        with trio.fail_after(SAFETY_NET_S):
            while (entry := await self.entry(model_id))["status"] != status:
                await trio.sleep(0.02)
        return entry

    async def endpoint(self, model_id: str) -> str:
        answer = await self.client.get(f"/models/{model_id.replace('/', '%2F')}/endpoint")
        url: str = answer.json()["url"]
        return url

    def engine_pids(self) -> list[int]:
        """The process ids of launchers, as the state file has them."""
        state = json.loads((self.path.parent / "neuron-state/state.json").read_bytes())
        return [process["pid"] for process in state["processes"].values()]

    async def engine_processes(self) -> list[int]:
        """The process ids below the launchers, once the state file, which is written in a thread, has those."""
        await until(lambda: [pid for launcher in self.engine_pids() for pid in descendants(launcher)])
        return [pid for launcher in self.engine_pids() for pid in descendants(launcher)]

    async def kill_engine(self) -> None:
        """Kill every engine; the launchers live."""
        for pid in await self.engine_processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def running_agent(
    folder: Path, text: str, *, token: str | None = None, verify: ssl.SSLContext | bool = True
) -> AsyncIterator[RunningAgent]:
    """Start a neuron with this configuration; its engines are gone at the end."""
    path = folder / "neuron.toml"
    listen = "" if "listen" in text else '[api]\nlisten = "127.0.0.1:0"\n'
    path.write_text(listen + text)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    server = NeuronServer(path, path.read_bytes(), os.environ.copy(), CpuDevice("for a test"))
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(partial(server.serve, stop=stop.wait))
        url = url.replace("0.0.0.0", "127.0.0.1")
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=SAFETY_NET_S, trust_env=False, verify=verify
        ) as client:
            yield RunningAgent(url, client, path, stop)
        stop.set()
