"""Counts the function calls of the gateway per request and per streamed chunk, with cProfile. The same in every run.

    PYTHONPATH=.:tests .venv/bin/python -m fakes.call_counts             a table, and the functions called most
    PYTHONPATH=.:tests .venv/bin/python -m fakes.call_counts --json      every function, for the test
    PYTHONPATH=.:tests .venv/bin/python -m fakes.call_counts --write     the same into call_counts.json, with which the
                                                                         test compares to say what has grown
    PYTHONPATH=.:tests .venv/bin/python -m fakes.call_counts --run plain 500     that many requests without a profiler,
                                                                                 for `valgrind --tool=callgrind` or perf

The whole data plane runs in one process: server, pump, proxy, metrics, access log (to /dev/null), pool. Clients and
neurons are the other ends of socket pairs. They are no tasks: they act only when Trio has nothing left to run, so
neither their calls nor their timing show in the counts.

`chunk` is counted with `STREAMS` streams of which each gets a chunk at the same time, as under load; `lone_chunk` with
one stream, where the wake-up of the pump's task serves a single chunk. `new_stream` is a stream of one chunk over two
new TCP connections, the client's and the neuron's, when `STREAMS` clients connect at the same time.

A call is what cProfile counts: each call of a Python function or a built-in, and each time a coroutine is resumed.
"""

# ruff: noqa: T201 - a program that prints

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import re
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import structlog
import trio
from fakes.in_memory import InMemoryGateway
from fakes.known_keys import KnownKeys

from gateway.access.keys.key import Key
from gateway.access.limits.limit import Limits
from gateway.access.limits.limiter import Limiter
from gateway.config.settings import LogSettings
from gateway.http.epoll.pump import Pump
from gateway.http.pool import Origin, open_stream
from gateway.http.server import HttpServer, ServerLimits
from gateway.http.tcp.known_addresses import KnownAddresses
from gateway.http.tcp.plain_stream import PlainStream
from gateway.server.public_app import PublicApp
from gateway.telemetry import log

KEYS = KnownKeys(Key("k1", "alice", limits=Limits(rpm=10**9, tpm=10**12, concurrency=10**6)))
"""The client of `keyed` has all three limits."""

WARM_UP, REQUESTS = 20, 100
CHUNKS_FEW, CHUNKS_MANY = 10, 60
STREAMS = 20
STORED = Path(__file__).with_suffix(".json")

QUESTION = b'{"model":"helexa/small","messages":[{"role":"user","content":"What is the capital of Georgia?"}]%b}'
ANSWER = (
    b'{"id":"chatcmpl-123","object":"chat.completion","created":1694268190,"model":"Qwen/Qwen3-1.7B","choices":[{"index'
    b'":0,"message":{"role":"assistant","content":"The capital of Georgia is Tbilisi."},"finish_reason":"stop"}],"usage'
    b'":{"prompt_tokens":14,"completion_tokens":8,"total_tokens":22}}'
)
DELTA = (
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"Qwen/Qwen3-1.7B",'
    b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Peers(trio.abc.Instrument):
    """Clients, and a neuron's connections. They take their next step whenever every task of the gateway is blocked."""

    def __init__(self, profile: cProfile.Profile | None = None, clients: int = 1) -> None:
        pairs = [socket.socketpair() for _ in range(clients)]
        self.clients = [ours for ours, _ in pairs]
        self.server_sides = [theirs for _, theirs in pairs]
        self.neurons: list[socket.socket] = []
        self.done = trio.Event()
        self.listening: dict[str, socket.socket] = {}  # of gateway and neuron, for `new_stream`
        self._known = KnownAddresses()
        self._profile = profile
        self._steps: Generator[None] = iter(())

    def begin(self, kind: str, requests: int, chunks: int = CHUNKS_FEW) -> None:
        """Play this many requests from now on; `done` is set after the last."""
        self.done = trio.Event()
        self._steps = self._play(kind, requests, chunks)

    def before_io_wait(self, timeout: float) -> None:
        """Part of Trio's `Instrument`: called before each wait for I/O."""
        if timeout <= 0 or (self.listening and self._is_input_ready()):
            return
        if self._profile is not None:
            self._profile.disable()
        if next(self._steps, "over") == "over":
            trio.lowlevel.current_trio_token().run_sync_soon(self.done.set)  # wakes the loop, which is about to wait
        elif self._profile is not None:
            self._profile.enable()

    def listen(self) -> trio.SocketListener:
        """Play streams over new connections, to this listener of the gateway."""
        for side in ("gateway", "neuron"):
            self.listening[side] = socket.create_server(("127.0.0.1", 0), backlog=STREAMS)
        return trio.SocketListener(trio.socket.from_stdlib_socket(self.listening["gateway"]))

    async def connect(self, _: object) -> trio.abc.Stream:
        """A connection of the pool."""
        if self.listening:
            return await open_stream(Origin("http", *self.listening["neuron"].getsockname(), b""), self._known)
        await trio.lowlevel.checkpoint()
        ours, theirs = socket.socketpair()
        self.neurons.append(theirs)
        return PlainStream(ours)

    def _play(self, kind: str, requests: int, chunks: int) -> Generator[None]:
        question = QUESTION % (b',"stream":true' if kind.endswith("stream") else b"")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        if kind == "keyed":
            head += KEYS.bearer("alice").encode() + b"\r\n"
        for _ in range(requests):
            if self.listening:
                self._connect_anew()
            for client in self.clients:
                client.sendall(head + b"content-length: %d\r\n\r\n%b" % (len(question), question))
            yield
            if self.listening:
                self.neurons = [self.listening["neuron"].accept()[0] for _ in self.clients]
            assert len(self.neurons) == len(self.clients), "the gateway has not connected to the neuron"
            for neuron in self.neurons:
                assert b'"Qwen/Qwen3-1.7B"' in neuron.recv(65536)
            yield from self._stream(chunks) if kind.endswith("stream") else self._answer()

    def _is_input_ready(self) -> bool:
        """Whether Trio is about to wait for what has come already, as on a connection accepted just now."""
        poll = select.poll()
        poll.register(trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _connect_anew(self) -> None:
        for connection in [*self.clients, *self.neurons]:
            connection.close()
        address = self.listening["gateway"].getsockname()
        self.clients = [socket.create_connection(address) for _ in self.clients]

    def _send(self, data: bytes) -> None:
        for neuron in self.neurons:
            neuron.sendall(data)

    def _receive(self) -> Iterator[bytes]:
        return (client.recv(65536) for client in self.clients)

    def _answer(self) -> Generator[None]:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
        self._send(head + ANSWER)
        yield
        for received in self._receive():
            assert received.startswith(b"HTTP/1.1 200 OK"), received
            assert received.endswith(ANSWER), received

    def _stream(self, chunks: int) -> Generator[None]:
        self._send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            + _chunk(DELTA % (b'{"role":"assistant","content":""}', b"null"))
        )
        yield
        for number in range(chunks):
            self._send(_chunk(DELTA % (b'{"content":" tok%04d"}' % number, b"null")))
            yield
            for received in self._receive():
                assert b" tok%04d" % number in received, received
        self._send(_chunk(DELTA % (b"{}", b'"stop"')) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        yield
        for received in self._receive():
            assert received.endswith(b"0\r\n\r\n"), received


class _Gateway(InMemoryGateway):
    """As the other, with sockets in place of memory streams, which have other functions than production."""

    def __init__(self, nursery: trio.Nursery, peers: Peers, *, keyed: bool = False) -> None:
        keys = {"access": KEYS.access, "limiter": Limiter(clock=time.perf_counter)} if keyed else {}
        super().__init__(nursery, {"neuron": peers}, **keys)
        self._peers = peers

    async def _connect(self, origin: object) -> trio.abc.Stream:
        return await self._peers.connect(origin)


async def _no_routes(*_: object) -> None:
    raise AssertionError


async def play(kind: str, requests: int, chunks: int, profile: cProfile.Profile | None, clients: int = 1) -> None:
    """Serve so many requests of each client, of which the profile sees none of the first."""
    peers = Peers(profile, clients)
    async with trio.open_nursery() as nursery:
        gateway = _Gateway(nursery, peers, keyed=kind == "keyed")
        app = PublicApp(gateway.inference, _no_routes, gateway.settings)
        pump = Pump()
        server = HttpServer(app, limits=ServerLimits(), log=structlog.get_logger(), pump=pump)
        if kind == "new_stream":
            await nursery.start(server.serve, [peers.listen()])
        else:
            await nursery.start(server.watch_connections)
            await nursery.start(pump.run)
        await nursery.start(gateway.upstream.timer.run)
        gateway.inference.silence._running = True  # its task would disturb the count
        for writer in log._writers:
            writer.batches = True  # as `log.write_in_batches` does, whose task would disturb the count
        for side in peers.server_sides:
            nursery.start_soon(server.serve_stream, PlainStream(side))
        trio.lowlevel.add_instrument(peers)
        peers._profile = None
        peers.begin(kind, WARM_UP, chunks)
        await peers.done.wait()
        gc.collect()
        gc.freeze()
        gc.disable()
        peers._profile = profile
        peers.begin(kind, requests, chunks)
        if profile is not None:
            profile.enable()
        await peers.done.wait()
        trio.lowlevel.remove_instrument(peers)
        nursery.cancel_scope.cancel()


def calls(kind: str, chunks: int = CHUNKS_FEW, *, clients: int = 1, requests: int = REQUESTS) -> Counter[str]:
    """The calls of each function during so many requests of each client, by its name and file."""
    profile = cProfile.Profile()
    trio.run(play, kind, requests, chunks, profile, clients)
    found: Counter[str] = Counter()
    for entry in profile.getstats():
        name = name_of(entry.code)
        if name is not None:
            found[name] += entry.callcount
    return found


def name_of(code: object) -> str | None:
    """Name and file of a function; None for those of this measurement."""
    if isinstance(code, str):
        return None if "Profiler" in code else re.sub(r" at 0x[0-9a-f]+", "", code)
    path = Path(code.co_filename)
    if path.name in {"_instrumentation.py", Path(__file__).name}:
        return None
    folders = [folder for folder in ("gateway", "catalogue", "site-packages") if folder in path.parts]
    file = "/".join(path.parts[path.parts.index(folders[0]) :]) if folders else path.name
    return f"{code.co_qualname} ({file.removeprefix('site-packages/')})"


def per_request(kind: str) -> dict[str, float]:
    """Calls of each function per request; a stream has `CHUNKS_FEW` chunks."""
    return {name: round(count / REQUESTS, 1) for name, count in calls(kind).items() if count >= REQUESTS // 10}


def per_new_stream() -> dict[str, float]:
    """Calls of each function per stream of one chunk over new connections."""
    found = calls("new_stream", 1, clients=STREAMS, requests=REQUESTS // STREAMS)
    return {name: round(count / REQUESTS, 1) for name, count in found.items() if count >= REQUESTS // 10}


def per_chunk(streams: int) -> dict[str, float]:
    """Calls of each function per chunk of a stream, while so many streams run: what more chunks cost."""
    requests = max(10, REQUESTS // streams)
    few = calls("stream", CHUNKS_FEW, clients=streams, requests=requests)
    many = calls("stream", CHUNKS_MANY, clients=streams, requests=requests)
    chunks = requests * (CHUNKS_MANY - CHUNKS_FEW) * streams
    grown = {name: round((count - few[name]) / chunks, 2) for name, count in many.items()}
    return {name: count for name, count in grown.items() if count >= 0.05}


def measured() -> dict[str, dict[str, float]]:
    """All tables."""
    return {
        "plain": per_request("plain"),
        "keyed": per_request("keyed"),
        "stream": per_request("stream"),
        "new_stream": per_new_stream(),
        "chunk": per_chunk(STREAMS),
        "lone_chunk": per_chunk(1),
    }


def _group(name: str) -> str:
    if "(" not in name or name.startswith("<"):
        return "built-in functions"
    return re.sub(r".*\((gateway/\w+|catalogue|\w+).*", r"\1", name)


def _print(tables: dict[str, dict[str, float]], top: int) -> None:
    for kind, table in tables.items():
        print(f"{kind}: {sum(table.values()):.0f} calls")
        groups: Counter[str] = Counter()
        for name, count in table.items():
            groups[_group(name)] += count
        print("   ", ", ".join(f"{group} {count:.0f}" for group, count in groups.most_common()))
        for name, count in sorted(table.items(), key=lambda item: -item[1])[:top]:
            print(f"    {count:7.2f} {name}")


def log_to_nowhere() -> None:
    """Configure the log as in production, but into /dev/null."""
    stderr = sys.stderr
    sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)  # the log keeps the descriptor
    log.configure(LogSettings(format="json"))
    sys.stderr = stderr


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print every function as JSON")
    parser.add_argument("--write", action="store_true", help=f"store every function in {STORED.name}")
    parser.add_argument("--top", type=int, default=40, help="how many functions to print")
    parser.add_argument("--run", nargs=2, metavar=("KIND", "REQUESTS"), help="run requests without a profiler")
    parser.add_argument("--chunks", type=int, default=CHUNKS_FEW, help="of each stream, with --run")
    options = parser.parse_args()
    log_to_nowhere()
    if options.run:
        clients = STREAMS if options.run[0] == "new_stream" else 1
        trio.run(play, options.run[0], int(options.run[1]) // clients, options.chunks, None, clients)
        return
    tables = measured()
    if options.write:
        text = json.dumps({kind: dict(sorted(table.items())) for kind, table in tables.items()}, indent=0)
        STORED.write_text(text + "\n", encoding="utf-8")
    elif options.json:
        print(json.dumps(tables))
    else:
        _print(tables, options.top)


if __name__ == "__main__":
    main()
