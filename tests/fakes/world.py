"""A whole gateway in front of simulated neurons, all in memory: no socket, so an autojump clock gives exact times.

`World` connects the product's own parts (fleet, poller, scheduler, proxy) as `Gateway` does; only the network and the
watched catalogue file are replaced. `ask` is a client. Tests that need real sockets or signals do not use it.
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
import httpx
import trio
from fakes.fleets import a_catalogue, assert_idle
from trio.testing import memory_stream_pair

from catalogue.models import ModelProfile
from gateway.access.admission import Access
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.warm_swap import WarmSwaps
from gateway.aliases.warm_up import ModelWarmer
from gateway.config.settings import NeuronSettings, Settings
from gateway.fleet.control.neuron_client import NeuronClient
from gateway.fleet.control.poller import Poller
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.readiness import FleetReadiness
from gateway.fleet.routing.queue import AdmissionQueues
from gateway.fleet.state import Fleet
from gateway.http.pool import Origin, UpstreamPool
from gateway.proxy.app import InferenceApp
from gateway.proxy.context import ProxyContext
from gateway.proxy.hedging.hedge_policy import HedgePolicy
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.request_log import RequestLog
from neuron.simulated import PROBE, SimDevice, SimModel, SimNeuron

CHAT = "/v1/chat/completions"


def a_sim_model(model_id: str, vram_mb: int = 8000, *, load_s: float = 5.0, **more: Any) -> SimModel:
    """A model that answers the probe in 1.02 s: 1 s of silence and two tokens of 10 ms."""
    pace = {"overhead_s": 1.0, "prefill_tok_s": 1e9, "decode_tok_s": 100.0, "max_in_flight": 200}
    return SimModel(model_id, vram_mb, load_s, **pace | more)


def a_sim(name: str, *models: SimModel, vram_mb: tuple[int, ...] = (10_000,), loaded: tuple[str, ...] = ()):
    """A simulated neuron with these models on disk."""
    devices = [SimDevice(index, f"GPU {index}", size) for index, size in enumerate(vram_mb)]
    return SimNeuron(name, devices, models, loaded=loaded)


def profile_of(model: SimModel, **more: Any) -> ModelProfile:
    """The catalogue's entry for a simulated model."""
    return ModelProfile(model.id, model.harness, **{"vram_mb": model.vram_mb} | more)


class Host:
    """A simulated neuron on a network of memory streams; it can be killed and restarted."""

    def __init__(self, sim: SimNeuron, nursery: trio.Nursery) -> None:
        self.sim = sim
        self.up = True
        self._nursery = nursery
        self._connections: set[trio.CancelScope] = set()

    async def connect(self) -> trio.abc.Stream:
        """A connection to it. Raises OSError if it is dead."""
        await trio.lowlevel.checkpoint()
        if not self.up:
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self._serve, theirs)
        return ours

    def kill(self) -> None:
        """As `kill -9`: every connection breaks, and new ones are refused."""
        self.up = False
        for scope in self._connections:
            scope.cancel()

    def restart(self) -> None:
        """It listens again, with the models of its start."""
        self.sim.restart()
        self.up = True

    async def _serve(self, stream: trio.abc.Stream) -> None:
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            await self.sim.serve_stream(stream)
        self._connections.discard(scope)


class MemoryTransport(httpx.AsyncBaseTransport):
    """httpx over a host's memory streams, one connection per call; a cancelled call breaks its connection."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        try:
            stream = await self._host.connect()
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        try:
            return await _exchange(stream, request, body)
        except trio.BrokenResourceError as error:
            raise httpx.ReadError("connection reset") from error
        finally:
            await trio.aclose_forcefully(stream)


async def _exchange(stream: trio.abc.Stream, request: httpx.Request, body: bytes) -> httpx.Response:
    http = h11.Connection(h11.CLIENT)
    head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
    events = [head, h11.Data(data=body), h11.EndOfMessage()]
    await stream.send_all(b"".join(http.send(event) or b"" for event in events))
    status, pieces = 0, []
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some())
            if not data:
                raise httpx.RemoteProtocolError("closed without a whole answer")
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return httpx.Response(status, stream=httpx.ByteStream(b"".join(pieces)))


@dataclass
class World:
    """The parts of a running gateway, for requests and inspection."""

    hosts: dict[str, Host]
    catalogue_store: CatalogueStore
    settings: Settings
    fleet: Fleet
    poller: Poller
    upstream: UpstreamPool
    scheduler: LoadScheduler
    admission: AdmissionQueues
    request_log: RequestLog
    inference: InferenceApp
    swaps: WarmSwaps
    metrics: Metrics

    @property
    def sims(self) -> list[SimNeuron]:
        """The simulated neurons."""
        return [host.sim for host in self.hosts.values()]

    def load_calls(self, model: str | None = None) -> list[str]:
        """The neurons on which loads were begun, in order of time."""
        begun = [
            (entry.at, sim.name)
            for sim in self.sims
            for entry in sim.loads
            if entry.action == "load" and entry.outcome == "begun" and model in (None, entry.model)
        ]
        return [name for _, name in sorted(begun)]

    def violations(self) -> list[str]:
        """The gateway's violations of the neuron API, as the neurons recorded them."""
        return [breach for sim in self.sims for breach in sim.violations]

    async def ask(self, model: str, **how: Any) -> Answered:
        """See `ask`."""
        return await ask(self.inference, model, **how)


@asynccontextmanager
async def a_world(
    *sims: SimNeuron,
    profiles: tuple[ModelProfile, ...] = (),
    settings: Settings | None = None,
    access: Access | None = None,
) -> AsyncIterator[World]:
    """A running gateway in front of these neurons, each polled once; at the end no lease may be left.

    Its catalogue_store has no file: a test puts a catalogue in force by `world.catalogue_store.accept(catalogue)`.
    """
    async with trio.open_nursery() as nursery:
        hosts = {sim.name: Host(sim, nursery) for sim in sims}
        world = _build(hosts, profiles, settings or Settings(), access or Access())
        await nursery.start(world.scheduler.run)
        await nursery.start(world.swaps.run)
        await nursery.start(world.poller.run)
        nursery.start_soon(_sweep, world.upstream)
        yield world
        nursery.cancel_scope.cancel()
    assert_idle(world.fleet)


async def _sweep(upstream: UpstreamPool) -> None:
    await upstream.run()


def _build(hosts: dict[str, Host], profiles: tuple[ModelProfile, ...], settings: Settings, access: Access) -> World:
    async def connect(origin: Origin) -> trio.abc.Stream:
        return await hosts[origin.host].connect()

    metrics = Metrics()
    endpoints = {name: f"http://{name}:13131" for name in hosts}
    fleet = Fleet([NeuronSettings(name, url) for name, url in endpoints.items()], misses=settings.poll.misses)
    catalogue_store = CatalogueStore(None, readiness=FleetReadiness(fleet))
    catalogue_store.accept(a_catalogue(*profiles))
    neurons = {name: NeuronClient(url, transport=MemoryTransport(hosts[name])) for name, url in endpoints.items()}
    poller = Poller(fleet, neurons, settings.poll)
    upstream = UpstreamPool(connect=connect)
    scheduler = LoadScheduler(
        fleet,
        catalogue=catalogue_store,
        neurons=neurons,
        settings=settings,
        count_cold_start=metrics.count_cold_start,
        count_eviction=metrics.count_eviction,
        poll_soon=poller.poll_soon,
    )
    admission = AdmissionQueues(fleet, catalogue=catalogue_store, limit=settings.limits.queue)
    request_log = RequestLog(metrics, log_requests=False)
    inference = InferenceApp(
        ProxyContext(
            settings=settings,
            catalogue=catalogue_store,
            fleet=fleet,
            upstream=upstream,
            admission=admission,
            scheduler=scheduler,
            request_log=request_log,
            poll_soon=poller.poll_soon,
            hedge_policy=HedgePolicy(metrics),
            secret_key=bytes(32),
            access=access,
        )
    )
    warmer = ModelWarmer(
        catalogue_store,
        fleet=fleet,
        wait_until_routable=scheduler.wait_until_routable,
        upstream=upstream,
        deadlines=settings.deadlines,
        poll_soon=poller.poll_soon,
    )
    swaps = WarmSwaps(
        catalogue_store, warmer, fleet=fleet, warm_deadline_s=settings.deadlines.load_seconds, metrics=metrics
    )
    return World(
        hosts,
        catalogue_store,
        settings,
        fleet,
        poller,
        upstream,
        scheduler,
        admission,
        request_log,
        inference,
        swaps,
        metrics,
    )


# A client .............................................................................................................


@dataclass
class Answered:
    """One client's result. `status` 0: nothing. `pieces` are body bytes with the time of their arrival."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    whole: bool = False
    began_at: float | None = None
    ended_at: float = 0.0

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(piece for _, piece in self.pieces)

    @property
    def node(self) -> str | None:
        """The neuron that answered."""
        return self.headers.get("x-cortex-node")

    @property
    def events(self) -> list[Any]:
        """The data of each event of a stream, decoded; `[DONE]` as it is."""
        lines = self.body.decode().split("\n\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]

    @property
    def is_stream(self) -> bool:
        """Whether it came as events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Every error in it: the envelope's, or those of a stream's events."""
        payloads = self.events if self.is_stream else [json.loads(self.body)] if self.body else []
        return [one["error"] for one in payloads if isinstance(one, dict) and "error" in one]

    @property
    def text(self) -> str:
        """The model's text."""
        if self.is_stream:
            chunks = [one for one in self.events if isinstance(one, dict) and one.get("choices")]
            return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        answer = json.loads(self.body)
        return answer["choices"][0]["message"]["content"] if "choices" in answer else ""

    @property
    def first_token_at(self) -> float | None:
        """The time of the first bytes with content."""
        return next((at for at, piece in self.pieces if b'"content":"' in piece.replace(b'"content":""', b"")), None)


async def ask(
    app: InferenceApp,
    model: str,
    *,
    stream: bool = False,
    content: str = PROBE,
    leave_after_s: float | None = None,
    path: str = CHAT,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Answered:
    """Send a request over ASGI and return everything that arrived; a client that disconnects returns what it had by
    then.
    """
    question = {"model": model, "messages": [{"role": "user", "content": content}]}
    body = json.dumps(question | ({"stream": True} if stream else {})).encode()
    answered = Answered()
    left = trio.Event()
    async with trio.open_nursery() as nursery:
        if leave_after_s is not None:
            nursery.start_soon(_leave, left, leave_after_s)
        inbox = [{"type": "http.request", "body": body, "more_body": False}]
        await app(_scope(path, headers), partial(_receive, inbox, left), partial(_take, answered, left))
        nursery.cancel_scope.cancel()
    answered.ended_at = trio.current_time()
    return answered


def _scope(path: str, headers: Sequence[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
    }


async def _leave(left: trio.Event, after_s: float) -> None:
    await trio.sleep(after_s)
    left.set()


async def _receive(inbox: list[dict[str, Any]], left: trio.Event) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    if inbox:
        return inbox.pop(0)
    await left.wait()
    return {"type": "http.disconnect"}


async def _take(answered: Answered, left: trio.Event, message: dict[str, Any]) -> None:
    await trio.lowlevel.checkpoint()
    if left.is_set():
        raise OSError(errno.EPIPE, "the client is gone")
    if message["type"] == "http.response.start":
        answered.status = message["status"]
        answered.began_at = trio.current_time()
        answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        return
    answered.pieces.append((trio.current_time(), bytes(message.get("body", b""))))
    answered.whole = not message.get("more_body", False)


async def ask_many(world: World, model: str, count: int, **how: Any) -> list[Answered]:
    """That many clients at the same moment; their answers in order of completion."""
    answers: list[Answered] = []

    async def one() -> None:
        answers.append(await world.ask(model, **how))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return answers
