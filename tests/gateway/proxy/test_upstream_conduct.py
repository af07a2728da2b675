"""Answers that are about the gateway's own way of asking: credentials, redirects, compressed bodies."""

import gzip
import json
import zlib

import pytest
from fakes import zstd
from fakes.forms import CONTENT_TYPE, a_file, a_form, a_part
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, chunked, delta, read_request, with_length

from catalogue.load import parse

CHAT, MESSAGES, FORMS = "/v1/chat/completions", "/v1/messages", "/v1/audio/transcriptions"
BODY = {"model": "helexa/small", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
JSON = b'{"object":"chat.completion","choices":[{"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'


def answering_paths(answers, received=None):
    """A neuron that answers by path; the last answer is for every other path."""

    async def peer(stream):
        while request := await read_request(stream):
            path = request.split(b" ", 2)[1].decode()
            if received is not None:
                received.append((path, request.partition(b"\r\n\r\n")[2]))
            await stream.send_all(answers.get(path, list(answers.values())[-1]))

    return peer


def moved(status, location):
    return with_length(b"", status=f"{status} Moved", more=f"location: {location}\r\n")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("status", ["401 Unauthorized", "407 Proxy Authentication Required"])
async def test_refused_credentials_are_the_operators_affair(nursery, autojump_clock, path, status):
    """A 502 with a code of its own: the client's key is not at fault, and no part of the engine's key shows."""
    refusal = b'{"error":{"message":"Incorrect API key: sk-123"}}'
    answer = with_length(refusal, status=status, more="www-authenticate: Basic\r\n")
    gateway = InMemoryGateway(nursery, {"beast": answering_paths({path: answer})})
    answer = await gateway.client().ask(BODY, path)

    assert answer.status == 502
    assert b"upstream_auth_failed" in answer.body or path == MESSAGES
    assert b"sk-123" not in answer.body
    assert "www-authenticate" not in answer.headers


async def test_another_replica_answers_where_one_refuses_the_credentials(nursery, autojump_clock):
    """Only that one's key is wrong."""
    bad = answering_paths({CHAT: with_length(b"{}", status="401 Unauthorized")})
    gateway = InMemoryGateway(nursery, {"a": bad, "b": answering_paths({CHAT: with_length(JSON)})})
    answers = [await gateway.client().ask(BODY) for _ in range(2)]

    assert [answer.status for answer in answers] == [200, 200]


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("location", [CHAT + "/", "http://beast:13131/v1/chat/completions/", "completions/"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_redirect_within_the_origin_is_followed(nursery, autojump_clock, path, status, location):
    """With the same body, translated or not."""
    received = []
    answers = {CHAT: moved(status, location), CHAT + "/": with_length(JSON)}
    gateway = InMemoryGateway(nursery, {"beast": answering_paths(answers, received)})
    answer = await gateway.client().ask(BODY, path)

    assert answer.status == 200
    assert [at for at, _ in received] == [CHAT, CHAT + "/"]
    assert received[0][1] == received[1][1]


@pytest.mark.parametrize(
    ("status", "location"),
    [
        (301, CHAT + "/"),
        (302, "/x"),
        (303, "/x"),
        (304, "/x"),
        (307, "http://192.0.2.7/secret"),
        (308, CHAT),
        (300, "/x"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_other_redirects_are_a_502_for_the_operator(nursery, autojump_clock, path, status, location):
    """Never a 3xx to the client, nor an address; a second redirect is not followed either."""
    gateway = InMemoryGateway(nursery, {"beast": answering_paths({CHAT: moved(status, location)})})
    answer = await gateway.client().ask(BODY, path)

    assert answer.status == 502
    assert f"redirect ({status})".encode() in answer.body
    assert b"192.0.2.7" not in answer.body
    assert "location" not in answer.headers


@pytest.mark.parametrize("size", [100, 150_000])
async def test_form_is_sent_again_after_a_redirect(nursery, autojump_clock, size):
    """As long as all of it is still here."""
    received = []
    answers = {FORMS: moved(307, FORMS + "/"), FORMS + "/": with_length(b'{"text":"x"}')}
    gateway = InMemoryGateway(nursery, {"beast": answering_paths(answers, received)})
    form = a_form(a_part(b"model", b"helexa/small"), a_file(b"x" * size))
    answer = await gateway.client().ask(form, FORMS, headers=(f"content-type: {CONTENT_TYPE.decode()}",))

    assert (answer.status, answer.body) == (200, b'{"text":"x"}')


CODED = [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd.compress)]


@pytest.mark.parametrize(("coding", "compress"), [*CODED, ("br", bytes)])
async def test_coded_answer_passes_unread(nursery, autojump_clock, coding, compress):
    """Byte for byte, with its header: the client must decode it."""
    answer = with_length(compress(JSON), more=f"content-encoding: {coding}\r\n")
    gateway = InMemoryGateway(nursery, {"beast": answering_paths({CHAT: answer})})
    got = await gateway.client().ask(BODY)

    assert (got.status, got.headers["content-encoding"], got.body) == (200, coding, compress(JSON))


@pytest.mark.parametrize(("coding", "compress"), CODED)
async def test_coded_answer_is_decoded_where_it_is_read(nursery, autojump_clock, coding, compress):
    """To be translated; so are refusals, and streams, into which comments may be put."""
    more = f"content-encoding: {coding}\r\n"
    refusal = compress(b'{"error":{"message":"too long"}}')
    answers = {
        CHAT: with_length(compress(JSON), more=more),
        "/v1/completions": with_length(refusal, status="400 Bad Request", more=more),
        "/v1/embeddings": chunked(compress(delta("x") + DONE), more=more),
    }
    gateway = InMemoryGateway(nursery, {"beast": answering_paths(answers)})
    translated = await gateway.client().ask(BODY, MESSAGES)
    refused = await gateway.client().ask(BODY, "/v1/completions")
    streamed = await gateway.client().ask(BODY, "/v1/embeddings", stream=True)

    assert (translated.status, json.loads(translated.body)["content"][0]["text"]) == (200, "x")
    assert (refused.status, refused.error["message"]) == (400, "too long")
    assert (streamed.status, streamed.body) == (200, delta("x") + DONE)
    assert all("content-encoding" not in answer.headers for answer in (translated, refused, streamed))


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "gzip"])
async def test_answer_that_cannot_be_decoded_is_a_502(nursery, autojump_clock, coding):
    """If it must be read."""
    answer = with_length(b"no such thing", more=f"content-encoding: {coding}\r\n")
    gateway = InMemoryGateway(nursery, {"beast": answering_paths({CHAT: answer})})

    assert (await gateway.client().ask(BODY, MESSAGES)).status == 502


@pytest.mark.parametrize("size", [100, 400_000])
async def test_form_to_an_alias_with_params_ignores_them(nursery, autojump_clock, size):
    """A form is not JSON, whether it was in memory as a whole or not."""
    received = []
    gateway = InMemoryGateway(nursery, {"beast": answering_paths({FORMS: with_length(b'{"text":"x"}')}, received)})
    policy = f'[aliases]\nx = {{ target = "{SMALL}", params = {{ temperature = 0.2 }}, force = {{ seed = 7 }} }}'
    gateway.catalogue.current = parse(policy.encode(), path="models.toml", generation=1, loaded_at=0.0)
    form = a_form(a_part(b"model", b"x"), a_file(b"x" * size))
    answer = await gateway.client().ask(form, FORMS, headers=(f"content-type: {CONTENT_TYPE.decode()}",))

    assert answer.status == 200
    assert b"temperature" not in received[0][1]
