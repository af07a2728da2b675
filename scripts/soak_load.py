"""What scripts/soak measures, and with what: a gateway, its own figures, traffic, and pages that only listen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import trio
from running_daemons import free_port, running, wait_for

from gateway.cli.demo.files import MODELS_TOML
from neuron.simulated.fleet import demo_fleet

__all__ = ["Listeners", "Site", "Traffic", "demo_running", "gateway_figures", "gateway_running", "in_a_thread"]

RUNNING_LIMIT = 200
"""Requests at the same time. If the gateway is slower than the traffic, the rate falls; memory does not fill up."""
PROMPT = "Write {} words about the weather"
KEY = "ctx_soak_" + "0" * 43
GATEWAY_TOML = """
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:{api}"
metrics_listen = "127.0.0.1:{admin}"
[log]
level = "warning"
"""


@dataclass(frozen=True)
class Site:
    """A gateway: the addresses of its API and of its console, and a key that has the verbs read and infer."""

    api: str
    admin: str
    key: str


@contextmanager
def demo_running(folder: Path, speed: float) -> Iterator[Site]:
    """`cortex demo` while the block runs. The simulated neurons are in the gateway's process."""
    with _process("gateway.cli", "demo", "--port", "0", "--dir", str(folder), "--speed", str(speed)) as output:
        text = _until(output, "Ctrl-C")
        console = re.search(r"in a browser: (\S+)/ \(key: (\S+)\)", text)
        api = re.search(r"cortex demo: (\S+)", text)
        if api is None or console is None:
            raise SystemExit(f"this is not what the demo prints: {text}")
        yield Site(api[1], *console.groups())


@contextmanager
def gateway_running(folder: Path, speed: float) -> Iterator[Site]:
    """`cortex serve` in front of the demo's neurons, which are another process, while the block runs."""
    api, admin = free_port(0), free_port(0)
    with _process("soak_load", str(speed)) as output:
        config = GATEWAY_TOML.format(api=api, admin=admin) + _until(output, "# end")
        (folder / "cortex.toml").write_text(config, encoding="utf-8")
        (folder / "models.toml").write_text(MODELS_TOML, encoding="utf-8")
        with running(folder, "serve", CORTEX_BOOTSTRAP_KEY=KEY):
            site = Site(f"http://127.0.0.1:{api}", f"http://127.0.0.1:{admin}", KEY)
            wait_for(f"{site.api}/ready")
            yield site


def _until(output: Iterator[str], end: str) -> str:
    """Every line up to the one that has `end`."""
    text = ""
    for line in output:
        text += line
        if end in line:
            return text
    raise SystemExit(f"ended before it printed {end!r}: {text}")


@contextmanager
def _process(module: str, *arguments: str, **env: str) -> Iterator[Iterator[str]]:
    """A Python module in a session of its own, so that Ctrl-C ends it through this script only; yields its output."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parent), **env}
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        yield iter(process.stdout or ())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def gateway_figures(client: httpx.Client) -> dict[str, float]:
    """The metrics without labels, by name, as the gateway reports them. `client` has the admin port as its base."""
    text = client.get("/metrics").raise_for_status().text
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


@contextmanager
def in_a_thread(work: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """Trio runs `work` while the block runs, and cancels it at the end."""
    scope, tokens, started = trio.CancelScope(), list[trio.lowlevel.TrioToken](), threading.Event()

    async def cancellable() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        started.set()
        with scope:
            await work()

    thread = threading.Thread(target=trio.run, args=(cancellable,))
    thread.start()
    started.wait()
    try:
        yield
    finally:
        with suppress(trio.RunFinishedError):  # there was nothing to do
            tokens[0].run_sync_soon(scope.cancel)
        thread.join()


@dataclass
class Traffic:
    """Requests at a steady rate; half of them stream.

    Args:
        site: Where they go.
        models: Models or aliases; each request asks one of them by chance.
        rate: Requests per second.
        words: The longest answer that a request asks for.
    """

    site: Site
    models: list[str]
    rate: float
    words: int
    outcomes: Counter[int | str] = field(default_factory=Counter)
    """Statuses, and names of errors."""

    @property
    def answered(self) -> int:
        """Requests that have ended."""
        return self.outcomes.total()

    async def send(self) -> None:
        """Until cancelled; what runs then is broken off."""
        idle: list[trio.SocketStream] = []
        places = trio.CapacityLimiter(RUNNING_LIMIT)
        async with trio.open_nursery() as nursery:
            begun, sent = trio.current_time(), 0
            while self.rate:
                await trio.sleep_until(begun + sent / self.rate)
                sent += 1
                await places.acquire_on_behalf_of(sent)
                nursery.start_soon(self._ask, idle, places, sent)

    async def _ask(self, idle: list[trio.SocketStream], places: trio.CapacityLimiter, number: int) -> None:
        """By hand, because HTTP clients for Python need more CPU than the gateway does."""
        messages = [{"role": "user", "content": PROMPT.format(1 + number % self.words)}]
        model = self.models[number % len(self.models)]
        body = json.dumps({"model": model, "stream": number % 2 == 0, "messages": messages}).encode()
        try:
            stream = idle.pop() if idle else await _connected(self.site.api)
            await stream.send_all(_request("POST /v1/chat/completions", self.site.api, self.site.key, body))
            self.outcomes[await _receive_answer(stream)] += 1
            idle.append(stream)
        except (OSError, trio.BrokenResourceError, trio.EndOfChannel) as error:
            self.outcomes[type(error).__name__] += 1
        finally:
            places.release_on_behalf_of(number)


async def _connected(url: str) -> trio.SocketStream:
    address = urlsplit(url)
    return await trio.open_tcp_stream(str(address.hostname), address.port or 80)


def _request(line: str, url: str, key: str, body: bytes = b"") -> bytes:
    head = f"{line} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def _receive_answer(stream: trio.SocketStream) -> int:
    """Read one answer, whose body has a length or is chunked, and return its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _received(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    length = 0 if found is None else int(found[1])
    while len(body) < length or (found is None and not body.endswith(b"0\r\n\r\n")):
        data = await _received(stream)
        body = body[-5:] + data if found is None else body + data
    return int(head.split(b" ", 2)[1])


async def _received(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some()
    if not data:
        raise trio.EndOfChannel
    return bytes(data)


@dataclass
class Listeners:
    """Connections that follow `/admin/events` as pages do, and read it without looking at it."""

    site: Site
    count: int
    read_bytes: int = 0

    async def listen(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self.count):
                nursery.start_soon(self._follow)

    async def _follow(self) -> None:
        async with await _connected(self.site.admin) as stream:
            await stream.send_all(_request("GET /admin/events", self.site.admin, self.site.key))
            async for data in stream:
                self.read_bytes += len(data)
        raise RuntimeError("the gateway ended a stream of /admin/events")


async def _serve_neurons(speed: float) -> None:
    """Serve the demo's neurons and print their tables of `cortex.toml`, for `gateway_running`."""
    async with trio.open_nursery() as nursery:
        for neuron in demo_fleet(speed):
            endpoint = await nursery.start(neuron.serve)
            print(f'[[neurons]]\nname = "{neuron.name}"\nendpoint = "{endpoint}"')
        print("# end")


if __name__ == "__main__":
    trio.run(_serve_neurons, float(sys.argv[1]))
