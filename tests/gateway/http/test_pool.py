"""The pool of connections to neurons: reuse, retries, cancellation. Mostly in memory."""

import pytest
import trio
from fakes.exchanges import ORIGIN, REQUEST, ask
from fakes.patience import SAFETY_NET_S, until
from fakes.scripted import MemoryNetwork, answering, chunked, listening, read_request, with_length
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import DeadlineSettings
from gateway.errors import UpstreamConnectionError
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import Origin, UpstreamPool, request_head

HELLO = with_length(b"hello")


# Idle connections ...................................................................................................


async def test_connection_is_reused_within_three_idle_seconds(nursery, autojump_clock):
    """Uvicorn and llama.cpp close after 5 s; reusing a connection they have closed caused sporadic 502s."""
    network = MemoryNetwork(nursery, answering(*[HELLO] * 9))
    upstream = UpstreamPool(connect=network.connect)
    await ask(upstream)
    await trio.sleep(2.99)
    await ask(upstream)
    assert upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 1, "reused": 1}
    await trio.sleep(3)
    await ask(upstream)

    assert upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 2, "reused": 1}
    upstream.close()


async def test_idle_connection_is_closed_without_a_request(nursery, autojump_clock):
    """The neuron's side is freed, too."""
    closed_at = []

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(HELLO)
        await stream.receive_some(1)
        closed_at.append(trio.current_time())

    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    nursery.start_soon(upstream.run)
    await ask(upstream)
    await trio.sleep(10)

    assert closed_at == [3]
    assert upstream.statistics()["idle"] == 0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        with_length(b"hello", more="connection: close\r\n"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        HELLO + b"HTTP/1.1 200 OK\r\n\r\n",
        HELLO + b"more",
    ],
)
async def test_connection_is_closed_if_the_neuron_says_so_or_sends_more(nursery, answer):
    """`connection: close`, HTTP/1.0, or bytes after the response."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(answer)).connect)

    assert await ask(upstream) == (200, b"hello")
    assert upstream.statistics()["idle"] == 0


async def test_connection_is_closed_when_its_response_is_not_read_to_the_end(nursery):
    """Otherwise the next request would read the rest of this response."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(chunked(b"one", end=b""))).connect)
    with upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as exchange:
        response = await exchange.response()
        assert await response.receive() == b"one"

    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", chunked(b"one", end=b"")])
async def test_cancelled_exchange_closes_its_connection_at_once(nursery, autojump_clock, answer):
    """Before the head, inside it, and in the body: the neuron notices at once."""
    closed = trio.Event()

    async def peer(stream):
        await read_request(stream)
        if answer:
            await stream.send_all(answer)
        await stream.receive_some(1)
        closed.set()

    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    with trio.move_on_after(1):
        await ask(upstream)
    await wait_all_tasks_blocked()

    assert closed.is_set()
    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


async def test_cancelled_while_connecting_leaves_nothing(nursery, autojump_clock):
    """There is no connection yet."""

    async def never(origin):
        await trio.sleep_forever()

    upstream = UpstreamPool(connect=never)
    with trio.move_on_after(1):
        await ask(upstream)

    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 0, "reused": 0}


async def test_pool_keeps_at_most_its_limit_of_idle_connections(nursery):
    """The limit is per neuron; further connections are closed."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(HELLO)).connect, idle_limit=2)
    async with trio.open_nursery() as asking:
        for _ in range(5):
            asking.start_soon(ask, upstream)

    assert upstream.statistics() == {"idle": 2, "in_use": 0, "opened": 5, "reused": 0}
    upstream.close()
    assert upstream.statistics()["idle"] == 0


# Retries ............................................................................................................


async def test_request_is_retried_once_when_a_reused_connection_is_closed(nursery):
    """Before the first byte of a response: the only case in which a retry is safe."""
    network = MemoryNetwork(nursery, answering(HELLO, None), answering(HELLO))
    upstream = UpstreamPool(connect=network.connect)
    await ask(upstream)

    assert await ask(upstream) == (200, b"hello")
    assert upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 2, "reused": 1}
    upstream.close()


async def test_no_second_retry_on_a_new_connection(nursery):
    """A new connection that the neuron closes is a failure of the neuron."""
    network = MemoryNetwork(nursery, answering(HELLO, None), answering(None))
    upstream = UpstreamPool(connect=network.connect)
    await ask(upstream)
    with pytest.raises(UpstreamConnectionError, match="without sending a response"):
        await ask(upstream)

    assert len(network.connections) == 2
    assert upstream.statistics()["in_use"] == 0


async def test_no_retry_after_the_first_byte_of_a_response(nursery):
    """The neuron has accepted the request."""
    network = MemoryNetwork(nursery, answering(HELLO, b"HTTP/1.1 2", then_close=True), answering(HELLO))
    upstream = UpstreamPool(connect=network.connect)
    await ask(upstream)
    with pytest.raises(UpstreamConnectionError, match="in the middle of its response"):
        await ask(upstream)

    assert len(network.connections) == 1


# Real sockets .......................................................................................................


async def test_neuron_that_closes_after_each_response_causes_no_errors():
    """EOF is seen before reuse. It advertises keep-alive, as llama.cpp does; without the check, 59 of 200 failed."""
    served = 0

    async def peer(stream):
        nonlocal served
        while await read_request(stream):
            served += 1
            await stream.send_all(with_length(b"hello", more="connection: keep-alive\r\n"))
            return

    upstream = UpstreamPool()
    async with listening(peer) as url:
        for _ in range(200):
            assert await ask(upstream, Origin.parse(url)) == (200, b"hello")

    assert served == 200
    assert upstream.in_use == 0
    upstream.close()


async def test_idle_connection_with_unexpected_bytes_is_not_reused():
    """They would be read as the response to the next request."""
    requests = 0
    answered = trio.Event()

    async def peer(stream):
        nonlocal requests
        while await read_request(stream):
            requests += 1
            await stream.send_all(HELLO)
            if requests == 1:
                await answered.wait()
                await stream.send_all(with_length(b"stale"))

    upstream = UpstreamPool()
    async with listening(peer) as url:
        await ask(upstream, Origin.parse(url))
        ((idle,),) = upstream._idle.values()
        answered.set()
        await until(lambda: not idle.is_quiet())
        assert await ask(upstream, Origin.parse(url)) == (200, b"hello")
        assert upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 2, "reused": 0}
        upstream.close()


async def test_early_response_stops_a_large_body():
    """A 413 after the head: the rest of 32 MiB is not sent, and the connection is closed."""
    body = bytes(32 * 1024**2)

    async def peer(stream):
        await stream.receive_some(1000)
        await stream.send_all(with_length(b"too long", status="413 Content Too Large"))
        await trio.sleep_forever()

    upstream = UpstreamPool()
    async with listening(peer) as url:
        origin = Origin.parse(url)
        with trio.fail_after(SAFETY_NET_S):
            answer = await ask(upstream, origin, (request_head(origin, b"/", b"", len(body)), body))

    assert answer == (413, b"too long")
    assert upstream.statistics()["idle"] == 0


async def test_large_body_arrives_whole():
    """The socket takes it in many writes."""
    body = bytes(range(256)) * 65_536
    received = []

    async def peer(stream):
        received.append(await read_request(stream))
        await stream.send_all(HELLO)

    upstream = UpstreamPool()
    async with listening(peer) as url:
        origin = Origin.parse(url)
        assert await ask(upstream, origin, (request_head(origin, b"/", b"", len(body)), body)) == (200, b"hello")

    assert received[0].endswith(b"\r\n\r\n" + body)
    upstream.close()


async def test_refused_connection_says_so_without_the_address():
    """Nothing listens on that port. Clients read the message; the address is the operator's."""
    upstream = UpstreamPool()
    with pytest.raises(UpstreamConnectionError, match=r"^cannot connect to the neuron: connection refused$"):
        await ask(upstream, Origin.parse("http://127.0.0.1:1"))

    assert upstream.in_use == 0


@pytest.mark.parametrize("host", ["beast..lan", "a" * 64, "."])
async def test_invalid_host_name_is_a_connection_error(host):
    """A neuron reports where its model is; resolvers raise UnicodeError for these names."""
    with pytest.raises(UpstreamConnectionError, match="cannot connect"):
        await ask(UpstreamPool(), Origin.parse(f"http://{host}:1"))


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://beast:13131", "beast:13131"),
        ("http://beast", "beast"),
        ("https://beast:443/", "beast"),
        ("http://[::1]:8080/x/", "[::1]:8080"),
    ],
)
def test_origin_has_the_value_of_the_host_header(url, authority):
    """Without a default port (RFC 9110, section 7.2)."""
    assert Origin.parse(url).authority == authority


@pytest.mark.parametrize("url", ["beast:13131", "ftp://beast", "http://", ""])
def test_origin_rejects_other_urls(url):
    """Only http and https URLs with a host are valid."""
    with pytest.raises(ValueError, match="not an http"):
        Origin.parse(url)
