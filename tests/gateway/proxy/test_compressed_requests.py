"""Request bodies with a content coding: unpacked within the body limit, JSON and forms alike."""

import dataclasses
import gzip
import json
import os
import zlib

import pytest
from fakes import zstd
from fakes.forms import CONTENT_TYPE, a_file, a_form, a_part, read_form
from fakes.in_memory import BODY, InMemoryGateway
from fakes.scripted import read_request, with_length

from gateway.config.settings import GatewaySettings, Settings

JSON = b'{"object":"chat.completion","choices":[]}'
FORMS = "/v1/audio/transcriptions"


def zipped(data):
    """With no time in it: ids of tests are made of such bytes."""
    return gzip.compress(data, mtime=0)


@pytest.fixture
def received():
    return []


@pytest.fixture
def gateway(nursery, received):
    async def peer(stream):
        while request := await read_request(stream):
            while b"transfer-encoding: chunked" in request and not request.endswith(b"\r\n0\r\n\r\n"):
                request += await stream.receive_some(65536)
            received.append(request.partition(b"\r\n\r\n")[2])
            await stream.send_all(with_length(JSON))

    settings = dataclasses.replace(Settings(), gateway=GatewaySettings(body_limit_mb=1))
    return InMemoryGateway(nursery, {"beast": peer}, settings)


def in_two(compress):
    """Two gzip members or zstd frames, one after the other."""
    return lambda data: compress(data[:9]) + compress(data[9:])


CODINGS = [
    ("gzip", zipped),
    ("GZip", zipped),
    ("x-gzip", in_two(zipped)),
    ("deflate", zlib.compress),
    ("deflate", lambda data: zlib.compress(data)[2:-4]),
    ("zstd", zstd.compress),
    ("zstd", in_two(zstd.compress)),
    ("identity, zstd", zstd.compress),
]


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
async def test_json_is_unpacked(gateway, received, coding, compress):
    """The neuron gets plain JSON, without the header."""
    answer = await gateway.client().ask(compress(json.dumps(BODY).encode()), headers=(f"content-encoding: {coding}",))

    assert answer.status == 200
    assert json.loads(received[0])["messages"] == BODY["messages"]


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
async def test_body_larger_than_one_piece_is_unpacked(gateway, received, coding, compress):
    """Its rest in a thread; noise does not compress."""
    body = json.dumps({**BODY, "noise": os.urandom(200_000).hex()}).encode()
    answer = await gateway.client().ask(compress(body), headers=(f"content-encoding: {coding}",))

    assert answer.status == 200
    assert json.loads(received[0])["noise"] == json.loads(body)["noise"]


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
async def test_bomb_is_refused_at_the_limit(gateway, received, coding, compress):
    """A few KB that unpack to 100 MB."""
    bomb = compress(b'{"model":"m","x":"' + b" " * 100_000_000 + b'"}')
    answer = await gateway.client().ask(bomb, headers=(f"content-encoding: {coding}",))

    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert received == []


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", b"not gzip", 400),
        ("gzip", zipped(b"{}")[:-3], 400),
        ("gzip", zipped(b"{}") + b"junk", 400),
        ("deflate", zlib.compress(b"{}") + b"junk", 400),
        ("zstd", zstd.compress(b"{}" * 99)[:-3], 400),
        ("zstd", b"\x28\xb5\x2f\xfd" + b"\xff" * 20, 400),
        ("gzip", zipped(b"") * 20_000, 400),
        ("gzip", b"", 400),
        ("br", b"{}", 415),
        ("gzip, zstd", b"{}", 415),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", FORMS])
async def test_broken_and_unknown_codings_are_refused(gateway, received, path, coding, body, status):
    """With a reason; nothing is sent to a neuron."""
    content_type = f"content-type: {CONTENT_TYPE.decode()}"
    headers = (f"content-encoding: {coding}", content_type)
    answer = await gateway.client().ask(body, path, headers=headers if path == FORMS else headers[:1])

    assert answer.status == status
    assert received == []


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize(("coding", "compress"), CODINGS[::3])
async def test_form_is_unpacked(gateway, received, coding, compress, size):
    """A small one goes out whole, a large one in chunks."""
    form = a_form(a_part(b"model", b"helexa/small"), a_file(os.urandom(size)))
    headers = (f"content-encoding: {coding}", f"content-type: {CONTENT_TYPE.decode()}")
    answer = await gateway.client().ask(compress(form), FORMS, headers=headers)

    assert answer.status == 200
    if size == 100:
        assert [part.name for part in read_form(received[0])] == [part.name for part in read_form(form)]
