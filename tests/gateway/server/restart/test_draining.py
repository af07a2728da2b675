"""What newcomers and open connections meet while a gateway drains."""

import socket
from functools import partial

import httpx
import pytest
import structlog
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.running import PROBE, SMALL, running_gateway
from trio.testing import memory_stream_pair

from gateway.http.server import HttpServer, ServerLimits
from gateway.server.restart.socket_activation import ListeningSockets
from gateway.server.serve import Start

CHAT = "/v1/chat/completions"
QUESTION = {"model": SMALL, "messages": PROBE}
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
async def stream_begins(nursery):
    """Start a stream that ends once its neuron is fast again; returns the list that its text is added to."""

    async def begin(running):
        finished = []

        async def stream():
            async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=SAFETY_NET_S) as client:
                finished.append((await client.post(CHAT, json={**QUESTION, "stream": True})).text)

        running.neurons[0].speed = 1e-3
        nursery.start_soon(stream)
        await until(lambda: running.gateway.request_log.live)
        return finished

    return begin


async def test_gateway_with_its_own_socket_answers_newcomers_503(tmp_path, stream_begins):
    """Instead of refusing connections, until its last request has ended. The metrics port is free at once."""
    async with running_gateway(tmp_path) as running:
        finished = await stream_begins(running)
        running.stop.set()
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=SAFETY_NET_S) as client:
            await until(lambda: running.gateway.inference.refuses_new)
            answer = await client.post(CHAT, json=QUESTION)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
            assert answer.headers["retry-after"] == "5"
            assert (await client.get("/ready")).status_code == 503
        with socket.create_server(("127.0.0.1", running.addresses.metrics.port)):
            pass
        assert not finished
        running.neurons[0].speed = 1e6
        await until(lambda: finished)
        assert "[DONE]" in finished[0]
        await until(lambda: not is_listening(running.port))


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def test_gateway_with_a_socket_of_the_service_manager_leaves_newcomers_to_the_next_process(
    tmp_path, stream_begins, nursery
):
    """A newcomer waits in the backlog; an open connection may send one more request."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        ours = socket.socket(fileno=theirs.dup().detach())
        ours.setblocking(False)
        async with running_gateway(tmp_path, start=Start(inherited=ListeningSockets(api=ours))) as running:
            assert running.port == theirs.getsockname()[1]
            client = httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=SAFETY_NET_S)
            assert (await client.get("/health")).headers.get("connection") != "close"
            finished = await stream_begins(running)
            running.stop.set()
            await until(running.gateway.inference.context.draining.is_set)
            answer = await client.get("/ready")
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            newcomer = await trio.open_tcp_stream("127.0.0.1", running.port)
            await newcomer.send_all(GET)
            with trio.move_on_after(0.2) as waiting:
                await newcomer.receive_some()
            assert waiting.cancelled_caught
            running.neurons[0].speed = 1e6
            await until(lambda: finished)
            assert "[DONE]" in finished[0]
            await client.aclose()
        theirs.setblocking(True)
        with theirs.accept()[0] as accepted:
            assert accepted.recv(100) == GET
        await newcomer.aclose()


# The server alone ....................................................................................................


async def respond(scope, receive, send):
    await trio.sleep(10 if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await trio.sleep(10)
    await send({"type": "http.response.body", "body": b"ok"})


async def read_all(stream):
    """Everything up to the end of the stream."""
    return b"".join([data async for data in stream])


async def connected(nursery, server):
    ours, theirs = memory_stream_pair()
    nursery.start_soon(server.serve_stream, theirs)
    return ours


async def test_open_connections_may_send_one_more_request(autojump_clock):
    """Also one whose stream had begun, whose head could not announce the close. Idle ones end when it is quiet."""
    server = HttpServer(respond, limits=ServerLimits(), log=structlog.get_logger())
    async with trio.open_nursery() as nursery:
        idle, waiting, streaming = [await connected(nursery, server) for _ in range(3)]
        await streaming.send_all(GET.replace(b"/", b"/slow", 1))
        await trio.sleep(11)
        assert b"connection: close" not in await streaming.receive_some()
        server.drain(keep_idle=True)
        await waiting.send_all(GET)
        assert b"connection: close" in await read_all(waiting)
        nursery.start_soon(partial(server.close_when_quiet, 3))
        await trio.sleep(9.5)  # the stream ends at 20
        assert (await streaming.receive_some()).endswith(b"0\r\n\r\n")
        await streaming.send_all(GET)
        assert b"connection: close" in await read_all(streaming)
        began = trio.current_time()
        assert await read_all(idle) == b""
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)
