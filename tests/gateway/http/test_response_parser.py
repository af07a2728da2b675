"""A neuron's response: every framing, wherever it is cut, and what is refused. In memory."""

import pytest
from fakes.exchanges import ORIGIN, REQUEST, ask, piecemeal
from fakes.scripted import MemoryNetwork, answering, chunked, with_length

from gateway.config.settings import DeadlineSettings
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.http.response_parser import HEADER_LIMIT_BYTES

HELLO = with_length(b"hello")


@pytest.mark.parametrize(
    "answer",
    [
        HELLO,
        chunked(b"he", b"llo"),
        chunked(b"hello", end=b"0\r\nx-checksum: 1\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;why=not\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + HELLO,
        b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(b"hello"),
        b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhello",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_body_is_the_same_however_it_is_framed_and_cut(nursery, answer, size):
    """Length, chunks, extensions, trailers, until close, after any 1xx: hello."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(answer, size)).connect)

    assert await ask(upstream) == (200, b"hello")
    upstream.close()


async def test_headers_of_an_informational_response_are_not_those_of_the_answer(nursery):
    """Nor are trailers."""
    answer = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + chunked(b"x", end=b"0\r\nx-sum: 1\r\n\r\n")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(answer)).connect)
    async with upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as response:
        while await response.receive():
            pass

    assert response.headers == [(b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")]
    upstream.close()


@pytest.mark.parametrize(
    "answer",
    [
        HELLO[:-1],
        chunked(b"hello", end=b""),
        chunked(b"hello", end=b"0\r\n"),
        chunked(b"hello", end=b"5\r\nhel"),
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"H",
    ],
)
async def test_answer_that_breaks_off_is_an_error_and_not_asked_again(nursery, answer):
    """Once a byte has come, nobody knows what the neuron did."""
    network = MemoryNetwork(nursery, piecemeal(answer))
    upstream = UpstreamPool(connect=network.connect)
    with pytest.raises(UpstreamConnectionError, match="in the middle of its response"):
        await ask(upstream)

    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\nfoo: bar\n\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        chunked(b"hello", end=b"zz\r\nhello\r\n"),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
async def test_answer_that_is_not_http_is_refused(nursery, answer, size):
    """Whatever two parsers could read in two ways is not passed on."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(answer, size)).connect)
    with pytest.raises(UpstreamMalformedResponse):
        await ask(upstream)

    assert upstream.statistics()["in_use"] == upstream.statistics()["idle"] == 0


def with_head_of(size):
    """A response whose head, from status line to blank line, has so many bytes."""
    around = len(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-padding: \r\n\r\n")
    return b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-padding: " + b"x" * (size - around) + b"\r\n\r\nhello"


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_000])
async def test_header_limit_is_exact_however_the_head_is_cut(nursery, size):
    """64 KiB pass, one byte more is refused (contract section 13)."""
    for head_bytes, is_fine in ((HEADER_LIMIT_BYTES, True), (HEADER_LIMIT_BYTES + 1, False)):
        upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(with_head_of(head_bytes), size)).connect)
        if is_fine:
            assert await ask(upstream) == (200, b"hello")
        else:
            with pytest.raises(UpstreamMalformedResponse, match="more than 65536 bytes of headers"):
                await ask(upstream)
        upstream.close()


@pytest.mark.parametrize(
    "endless",
    [
        chunked(b"x", end=b"0\r\n" + b"x-trailer: 1\r\n" * 10_000),
        chunked(b"x", end=b"1;" + b"x" * 100_000),
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000,
    ],
)
async def test_trailers_extensions_and_informational_responses_have_an_end(nursery, endless):
    """Nothing that a neuron sends beside the body can grow without limit."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(endless, 1000)).connect)
    with pytest.raises(UpstreamMalformedResponse):
        await ask(upstream)


async def test_body_longer_than_any_limit_on_heads_passes(nursery):
    """The limit is for what surrounds it; many small chunks are a body too."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(chunked(*[b"0123456789"] * 20_000), 4096)).connect)

    assert await ask(upstream) == (200, b"0123456789" * 20_000)
    upstream.close()
