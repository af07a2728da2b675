"""Neurons behind TLS: polls and requests on reused connections, and which certificates the gateway trusts."""

import hashlib
import json
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from fakes.engine import SimEngine, start_gateway
from fakes.patience import SAFETY_NET_S, until
from fakes.running import SMALL, settled
from fakes.scripted import with_length
from structlog.testing import capture_logs

from gateway.config.settings import NeuronSettings
from gateway.fleet.reports import ModelReport, NodeReport
from gateway.http import pool, tls
from gateway.server.gateway import Gateway
from neuron.simulated.faults import CloseAfter, Slow

CHAT = "/v1/chat/completions"
TLS = Path(__file__).parents[1] / "fakes" / "tls"  # a self-signed certificate for localhost, and its key


def question(**more):
    return {"model": SMALL, "messages": [{"role": "user", "content": "What is the capital of Georgia?"}], **more}


@pytest.fixture
def trusted(monkeypatch):
    """The gateway trusts the certificate, as an operator with a private CA configures it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    tls.context.cache_clear()
    yield
    tls.context.cache_clear()


async def serve_tls(nursery, peer):
    """The https URL of a peer, which gets each connection after its handshake."""

    async def serve(stream):
        try:
            await stream.do_handshake()
            await peer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client did not trust the certificate, or disconnected
        finally:
            await trio.aclose_forcefully(stream)

    context = tls.ssl.create_default_context(tls.ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    (listener,) = await nursery.start(partial(trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1"))
    return f"https://localhost:{listener.transport_listener.socket.getsockname()[1]}"


@dataclass
class GatewayToTls:
    """A gateway in front of an engine behind TLS; a neuron would report its own inference URL."""

    gateway: Gateway
    url: str
    http: httpx.AsyncClient


@pytest.fixture
def beast():
    return SimEngine(SMALL, speed=100)


@pytest.fixture
async def cortex(nursery, beast):
    async with before(nursery, await serve_tls(nursery, beast.serve_stream)) as behind:
        yield behind


@asynccontextmanager
async def before(nursery, url):
    gateway, address = await start_gateway(nursery, [NeuronSettings("beast", url, "openai")])
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as http:
        yield GatewayToTls(gateway, address, http)
    nursery.cancel_scope.cancel()


@pytest.fixture
def never_too_old(monkeypatch):
    """Idle connections do not expire, even if the test is slow with its next request."""
    monkeypatch.setattr(pool, "IDLE_LIMIT_S", math.inf)


async def test_neuron_behind_tls_gets_polls_and_requests(trusted, cortex, never_too_old):
    """Streams and plain answers, all on one connection: a session ticket does not make it unusable."""
    for number in range(10):
        answer = await cortex.http.post(CHAT, json=question(stream=number % 2 == 0))
        assert answer.status_code == 200
        assert "isi" in answer.text
        await settled(cortex.gateway)

    assert cortex.gateway.upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 1, "reused": 9}


async def test_neuron_behind_tls_that_hangs_up_after_each_answer(trusted, cortex, beast):
    """Although it advertises keep-alive: no request is lost on a closed connection."""
    beast.faults.add(CloseAfter())
    for number in range(40):
        assert (await cortex.http.post(CHAT, json=question(stream=number % 2 == 0))).status_code == 200

    assert beast.counters["requests"] == 40
    await settled(cortex.gateway)


async def test_neuron_behind_tls_sees_a_client_disconnect(trusted, cortex, beast):
    """A cancelled exchange closes the connection there too."""
    beast.faults.add(Slow(factor=1e9))
    async with trio.open_nursery() as leaving:
        leaving.start_soon(partial(cortex.http.post, CHAT, json=question(stream=True)))
        await until(lambda: beast.residents[SMALL].places.in_flight)
        leaving.cancel_scope.cancel()
    await until(lambda: beast.cancelled)
    await settled(cortex.gateway)

    assert cortex.gateway.upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


async def test_neuron_with_an_untrusted_certificate_gets_no_requests(cortex):
    """It gets no polls and, even if it counts as healthy, no request; the reason is reported."""
    node = cortex.gateway.fleet.nodes["beast"]
    with capture_logs() as logs:
        await until(lambda: node.misses >= 3)
    assert not node.healthy
    reasons = {entry["reason"] for entry in logs if entry["event"] in {"poll_failed", "neuron_down"}}
    assert reasons <= {"TLS failed: certificate verify failed: self-signed certificate"}
    report = NodeReport((ModelReport(SMALL, "loaded", url=node.endpoint),), devices=())
    with trio.fail_after(SAFETY_NET_S):
        while True:
            cortex.gateway.fleet.answered("beast", report)
            answer = await cortex.http.post(CHAT, json=question())
            if answer.status_code != 503:  # otherwise a poll marked it as down before the request
                break

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_connection_error")
    assert "certificate verify failed" in answer.json()["error"]["message"]


def listing_then(peer):
    """A scripted neuron: lists its model when it is polled, and leaves other requests to `peer`."""

    async def serve(stream):
        while request := await stream.receive_some(65_536):
            if request.startswith(b"GET "):
                await stream.send_all(with_length(b'{"data":[{"id":"%b"}]}' % SMALL.encode()))
            else:
                await peer(stream, bytes(request))

    return serve


async def test_early_answer_of_a_neuron_behind_tls_is_forwarded(trusted, nursery):
    """413 after the head: the client does not wait until the neuron has read 32 MiB."""

    async def peer(stream, _):
        await stream.send_all(with_length(b'{"error":"too long"}', status="413 Content Too Large"))
        await trio.sleep_forever()

    async with before(nursery, await serve_tls(nursery, listing_then(peer))) as cortex:
        answer = await cortex.http.post(CHAT, json=question(padding="x" * 32 * 1024**2))

    assert (answer.status_code, answer.json()["error"]["message"]) == (413, "too long")


async def test_large_body_arrives_complete_over_tls(trusted, nursery, never_too_old):
    """In pieces, without a loss, and the connection can be reused."""
    received = []

    async def peer(stream, begun):
        while not begun.endswith(b'the end"}'):
            begun += await stream.receive_some(65_536)
        received.append(hashlib.sha256(begun.partition(b"\r\n\r\n")[2]).digest())
        await stream.send_all(with_length(b"{}"))

    body = json.dumps(question(padding="x" * 4 * 1024**2, last="the end"), separators=(",", ":")).encode()
    statuses = []
    async with before(nursery, await serve_tls(nursery, listing_then(peer))) as cortex:
        for _ in range(2):
            statuses.append((await cortex.http.post(CHAT, content=body)).status_code)
            await settled(cortex.gateway)
        statistics = cortex.gateway.upstream.statistics()

    assert statuses == [200, 200]
    assert received == [hashlib.sha256(body).digest()] * 2
    assert (statistics["opened"], statistics["reused"]) == (1, 1)
