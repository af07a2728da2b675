"""HTTP/1.1 to a neuron: the pool, what is asked twice and what never. In memory, mostly."""

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


# The pool...


async def test_connection_is_used_again_while_it_has_rested_less_than_three_seconds(nursery, autojump_clock):
    """Uvicorn and llama.cpp close at 5 s: we are first (lessons: sporadic 502 after idle)."""
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


async def test_sweeper_closes_what_has_rested_too_long(nursery, autojump_clock):
    """Without a request to trigger it, so that the neuron's side is freed too."""
    left_at = []

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(HELLO)
        await stream.receive_some(1)
        left_at.append(trio.current_time())

    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    nursery.start_soon(upstream.run)
    await ask(upstream)
    await trio.sleep(10)

    assert left_at == [3]
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
async def test_connection_that_should_not_be_used_again_is_closed(nursery, answer):
    """It said so, or it sent what nobody asked for."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(answer)).connect)

    assert await ask(upstream) == (200, b"hello")
    assert upstream.statistics()["idle"] == 0


async def test_connection_left_in_mid_answer_is_closed(nursery):
    """Whoever reads no further gets no other's answer later."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(chunked(b"one", end=b""))).connect)
    async with upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as response:
        assert await response.receive() == b"one"

    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", chunked(b"one", end=b"")])
async def test_cancelled_exchange_closes_its_connection_at_once(nursery, autojump_clock, answer):
    """Before the head, inside it, in the body: the neuron sees it in the same moment."""
    left = trio.Event()

    async def peer(stream):
        await read_request(stream)
        if answer:
            await stream.send_all(answer)
        await stream.receive_some(1)
        left.set()

    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    with trio.move_on_after(1):
        await ask(upstream)
    await wait_all_tasks_blocked()

    assert left.is_set()
    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


async def test_cancelled_while_connecting_leaves_nothing(nursery, autojump_clock):
    """There was no connection yet."""

    async def never(origin):
        await trio.sleep_forever()

    upstream = UpstreamPool(connect=never)
    with trio.move_on_after(1):
        await ask(upstream)

    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 0, "reused": 0}


async def test_pool_keeps_no_more_than_its_limit(nursery):
    """Per neuron; the rest are closed."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(HELLO)).connect, idle_limit=2)
    async with trio.open_nursery() as asking:
        for _ in range(5):
            asking.start_soon(ask, upstream)

    assert upstream.statistics() == {"idle": 2, "in_use": 0, "opened": 5, "reused": 0}
    upstream.close()
    assert upstream.statistics()["idle"] == 0


# Asking twice...


async def test_reused_connection_that_dies_unanswered_is_replaced_once(nursery):
    """The one case where asking twice is safe; the client hears nothing of it."""
    network = MemoryNetwork(nursery, answering(HELLO, None), answering(HELLO))
    upstream = UpstreamPool(connect=network.connect)
    await ask(upstream)

    assert await ask(upstream) == (200, b"hello")
    assert upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 2, "reused": 1}
    upstream.close()


async def test_second_death_in_a_row_is_an_error(nursery):
    """A fresh connection that dies is no accident of timing."""
    network = MemoryNetwork(nursery, answering(HELLO, None), answering(None))
    upstream = UpstreamPool(connect=network.connect)
    await ask(upstream)
    with pytest.raises(UpstreamConnectionError, match="without sending a response"):
        await ask(upstream)

    assert len(network.connections) == 2
    assert upstream.statistics()["in_use"] == 0


async def test_reused_connection_that_dies_inside_the_head_is_not_asked_again(nursery):
    """A byte of an answer came: the request was taken."""
    network = MemoryNetwork(nursery, answering(HELLO, b"HTTP/1.1 2", then_close=True), answering(HELLO))
    upstream = UpstreamPool(connect=network.connect)
    await ask(upstream)
    with pytest.raises(UpstreamConnectionError, match="in the middle of its response"):
        await ask(upstream)

    assert len(network.connections) == 1


# On real sockets...


async def test_neuron_that_closes_after_each_answer_is_never_asked_in_vain():
    """Advertising keep-alive, as llama.cpp does: EOF is seen before reuse (naive pools failed 59 of 200)."""
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


async def test_resting_connection_with_unasked_bytes_is_not_used():
    """Whatever they are, they are no answer to what comes next."""
    asked = 0
    answered = trio.Event()

    async def peer(stream):
        nonlocal asked
        while await read_request(stream):
            asked += 1
            await stream.send_all(HELLO)
            if asked == 1:
                await answered.wait()
                await stream.send_all(with_length(b"stale"))

    upstream = UpstreamPool()
    async with listening(peer) as url:
        await ask(upstream, Origin.parse(url))
        ((resting,),) = upstream._idle.values()
        answered.set()
        await until(lambda: not resting.is_quiet())
        assert await ask(upstream, Origin.parse(url)) == (200, b"hello")
        assert upstream.statistics() == {"idle": 1, "in_use": 0, "opened": 2, "reused": 0}
        upstream.close()


async def test_early_answer_stops_a_large_body():
    """413 after the head: the answer counts, not the 32 MiB nobody reads; and the connection is done with."""
    body = bytes(32 * 1024**2)

    async def peer(stream):
        await stream.receive_some(1000)
        await stream.send_all(with_length(b"too long", status="413 Content Too Large"))
        await trio.sleep_forever()

    upstream = UpstreamPool()
    async with listening(peer) as url:
        origin = Origin.parse(url)
        with trio.fail_after(SAFETY_NET_S):
            answer = await ask(upstream, origin, (request_head(origin, b"/", [], len(body)), body))

    assert answer == (413, b"too long")
    assert upstream.statistics()["idle"] == 0


async def test_large_body_arrives_whole():
    """Written in as many steps as the socket wants."""
    body = bytes(range(256)) * 65_536
    received = []

    async def peer(stream):
        received.append(await read_request(stream))
        await stream.send_all(HELLO)

    upstream = UpstreamPool()
    async with listening(peer) as url:
        origin = Origin.parse(url)
        assert await ask(upstream, origin, (request_head(origin, b"/", [], len(body)), body)) == (200, b"hello")

    assert received[0].endswith(b"\r\n\r\n" + body)
    upstream.close()


async def test_refused_connection_says_where():
    """A port nobody listens on."""
    upstream = UpstreamPool()
    with pytest.raises(UpstreamConnectionError, match=r"cannot connect to the neuron at 127\.0\.0\.1:1"):
        await ask(upstream, Origin.parse("http://127.0.0.1:1"))

    assert upstream.in_use == 0


@pytest.mark.parametrize("host", ["beast..lan", "a" * 64, "."])
async def test_host_that_is_no_name_is_like_one_that_is_not_there(host):
    """A neuron says where its model is; resolvers raise a UnicodeError for these."""
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
def test_origin_knows_its_host_header(url, authority):
    """As RFC 9110 section 7.2 wants it: without a default port."""
    assert Origin.parse(url).authority == authority


@pytest.mark.parametrize("url", ["beast:13131", "ftp://beast", "http://", ""])
def test_origin_refuses_what_is_no_http_url(url):
    """Never a connection to nowhere."""
    with pytest.raises(ValueError, match="not an http"):
        Origin.parse(url)
