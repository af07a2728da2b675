"""A neuron's response: every framing, cut at every byte, and malformed ones. In memory."""

import gzip
import zlib

import pytest
from fakes import zstd
from fakes.exchanges import ORIGIN, REQUEST, ask, piecemeal
from fakes.scripted import MemoryNetwork, answering, chunked, with_length

from gateway.config.settings import DeadlineSettings
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.http.response_parser import DECODED_PIECE_BYTES, HEADER_LIMIT_BYTES

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
async def test_body_is_the_same_in_every_framing_and_at_every_cut(nursery, answer, size):
    """By length, in chunks, with extensions and trailers, until close, and after 1xx responses."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(answer, size)).connect)

    assert await ask(upstream) == (200, b"hello")
    upstream.close()


async def test_headers_of_1xx_responses_and_trailers_are_dropped(nursery):
    """Only the final response's headers are kept."""
    answer = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + chunked(b"x", end=b"0\r\nx-sum: 1\r\n\r\n")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(answer)).connect)
    with upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as exchange:
        response = await exchange.response()
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
async def test_incomplete_response_is_an_error_and_not_retried(nursery, answer):
    """After the first byte, the neuron may have processed the request."""
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
async def test_malformed_response_is_an_error(nursery, answer, size):
    """A response that two parsers could read differently is not passed on."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(answer, size)).connect)
    with pytest.raises(UpstreamMalformedResponse):
        await ask(upstream)

    assert upstream.statistics()["in_use"] == upstream.statistics()["idle"] == 0


def with_head_of(size):
    """Return a response whose head, from the status line to the empty line, has `size` bytes."""
    around = len(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-padding: \r\n\r\n")
    return b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-padding: " + b"x" * (size - around) + b"\r\n\r\nhello"


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_000])
async def test_header_limit_is_exact_at_every_cut(nursery, size):
    """64 KiB are accepted, one byte more is an error."""
    for head_bytes, accepted in ((HEADER_LIMIT_BYTES, True), (HEADER_LIMIT_BYTES + 1, False)):
        upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(with_head_of(head_bytes), size)).connect)
        if accepted:
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
async def test_trailers_chunk_extensions_and_1xx_responses_are_limited(nursery, endless):
    """A neuron cannot make the parser's memory grow without limit."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(endless, 1000)).connect)
    with pytest.raises(UpstreamMalformedResponse):
        await ask(upstream)


async def test_header_limit_does_not_apply_to_the_body(nursery):
    """Nor to a body of many small chunks."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(chunked(*[b"0123456789"] * 20_000), 4096)).connect)

    assert await ask(upstream) == (200, b"0123456789" * 20_000)
    upstream.close()


@pytest.mark.parametrize("first", [HELLO, chunked(b"hello")])
@pytest.mark.parametrize("second", [HELLO, b"junk", b"HTTP/1.1 200 OK\r\n", chunked(b"other")])
async def test_bytes_after_a_complete_response_are_dropped(nursery, first, second):
    """In the same read: they belong to no request, and the connection is not used again."""
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(first + second)).connect)

    assert await ask(upstream) == (200, b"hello")
    assert upstream.statistics() == {"idle": 0, "in_use": 0, "opened": 1, "reused": 0}


@pytest.mark.parametrize("size", [1, 100_000])
async def test_chunks_before_a_malformed_one_are_received_first(nursery, size):
    """Also when all of them come in one read, with the head or after it."""
    answer = chunked(b"he", b"llo", end=b"zz\r\n")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(answer, size)).connect)
    received = b""
    with (
        pytest.raises(UpstreamMalformedResponse, match="is not valid HTTP"),
        upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as exchange,
    ):
        response = await exchange.response()
        while piece := await response.receive():
            received += piece

    assert received == b"hello"
    assert upstream.statistics()["idle"] == 0


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_000])
async def test_long_chunk_extension_before_body_bytes_is_an_error(nursery, size):
    """Although body bytes follow in the same read."""
    answer = chunked(b"x", end=b"5;" + b"x" * 140_000 + b"\r\nhello\r\n0\r\n\r\n")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(answer, size)).connect)
    with pytest.raises(UpstreamMalformedResponse, match="more than 65536 bytes"):
        await ask(upstream)


def zipped(data):
    """With no time in it: ids of tests are made of such bytes."""
    return gzip.compress(data, mtime=0)


PLAIN = b'{"object":"list"}' * 1000


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        ("gzip", zipped(PLAIN)),
        ("X-GZIP", zipped(PLAIN)),
        ("gzip, identity", zipped(PLAIN[:99]) + zipped(PLAIN[99:])),
        ("deflate", zlib.compress(PLAIN)),
        ("deflate", zlib.compress(PLAIN)[2:-4]),
        ("zstd", zstd.compress(PLAIN)),
        ("identity", PLAIN),
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
async def test_coded_body_is_decoded_for_those_who_read_it(nursery, coding, coded, size):
    """Its headers then describe the decoded body."""
    answer = with_length(coded, more=f"content-encoding: {coding}\r\n")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, piecemeal(answer, size)).connect)
    received = b""
    with upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as exchange:
        response = await exchange.response()
        response.decode_body()
        while piece := await response.receive():
            received += piece

    assert received == PLAIN
    assert response.header(b"content-encoding") in {None, b"identity"}
    upstream.close()


@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        ("br", PLAIN),
        ("gzip, gzip", zipped(zipped(PLAIN))),
        ("gzip", PLAIN),
        ("gzip", zipped(PLAIN)[:-1]),
        ("gzip", zipped(PLAIN) + b"junk"),
        ("deflate", zlib.compress(PLAIN) + b"junk"),
        ("zstd", zstd.compress(PLAIN)[:-1]),
        ("zstd", zipped(PLAIN)),
    ],
)
async def test_body_that_cannot_be_decoded_is_malformed(nursery, coding, coded):
    """Unknown codings, several, broken ones and those that are cut short."""
    answer = with_length(coded, more=f"content-encoding: {coding}\r\n")
    upstream = UpstreamPool(connect=MemoryNetwork(nursery, answering(answer)).connect)
    with (
        pytest.raises(UpstreamMalformedResponse),
        upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as exchange,
    ):
        response = await exchange.response()
        response.decode_body()
        while await response.receive():
            pass


async def test_bomb_is_decoded_in_pieces(nursery):
    """A reader with a limit never has more than one piece in memory."""
    bomb = zipped(b" " * 50_000_000)
    upstream = UpstreamPool(
        connect=MemoryNetwork(nursery, answering(with_length(bomb, more="content-encoding: gzip\r\n"))).connect
    )
    with upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as exchange:
        response = await exchange.response()
        response.decode_body()

        assert len(await response.receive()) <= DECODED_PIECE_BYTES
