"""Clients that misbehave: each is refused or timed out, and another client's stream continues undisturbed."""

import json
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import httpx
import pytest
import trio
from fakes.fleets import assert_idle
from fakes.in_memory import Client
from fakes.patience import PATIENT_STREAMING, SAFETY_NET_S, until
from fakes.running import BOTH_WAYS, SMALL, running_gateway
from fakes.scripted import DONE, chunked, delta, listening, read_request

from gateway.config.settings import DeadlineSettings
from gateway.http.pool import Origin, open_stream
from neuron.simulated.fleet import neuron

CHAT = "/v1/chat/completions"
MIB = 1024**2
TOKENS = 12
HASTY_S = 0.4


pytestmark = BOTH_WAYS


def settings(header_s, *, pump):
    """Short deadlines for a client that reads nothing and for a request that is incomplete."""
    deadlines = DeadlineSettings(
        connect_seconds=SAFETY_NET_S, header_seconds=header_s, upload_seconds=header_s, client_write_seconds=HASTY_S
    )
    return {
        "deadlines": deadlines,
        # A keep-alive would arrive instead of the next word.
        "streaming": replace(PATIENT_STREAMING, keepalive_seconds=0, pump=pump),
    }


hasty = pytest.mark.parametrize("good_stream", [HASTY_S], indirect=True)
"""For what ends only when the gateway loses patience with a request that does not become whole."""


class Neuron:
    """Sends the good client one token per permit, and never stops sending to a client that reads nothing."""

    def __init__(self):
        self.permit, self.permits = trio.open_memory_channel(0)
        self.gluttons = self.given_up = 0

    async def __call__(self, stream):
        request = await read_request(stream)
        await stream.send_all(chunked(end=b""))
        if b'"glutton"' in request:
            await self._feed(stream)
        else:
            async for event in self.permits:
                await stream.send_all(b"%x\r\n%b\r\n" % (len(event), event))
            await stream.send_all(b"0\r\n\r\n")

    async def _feed(self, stream):
        self.gluttons += 1
        event = delta("x" * 65_000)
        try:
            while True:
                await stream.send_all(b"%x\r\n%b\r\n" % (len(event), event))
        finally:
            self.given_up += 1


class GoodStream:
    """A gateway with one open stream, which delivers one word at a time on request."""

    def __init__(self, cortex, spoken, wire):
        self.cortex = cortex
        self.neuron = spoken
        self.port = cortex.port
        self._wire = wire
        self._headers = {}
        self._count = 0

    async def begin(self):
        await self._wire.send({"model": SMALL, "stream": True, "messages": []})

    async def assert_continues(self):
        """The client gets the next word and nothing else."""
        event = delta(f" word {self._count}")
        self._count += 1
        await self.neuron.permit.send(event)
        with trio.fail_after(SAFETY_NET_S):
            if not self._headers:
                status, self._headers = await self._wire.head()
                assert status == 200
            assert await self._wire.piece(self._headers) == event

    async def ends(self):
        await self.neuron.permit.send(DONE)
        self.neuron.permit.close()
        assert await self._wire.piece(self._headers) == DONE
        assert await self._wire.piece(self._headers) == b""


@pytest.fixture
async def good_stream(tmp_path, request, pump):
    """The stream has begun; after the test it must still end properly."""
    spoken = Neuron()
    beast = neuron("beast", [24576], [SMALL])
    sections = settings(getattr(request, "param", SAFETY_NET_S), pump=pump)
    async with (
        listening(spoken) as url,
        running_gateway(tmp_path, [beast], **sections) as cortex,
    ):
        origin = Origin.parse(url)
        # polls go to `beast`, requests to the scripted peer
        cortex.gateway.upstream._connect = lambda _: open_stream(origin)
        async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream:
            good = GoodStream(cortex, spoken, Client(stream))
            await good.begin()
            await good.assert_continues()
            yield good
            await good.assert_continues()
            await good.ends()
        await until(lambda: not cortex.gateway.request_log.live)
        assert_idle(cortex.gateway.fleet)
        assert cortex.gateway.upstream.in_use == 0


@asynccontextmanager
async def a_bad_client(good_stream):
    async with await trio.open_tcp_stream("127.0.0.1", good_stream.port) as stream:
        yield stream


async def answer_of(stream, end=None):
    """Everything until the gateway closes the connection or resets it (more is arriving than it will read), or until
    `end`.
    """
    data = b""
    with trio.fail_after(SAFETY_NET_S), suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some(65_536):
            data += piece
            if end is not None and end in data:
                break
    return data


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"


def label(value):
    return value[:40].decode("latin-1").replace("\r\n", "|") if isinstance(value, bytes) else str(value)


async def assert_refused(good_stream, sent):
    """The client gets this status and code, and the good stream continues before and after."""
    async with a_bad_client(good_stream) as bad:
        with suppress(trio.BrokenResourceError):  # the gateway may have closed the connection already
            await bad.send_all(sent)
        await good_stream.assert_continues()
        head, _, body = (await answer_of(bad)).partition(b"\r\n\r\n")
        await good_stream.assert_continues()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400, "malformed_request"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 400, "malformed_request"),
        (bytes(range(256)) * 100, 400, "malformed_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version_not_supported"),
        (POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"),
        (POST + b"content-length: 4\r\ncontent-length: 5\r\n\r\n{}   ", 400, "malformed_request"),
        (POST + b"connection: close\r\ncontent-length: 200000\r\n\r\n" + b"[" * 200_000, 400, "malformed_json"),
        (POST + b"x: " + b"y" * 70_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (POST + b"x: y\r\n" * 20_000 + b"\r\n", 431, "headers_too_large"),
        (POST + b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * 140_000, 431, "headers_too_large"),
        (POST + b"content-length: 104857600\r\n\r\n", 413, "body_too_large"),
    ],
    ids=label,
)
async def test_invalid_request_is_refused_while_a_stream_continues(good_stream, sent, status, code):
    """With a status and an envelope; then the connection is closed."""
    assert await assert_refused(good_stream, sent) == (status, code)


@hasty
@pytest.mark.parametrize(
    "sent",
    [
        POST[:20],
        POST,
        POST + b"content-length: 100\r\n\r\n{",
        POST + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=label,
)
async def test_incomplete_request_times_out_while_a_stream_continues(good_stream, sent):
    """After `header_seconds` or `upload_seconds`, wherever it stopped."""
    assert await assert_refused(good_stream, sent) == (408, "request_timeout")


@pytest.mark.parametrize("announced", [True, False])
async def test_hundred_megabytes_are_refused_while_a_stream_continues(good_stream, announced):
    """At the first byte if the client declares the length, else at the limit; the gateway never reads all of them."""
    sent = 0

    async def upload(bad):
        nonlocal sent
        framing = b"content-length: %d\r\n\r\n" % (100 * MIB) if announced else b"transfer-encoding: chunked\r\n\r\n"
        piece = b" " * MIB if announced else b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
        try:
            await bad.send_all(POST + framing)
            for _ in range(100):
                await bad.send_all(piece)
                sent += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with a_bad_client(good_stream) as bad, trio.open_nursery() as uploading:
        uploading.start_soon(upload, bad)
        await good_stream.assert_continues()
        answer_bytes = await answer_of(bad, b'"code":"body_too_large"')
        sent_by_then = sent
        await good_stream.assert_continues()
        uploading.cancel_scope.cancel()

    assert answer_bytes.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer_bytes
    assert announced or 64 <= sent_by_then < 100


async def test_endless_headers_are_refused_while_a_stream_continues(good_stream):
    """While they are arriving."""

    async def flood(bad):
        try:
            await bad.send_all(POST)
            while True:
                await bad.send_all(b"x: y\r\n" * 10_000)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with a_bad_client(good_stream) as bad, trio.open_nursery() as flooding:
        flooding.start_soon(flood, bad)
        await good_stream.assert_continues()
        with trio.fail_after(SAFETY_NET_S):
            answer_bytes = bytes(await bad.receive_some())
        await good_stream.assert_continues()
        flooding.cancel_scope.cancel()

    assert answer_bytes.startswith(b"HTTP/1.1 431 ")


async def test_client_that_reads_nothing_is_dropped_while_a_stream_continues(good_stream):
    """After `client_write_seconds` without a byte read; its neuron is free then."""
    body = json.dumps({"model": SMALL, "stream": True, "messages": [{"role": "user", "content": "glutton"}]}).encode()
    async with a_bad_client(good_stream) as bad:
        await bad.send_all(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: good_stream.neuron.gluttons)
        await good_stream.assert_continues()
        await until(lambda: good_stream.neuron.given_up)
        await good_stream.assert_continues()

    await until(lambda: len(good_stream.cortex.gateway.request_log.live) == 1)
    exposed = good_stream.cortex.gateway.metrics.expose().decode()
    assert f'cortex_client_disconnects_total{{model="{SMALL}",node="beast"}} 1.0' in exposed


async def test_thousands_of_pipelined_requests_whose_answers_are_not_read(good_stream):
    """Served while the client reads the answers, then the client is dropped."""
    pipelined = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n" * 500

    async def flood(bad):
        try:
            while True:
                await bad.send_all(pipelined)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            dropped.set()

    dropped = trio.Event()
    async with a_bad_client(good_stream) as bad, trio.open_nursery() as flooding:
        flooding.start_soon(flood, bad)
        await good_stream.assert_continues()
        with trio.fail_after(SAFETY_NET_S):
            await dropped.wait()
        await good_stream.assert_continues()


@hasty
async def test_hundred_clients_at_once_that_all_misbehave(good_stream):
    """A mixture of all of these. In the end only the good client is left, and a new one is served."""
    everything = [b"\x00" * 100, POST[:30], POST + b"content-length: 9\r\n\r\n{", POST + b"x: " + b"y" * 70_000, b""]

    async def misbehave(number):
        async with a_bad_client(good_stream) as bad:
            await bad.send_all(everything[number % len(everything)])
            await answer_of(bad) if number % len(everything) < 4 else await trio.sleep_forever()

    async with trio.open_nursery() as clients:
        for number in range(100):
            clients.start_soon(misbehave, number)
        for _ in range(3):
            await good_stream.assert_continues()
        await until(lambda: len(clients.child_tasks) == 20)  # connections without any request stay open, as they may
        async with httpx.AsyncClient(base_url=good_stream.cortex.url, trust_env=False, timeout=60) as http:
            assert (await http.get("/v1/models")).status_code == 200
        clients.cancel_scope.cancel()
