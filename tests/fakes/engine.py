"""The management API of an OpenAI-compatible server in memory, as an httpx transport; tests set its answers.

`SimEngine` also answers inference requests, with the quirks of engines: it is `neuron.simulated` with only `/v1`. The
real engine is in tests/real.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import trio
from fakes.patience import PATIENT_DEADLINES, PATIENT_POLL, PATIENT_STREAMING, until

from gateway.config.settings import GatewaySettings, Listen, NeuronSettings, Settings
from gateway.server.gateway import Gateway
from gateway.server.serve import serve
from neuron.simulated import PRESETS, SimDevice, SimNeuron


class FakeEngine(httpx.AsyncBaseTransport):
    """`responses` maps "GET /path" to (status, body), body being JSON or bytes; or to a function of the request's JSON.

    `requests` lists the requests as `("GET /path", JSON or None)`, `keys` the Authorization header of each.
    """

    def __init__(self, responses):
        self.responses = dict(responses)
        self.requests = []
        self.keys = []

    async def handle_async_request(self, request):
        await trio.lowlevel.checkpoint()
        route = f"{request.method} {request.url.raw_path.decode()}"
        body = json.loads(request.content) if request.method == "POST" else None
        self.requests.append((route, body))
        self.keys.append(request.headers.get("authorization"))
        response = self.responses.get(route, (404, {"detail": "Not Found"}))
        status, answer = response(body) if callable(response) else response
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return httpx.Response(status, stream=httpx.ByteStream(raw))


def listing(*models):
    """The answer of `/v1/models`; models are ids or whole entries."""
    entries = [model if isinstance(model, dict) else {"id": model, "object": "model"} for model in models]
    return 200, {"object": "list", "data": entries}


class SimEngine(SimNeuron):
    """A simulated neuron with only OpenAI's API: requests for other paths get 404, and `managed` lists them."""

    def __init__(self, *loaded, name="box", speed=1000.0):
        super().__init__(name, [SimDevice(0, "GPU", 24576)], PRESETS.values(), loaded=loaded, speed=speed)
        self.managed = []

    async def _handle(self, exchange):
        if exchange.request.path.startswith("/v1/"):
            await super()._handle(exchange)
            return
        self.managed.append(exchange.request.path)
        await exchange.respond_json(404, {"detail": "Not Found"})


@asynccontextmanager
async def an_engine_gateway(*engines, **keys):
    """A gateway without a catalogue in front of these, each configured with `keys`: the gateway and its URL."""
    async with trio.open_nursery() as nursery:
        urls = [await nursery.start(engine.serve) for engine in engines]
        neurons = [
            NeuronSettings(engine.name, url, "openai", **keys) for engine, url in zip(engines, urls, strict=True)
        ]
        yield await start_gateway(nursery, neurons)
        nursery.cancel_scope.cancel()


async def counted(gateway, sample):
    """Wait until this line is among the metrics: they are updated shortly after the client has its last byte."""
    await until(lambda: sample in gateway.metrics.expose().decode())


async def start_gateway(nursery, neurons):
    """A gateway on a free loopback port, for as long as the nursery; returns it and its URL."""
    settings = Settings(
        gateway=GatewaySettings(listen=Listen("127.0.0.1", 0), metrics_listen=Listen("127.0.0.1", 0)),
        poll=PATIENT_POLL,
        deadlines=PATIENT_DEADLINES,
        streaming=replace(PATIENT_STREAMING, keepalive_seconds=0),
        neurons=tuple(neurons),
    )
    gateway = Gateway(settings)
    addresses = await nursery.start(serve, gateway)
    return gateway, addresses.url
