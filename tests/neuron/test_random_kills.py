"""`kill -9` of the neuron and of engines at random moments under load: nothing is left, and the next start is right.

CORTEX_SOAK_KILLS sets the number of kills, CORTEX_SOAK_SEED the moments. The engines are `fake_engine.py`, one of them
with a child in a session of its own; there is exactly one port for each model, so a port that is not given back shows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import msgspec
import pytest
from fakes.agents_host import COMMAND, model
from fakes.patience import SAFETY_NET_S
from fakes.process import a_port_of_our_own, environment

from neuron.agent.process.survivors import MARK, start_time
from neuron.agent.supervision.state_file import _State

KILLS = int(os.environ.get("CORTEX_SOAK_KILLS", "20"))
SEED = int(os.environ.get("CORTEX_SOAK_SEED", "1"))
MODELS = ("m/preloaded", "m/plain", "m/escaping")
WORKERS = 3
LONGEST_LIFE_S = 2.0  # of the neuron before a kill: with its start, so that some kills come before it listens


class Soak:
    """The neuron's process, and the load on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = random.Random(SEED)  # noqa: S311 - nothing secret
        self.mark = f"{MARK}={folder / 'neuron-state'}".encode()
        self.url = f"http://127.0.0.1:{a_port_of_our_own()}"
        self.ports = sorted(a_port_of_our_own() for _ in MODELS)
        self.answers = 0
        self.killed_launcher = False
        self.process: subprocess.Popen[bytes] | None = None
        self.log = (folder / "neuron.log").open("wb")
        engines = "".join(
            f'[engines.e{number}]\nkind = "llamacpp"\ncommand = {json.dumps(COMMAND)}\nports = "{port}-{port}"\n'
            "stop_seconds = 1\nmax_restarts = 1000\nwindow_seconds = 0.5\n"
            for number, port in enumerate(self.ports)
        )
        tables = [
            model(MODELS[0], "--token-seconds", "0.02", preload=True),
            model(MODELS[1], "--token-seconds", "0.02", "--ready-after", "0.3"),
            model(MODELS[2], "--token-seconds", "0.02", "--escaped-child"),
        ]
        models = "".join(text.replace('"fake"', f'"e{number}"') for number, text in enumerate(tables))
        listen = self.url.removeprefix("http://")
        (folder / "neuron.toml").write_text(f'[api]\nlisten = "{listen}"\n{engines}{models}')

    def start(self) -> None:
        command = [sys.executable, "-m", "gateway.cli", "neuron", "serve", "-c", str(self.folder / "neuron.toml")]
        self.process = subprocess.Popen(command, stderr=self.log, env=environment())

    def kill_neuron(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, "the neuron has ended by itself"
        self.process.kill()
        self.process.wait()
        if not self.killed_launcher:
            wait(lambda: not self.marked(), "engines survive their neuron")
        # Where the launcher was killed just before, nothing is left that could end a child in another session: the
        # next start does that.
        survivors = set(self.marked())
        self.check_state_file()
        self.start()
        wait(lambda: not survivors & set(self.marked()), "the next start does not end what has survived")
        self.killed_launcher = False

    def kill_engine(self) -> None:
        """The launcher, the engine, or the child that has a session of its own."""
        pids = self.marked()
        if pids:
            victim = self.random.choice(pids)
            with suppress(OSError):
                self.killed_launcher |= b"launcher.py" in Path(f"/proc/{victim}/cmdline").read_bytes()
                os.kill(victim, signal.SIGKILL)

    def marked(self) -> list[int]:
        """Every process of this neuron's engines."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and self.mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return [pid for pid in found if start_time(pid) is not None]

    def check_state_file(self) -> None:
        with suppress(FileNotFoundError):
            msgspec.json.decode((self.folder / "neuron-state/state.json").read_bytes(), type=_State)

    def check_ports(self) -> None:
        """No two engines have one port. A launcher has its engine's command line behind its own."""
        used = []
        for pid in self.marked():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "--port" in words and not any(word.endswith("launcher.py") for word in words):
                    used.append(words[words.index("--port") + 1])
        assert len(used) == len(set(used)), used

    # The load .........................................................................................................

    def work(self, stop: threading.Event, seed: int) -> None:
        """Load, unload and ask at random, whatever becomes of it."""
        choose = random.Random(seed)  # noqa: S311 - as above
        with httpx.Client(base_url=self.url, timeout=SAFETY_NET_S, trust_env=False) as client:
            while not stop.is_set():
                model_id, kind = choose.choice(MODELS), choose.random()
                try:
                    if kind < 0.25:
                        client.post("/models/load", json={"model_id": model_id})
                    elif kind < 0.35:
                        client.post("/models/unload", json={"model_id": model_id, "force": choose.random() < 0.5})
                    else:
                        self.ask(client, model_id, stream=choose.random() < 0.7)
                except httpx.HTTPError:
                    time.sleep(0.05)

    def ask(self, client: httpx.Client, model_id: str, *, stream: bool = False) -> bool:
        body = {"model": model_id, "messages": [], "max_tokens": 10, "stream": stream}
        answered = client.post("/v1/chat/completions", json=body).status_code == 200
        self.answers += answered
        return answered

    @contextmanager
    def load(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self.work, args=(stop, SEED + number)) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def serves_all(self) -> bool:
        """Whether every model can be loaded and answers: each has its one port."""
        with httpx.Client(base_url=self.url, timeout=SAFETY_NET_S, trust_env=False) as client:
            for model_id in MODELS:
                loaded = client.post("/models/load", json={"model_id": model_id})
                if loaded.status_code != 200 or not self.ask(client, model_id):
                    return False
        return True


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SAFETY_NET_S
    while True:
        with suppress(httpx.HTTPError):
            if condition():
                return
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_behind(tmp_path: Path) -> None:
    soak = Soak(tmp_path)
    soak.start()
    kills = {"neuron": 0, "engine": 0}
    try:
        with soak.load():
            for number in range(KILLS):
                time.sleep(soak.random.uniform(0, LONGEST_LIFE_S))
                soak.check_ports()
                victim = "neuron" if soak.random.random() < 0.4 else "engine"
                kills[victim] += 1
                (soak.kill_neuron if victim == "neuron" else soak.kill_engine)()
                if number % 4 == 3:
                    wait(soak.serves_all, "the models do not serve under load")
        wait(soak.serves_all, "the models do not serve afterwards")
        soak.check_ports()
        assert soak.process is not None
        soak.process.terminate()
        assert soak.process.wait(SAFETY_NET_S) == 0
    finally:
        if soak.process is not None and soak.process.poll() is None:
            soak.process.kill()
            soak.process.wait()
        soak.log.close()
    assert soak.marked() == []
    state = msgspec.json.decode((tmp_path / "neuron-state/state.json").read_bytes(), type=_State)
    assert state.processes == {}
    assert soak.answers > 0
    log = (tmp_path / "neuron.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
    print(f"{kills}, {soak.answers} answers")  # noqa: T201 - shown by `pytest -s`
