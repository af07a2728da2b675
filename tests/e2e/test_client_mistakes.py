"""Common client mistakes: repeated slashes, a `/v1` too many or too few, old HTTP, compressed bodies.

The gateway serves what is unambiguous, and explains everything else so that the user can correct it.
"""

import gzip
import json

import anthropic
import httpx
import openai
import pytest
import trio
from fakes.running import LARGE, PROBE, SMALL

from gateway.proxy.endpoints import ENDPOINTS
from neuron.simulated import faults

CHAT = "/v1/chat/completions"
ASK = {"model": "helexa/small", "messages": PROBE}


async def exchange(cortex, request):
    """Send these bytes and return everything until the connection closes."""
    async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream:
        await stream.send_all(request)
        return b"".join([piece async for piece in stream])


# Paths ................................................................................................................


@pytest.mark.parametrize("path", [f"{CHAT}/", f"/{CHAT}", "/v1//chat/completions", "//v1//chat//completions//"])
async def test_repeated_slashes_are_accepted(cortex, http, beast, path):
    """A base URL with a trailing slash produces two; the neuron gets the usual path."""
    answer = await http.post(cortex.url + path, json=ASK)

    assert "Tbilisi" in answer.json()["choices"][0]["message"]["content"]
    assert [received.path for received in beast.requests] == [CHAT]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/", None),
        ("//v1/models", None),
        ("/v1//models/helexa/small", "helexa/small"),
        ("/v1/models//helexa%2Fsmall", "helexa/small"),
    ],
)
async def test_repeated_slashes_are_accepted_by_the_model_list(cortex, http, path, model):
    """Slashes inside a model id are kept."""
    answer = await http.get(cortex.url + path)

    assert answer.json()["object"] == ("list" if model is None else "model")
    assert model is None or answer.json()["id"] == model
    assert (await http.get("/v1/models/helexa//small")).status_code == 404


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v1/chat/completions", CHAT),
        ("/chat/completions", CHAT),
        ("/completions", "/v1/completions"),
        ("/api/v1/chat/completions/", CHAT),
        ("/openai/deployments/helexa/chat/completions?api-version=1", CHAT),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/embeddings", "/v1/embeddings"),
    ],
)
async def test_404_for_a_wrong_base_url_names_the_right_path(http, beast, path, meant):
    """The message also shows the right base URLs."""
    answer = await http.post(path, json=ASK)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert f"did you mean {meant}?" in answer.json()["error"]["message"]
    assert not beast.requests


async def test_the_sdks_show_their_user_that_hint(cortex):
    """Each SDK with its typical mistake, in its own exception."""

    def request_with_a_repeated_v1():
        with anthropic.Anthropic(base_url=f"{cortex.url}/v1", api_key="k", max_retries=0) as sdk:
            sdk.messages.create(max_tokens=9, **ASK)

    def request_without_v1():
        with openai.OpenAI(base_url=cortex.url, api_key="k", max_retries=0) as sdk:
            sdk.chat.completions.create(**ASK)

    with pytest.raises(anthropic.NotFoundError, match="did you mean /v1/messages"):
        await trio.to_thread.run_sync(request_with_a_repeated_v1)
    with pytest.raises(openai.NotFoundError, match="did you mean /v1/chat/completions"):
        await trio.to_thread.run_sync(request_without_v1)


async def test_stored_responses_are_not_found(http):
    """The error says that cortex stores no responses."""
    answer = await http.get("/v1/responses/resp_123")

    assert answer.status_code == 404
    assert "does not store responses" in answer.json()["error"]["message"]


# Methods ..............................................................................................................


@pytest.mark.parametrize("path", [path for path in ENDPOINTS if path.startswith("/v1/")])
async def test_405_names_the_allowed_methods(http, path):
    """In `Allow` and in the message; `OPTIONS` has the same `Allow`."""
    wrong = await http.get(path)
    options = await http.options(path)

    assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")
    assert "use POST" in wrong.text
    assert (options.status_code, options.headers["allow"], options.content) == (204, "OPTIONS, POST", b"")


async def test_405_on_quart_routes_names_the_allowed_methods(http):
    """HEAD is allowed wherever GET is."""
    answer = await http.post("/v1/models", json={})

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert answer.json()["error"]["code"] == "method_not_allowed"


# Bodies and headers ...................................................................................................


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_body_in_an_unknown_coding_is_refused_in_words(http, beast, path):
    """415 that names the codings that would do, in either dialect; gzip is one of them."""
    headers = {"content-encoding": "br", "content-type": "application/json"}
    answer = await http.post(path, content=b"anything", headers=headers)
    plain = await http.post(CHAT, json=ASK, headers={"content-encoding": "identity"})
    zipped = await http.post(
        CHAT, content=gzip.compress(json.dumps(ASK).encode()), headers={"content-encoding": "gzip"}
    )

    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate, zstd")
    assert "content-encoding 'br'" in answer.json()["error"]["message"]
    assert (plain.status_code, zipped.status_code) == (200, 200)
    assert len(beast.requests) == 2


async def test_client_keys_are_not_forwarded(http, beast):
    """Neither OpenAI's, Anthropic's, Azure's or Google's keys nor account headers."""
    keys = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie")
    request_log = ("openai-organization", "openai-project")
    await http.post(CHAT, json=ASK, headers=dict.fromkeys((*keys, *request_log), "secret"))

    assert b"secret" not in repr(beast.requests[0].headers).encode()


async def test_http_1_0_gets_whole_answers_and_streams(cortex):
    """Without chunks, which HTTP/1.0 does not have; a stream ends with the connection."""
    body = json.dumps(ASK).encode()
    head = f"POST {CHAT} HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    streaming = json.dumps({**ASK, "stream": True}).encode()
    stream_head = f"POST {CHAT} HTTP/1.0\r\ncontent-length: {len(streaming)}\r\n\r\n".encode()

    whole = await exchange(cortex, head + body)
    stream = await exchange(cortex, stream_head + streaming)

    assert b"Tbilisi" in whole
    assert b"transfer-encoding" not in stream
    assert stream.endswith(b"data: [DONE]\n\n")


async def test_client_that_waits_for_100_continue_gets_it(cortex):
    """If the request cannot be served, the client gets the error instead."""
    body = json.dumps(ASK).encode()
    lines = f"host: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n"

    async with await trio.open_tcp_stream("127.0.0.1", cortex.port) as stream:
        await stream.send_all(f"POST {CHAT} HTTP/1.1\r\n{lines}\r\n".encode())
        first = await stream.receive_some(1000)
        await stream.send_all(body)
        rest = b"".join([piece async for piece in stream])
    refused = await exchange(cortex, f"POST {CHAT} HTTP/1.1\r\n{lines}content-encoding: br\r\n\r\n".encode())

    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b" 200 OK" in rest
    assert refused.startswith(b"HTTP/1.1 415 ")


async def test_optional_fields_may_be_null(http, beast):
    """SDKs of typed languages send every field, most of them null."""
    nulls = dict.fromkeys(("stream", "stream_options", "tools", "tool_choice", "max_tokens", "stop", "user"))
    answer = await http.post(CHAT, json={**ASK, **nulls, "max_completion_tokens": 4})

    assert answer.json()["usage"]["completion_tokens"] == 4
    assert json.loads(beast.requests[0].body)["stream_options"] is None


# Lists ................................................................................................................


async def test_list_of_models_in_pages(cortex, http):
    """The `anthropic` SDK reads every page. OpenAI's API has no pages, so the parameters have no effect there."""

    def walk():
        with anthropic.Anthropic(base_url=cortex.url, api_key="k", max_retries=0) as sdk:
            return [model.id for model in sdk.models.list(limit=2)], sdk.models.list().has_more

    ids, more = await trio.to_thread.run_sync(walk)
    listed = (await http.get("/v1/models", params={"limit": 1, "after": "x"})).json()["data"]

    assert ids == sorted(ids) == [entry["id"] for entry in listed]
    assert {SMALL, LARGE, "helexa/small", "helexa/large"} <= set(ids)
    assert not more


@pytest.mark.parametrize(
    ("query", "found", "more"),
    [
        ({"limit": "1"}, slice(0, 1), True),
        ({"after_id": SMALL}, slice(1, 4), False),
        ({"before_id": SMALL}, slice(0, 0), False),
        ({"before_id": "helexa/small", "limit": "1"}, slice(2, 3), True),
        ({"after_id": "Qwen/gone", "limit": "2"}, slice(2, 4), False),
    ],
)
async def test_page_begins_and_ends_at_the_given_ids(http, query, found, more):
    """Even at the id of a model that no longer exists."""
    ids = [SMALL, LARGE, "helexa/large", "helexa/small"]
    page = (await http.get("/v1/models", params=query, headers={"anthropic-version": "2023-06-01"})).json()

    assert [model["id"] for model in page["data"]] == ids[found]
    assert page["has_more"] is more
    assert (page["first_id"], page["last_id"]) == (
        (page["data"][0]["id"], page["data"][-1]["id"]) if page["data"] else (None, None)
    )


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "1.5", "9" * 5000, "\u0663"])
async def test_invalid_page_limit_is_refused(http, limit):
    """In Anthropic's error format."""
    answer = await http.get("/v1/models", params={"limit": limit}, headers={"anthropic-version": "2023-06-01"})

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_httpx_client_with_a_base_url_that_ends_in_a_slash(cortex):
    """The case of `aider`, LangChain and others, with httpx, which they use."""
    async with httpx.AsyncClient(base_url=f"{cortex.url}/v1/", trust_env=False, timeout=60) as client:
        answer = await client.post("/chat/completions", json=ASK)

    assert answer.status_code == 200


# What a translation leaves out...

MESSAGES = {"model": "helexa/small", "messages": PROBE, "max_tokens": 20, "context_management": {}}
RESPONSES = {"model": "helexa/small", "input": "hi", "truncation": "auto"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        ("/v1/messages", MESSAGES, "context_management"),
        ("/v1/responses", RESPONSES, "truncation"),
        ("/v1/messages", {**MESSAGES, "context_management": None}, None),
        (CHAT, {**ASK, "context_management": {}}, None),
    ],
)
async def test_what_a_translation_leaves_out_is_named_on_every_answer(http, beast, path, body, ignored, stream):
    """On a whole answer, on a stream, and on the neuron's refusal. What passes through is the neuron's affair."""
    served = await http.post(path, json={**body, "stream": stream})
    beast.faults.add(faults.HttpError(status=400, text="no"))
    refused = await http.post(path, json={**body, "stream": stream})

    assert (served.status_code, refused.status_code) == (200, 400)
    assert served.headers.get("x-cortex-ignored") == refused.headers.get("x-cortex-ignored") == ignored
