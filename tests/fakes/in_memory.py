"""A gateway without sockets, threads or files: client, server, proxy and simulated neuron over memory streams.

So a test can use the autojump clock, which a thread or a socket would not allow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import structlog
import trio
from fakes.fleets import assert_idle
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from catalogue.models import Alias, Catalogue, ModelProfile
from gateway.access.admission import Access
from gateway.access.ledger.entry import LedgerEntry, LedgerRow
from gateway.access.limits.limiter import Limiter
from gateway.config.settings import NeuronSettings, Settings
from gateway.fleet.reports import ModelReport, NodeReport
from gateway.fleet.routing.queue import AdmissionQueues
from gateway.fleet.state import Fleet
from gateway.http.pool import UpstreamPool
from gateway.http.server import HttpServer, ServerLimits
from gateway.proxy.accounts.accounting import Accounting
from gateway.proxy.app import InferenceApp
from gateway.proxy.context import ProxyContext
from gateway.proxy.hedging.hedge_policy import HedgePolicy
from gateway.proxy.shadow.shadower import Shadower
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.request_log import RequestLog
from neuron.simulated.neuron import SimNeuron

SMALL = "Qwen/Qwen3-1.7B"
BODY = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}


Headers = tuple[str, ...]


class FixedCatalogue:
    """A catalogue that does not change."""

    def __init__(self, *aliases: Alias, models: tuple[ModelProfile, ...] = ()) -> None:
        self.current = Catalogue(1, {model.id: model for model in models}, {alias.name: alias for alias in aliases})


class RowList:
    """A ledger that keeps its rows in a list."""

    def __init__(self) -> None:
        self.rows: list[LedgerRow] = []
        self.add = self.rows.append


class NoLoads:
    """A scheduler that loads nothing."""

    async def wait_until_routable(self, decision: object) -> None:
        await trio.sleep_forever()

    def retry_after_s(self, model: str) -> int:
        return 30

    def earlier_loads(self, model: str) -> str:
        return ""


class InMemoryGateway:
    """One gateway in front of neurons that all have the small model loaded, unless `loaded` names another per neuron.

    `neurons` are served in `nursery`, one task per connection, as behind a listener. A callable gets each stream
    instead: a scripted neuron. `traits` are further settings of each. With a `limiter`, keys are limited, and `entries`
    gets what goes into the ledger.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        neurons: dict[str, object],
        settings: Settings | None = None,
        *,
        alias: Alias | None = None,
        loaded: dict[str, str] | None = None,
        traits: dict[str, object] | None = None,
        models: tuple[ModelProfile, ...] = (),
        limiter: Limiter | None = None,
        access: Access | None = None,
    ) -> None:
        self.nursery = nursery
        self.neurons = neurons
        self.connections = 0
        named = tuple(NeuronSettings(name, f"http://{name}:13131", **(traits or {})) for name in neurons)
        self.settings = settings or Settings()
        self.fleet = Fleet(named, misses=3)
        for name in neurons:
            report = ModelReport((loaded or {}).get(name, SMALL), "loaded", url=f"http://{name}:13131")
            self.fleet.answered(name, NodeReport((report,), devices=()))
        self.metrics = Metrics()
        self.request_log = RequestLog(self.metrics, log_requests=True)
        self.upstream = UpstreamPool(connect=self._connect)
        self.catalogue = FixedCatalogue(alias or Alias.plain("helexa/small", SMALL), models=models)
        self._ledger = RowList()
        accounting = None if limiter is None else Accounting(limiter, self.catalogue, self._ledger)
        self.admission = AdmissionQueues(self.fleet, catalogue=self.catalogue, limit=self.settings.limits.queue)
        self.hedge_policy = HedgePolicy(self.metrics)
        self.shadows = Shadower(
            self.fleet, self.upstream, catalogue=self.catalogue, metrics=self.metrics, deadlines=self.settings.deadlines
        )
        self.inference = InferenceApp(
            ProxyContext(
                settings=self.settings,
                catalogue=self.catalogue,
                fleet=self.fleet,
                upstream=self.upstream,
                admission=self.admission,
                scheduler=NoLoads(),
                request_log=self.request_log,
                poll_soon=lambda _: None,
                hedge_policy=self.hedge_policy,
                secret_key=bytes(32),
                shadows=self.shadows,
                access=access or Access(),
                accounting=accounting,
            )
        )
        self.server = HttpServer(self.inference, limits=ServerLimits(), log=structlog.get_logger())

    @property
    def entries(self) -> list[LedgerEntry]:
        """What went into the ledger."""
        return [row.entry() for row in self._ledger.rows]

    async def _connect(self, origin: object) -> trio.abc.Stream:
        self.connections += 1
        ours, theirs = memory_stream_pair()
        neuron = self.neurons[origin.host]
        if isinstance(neuron, SimNeuron):
            self.nursery.start_soon(neuron.serve_stream, theirs)
        else:
            self.nursery.start_soon(neuron, theirs)
        return ours

    def client(self) -> Client:
        """A new connection to the gateway."""
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.server.serve_stream, theirs)
        return Client(ours)

    async def idle(self) -> None:
        """Assert that nothing is left of any request, once every task is blocked."""
        await wait_all_tasks_blocked()
        assert_idle(self.fleet)
        assert self.request_log.live == {}
        assert self.upstream.in_use == 0
        for line in self.metrics.expose().decode().splitlines():
            if line.startswith("cortex_inflight_requests{"):
                assert line.endswith(" 0.0"), line


@dataclass
class Answer:
    """One complete response. `arrivals` are (time, bytes) of its pieces."""

    status: int
    headers: dict[str, str]
    body: bytes
    arrivals: list[tuple[float, bytes]]

    @property
    def error(self) -> dict[str, object]:
        return json.loads(self.body)["error"]

    @property
    def events(self) -> list[str]:
        """The data of each event of a stream, without comments."""
        return [part[len("data: ") :] for part in self.body.decode().split("\n\n") if part.startswith("data: ")]


class Client:
    """A minimal HTTP client: one request per connection; it decodes chunks as they arrive."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = b""
        self._arrivals: list[tuple[float, bytes]] = []

    async def ask(
        self, body: object = None, path: str = "/v1/chat/completions", *, headers: Headers = (), **extra: object
    ) -> Answer:
        """Send a request and read its answer to the end."""
        await self.send(body, path, headers=headers, **extra)
        return await self.answer()

    async def send(
        self, body: object = None, path: str = "/v1/chat/completions", *, headers: Headers = (), **extra: object
    ) -> None:
        """`headers` are additional lines, `extra` additional keys of the body."""
        data = body if isinstance(body, bytes) else json.dumps({**(body or BODY), **extra}).encode()
        ours = ("host: gateway", "connection: close", f"content-length: {len(data)}")
        head = "\r\n".join((f"POST {path} HTTP/1.1", *ours, *headers, "", ""))
        await self.stream.send_all(head.encode() + data)

    async def answer(self) -> Answer:
        status, headers = await self.head()
        body = b""
        while True:
            piece = await self.piece(headers)
            if not piece:
                return Answer(status, headers, body, self._arrivals)
            self._arrivals.append((trio.current_time(), piece))
            body += piece

    async def head(self) -> tuple[int, dict[str, str]]:
        head = await self._until(b"\r\n\r\n")
        first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def piece(self, headers: dict[str, str]) -> bytes:
        """The next chunk, or available bytes of a body with a length; b"" at the end."""
        if headers.get("transfer-encoding") != "chunked":
            data, self._buffer = self._buffer, b""
            return data or bytes(await self.stream.receive_some(65536))
        size = int(await self._until(b"\r\n"), 16)
        while len(self._buffer) < size + 2:
            await self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size + 2 :]
        return data

    async def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            await self._more()
        found, _, self._buffer = self._buffer.partition(end)
        return found + end

    async def _more(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError(self._buffer)
        self._buffer += data

    async def leave(self) -> None:
        await self.stream.aclose()
