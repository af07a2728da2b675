"""What a client sees of a gateway on real sockets with a simulated neuron, for every fault that the neuron knows."""

import json
import math
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import accumulate

import httpx
import pytest
import trio
from fakes.patience import PATIENT_DEADLINES, PATIENT_STREAMING, SAFETY_NET_S
from fakes.running import LARGE, PROBE, SMALL, running_gateway, settled
from fakes.scripted import DONE, answering, chunked, delta, listening, read_request, with_length

from gateway.config.settings import RetrySettings
from gateway.http import pool
from gateway.http.pool import Origin, open_stream
from neuron.simulated import faults

CHAT = "/v1/chat/completions"


def a_question(model=SMALL, **more):
    return {"model": model, "messages": PROBE, **more}


def events(answer):
    return [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part.startswith("data: ")]


def text_of(answer):
    """The text of a stream, or of a plain answer."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json()["choices"][0]["message"]["content"]
    chunks = [json.loads(event) for event in events(answer) if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices") or ())


async def metrics_of(cortex):
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return (await client.get(cortex.metrics_url)).text


# Basic behaviour ....................................................................................................


async def test_chat_is_proxied_verbatim(http, beast):
    """A body with a concrete id is sent byte-identical; in one with an alias only `model` is replaced."""
    body = b'{ "messages":[{"role":"user","content":"caf\\u00e9 \xe2\x98\x83"}],\n "temperature":1.0,"model":"%b" }'
    direct = await http.post(CHAT, content=body % SMALL.encode())
    by_alias = await http.post(CHAT, content=body % b"helexa/small")

    assert [received.body for received in beast.requests] == [body % SMALL.encode()] * 2
    assert direct.json()["choices"] == by_alias.json()["choices"]
    assert (by_alias.headers["x-cortex-alias"], by_alias.headers["x-cortex-model"]) == ("helexa/small", SMALL)
    assert "x-cortex-alias" not in direct.headers


async def test_stream_passes_unchanged(http):
    """With its content type and its own terminator, and a header that switches off proxies' buffering."""
    answer = await http.post(CHAT, json=a_question(stream=True))

    assert answer.headers["content-type"] == "text/event-stream"
    assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-cache")
    assert events(answer)[-1] == "[DONE]"
    assert "Tbilisi" in text_of(answer)


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"messages": []}, 400, "missing_model_field", "model"),
        (b"{", 400, "malformed_json", "model"),
        ({"model": "nobody/has-it"}, 404, "model_not_found", "not found"),
        ({"model": "helexa/dead"}, 404, "model_not_found", "model 'nobody/has-it' not found on any node"),
    ],
)
async def test_error_for_an_invalid_request_names_the_fault(http, body, status, code, words):
    """In OpenAI's envelope."""
    answer = await http.post(CHAT, content=body if isinstance(body, bytes) else json.dumps(body))

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert words in answer.json()["error"]["message"]


async def test_no_healthy_node_is_a_503(cortex, http):
    """With Retry-After."""
    await cortex.down()
    answer = await http.post(CHAT, json=a_question())

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "no healthy nodes" in answer.json()["error"]["message"]


async def test_metrics_appear_after_the_first_request_and_not_before(cortex, http):
    """On their own port."""
    assert "cortex_requests_total" not in await metrics_of(cortex)
    await http.post(CHAT, json=a_question())
    await settled(cortex.gateway)

    assert f'cortex_requests_total{{model="{SMALL}",node="beast"}} 1.0' in await metrics_of(cortex)


async def test_quart_routes_answer(http):
    """`HEAD /` as a coding CLI sends it, one model with its slash in both forms, and unknown paths."""
    assert (await http.head("/")).status_code == 200
    assert (await http.get("/ready")).json() == {"ready": True}
    for path in (SMALL, SMALL.replace("/", "%2F"), "helexa/small", "helexa%2Fsmall"):
        assert (await http.get(f"/v1/models/{path}")).json()["id"] == path.replace("%2F", "/")
    unknown = await http.get("/v1/models/nobody/has-it")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    elsewhere = await http.get("/v2/models")
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (404, "not_found")
    assert (await http.get(CHAT)).status_code == 405


async def test_every_inference_path_is_served(http, cortex, beast):
    """Completions, embeddings and rerank besides chat."""
    completion = await http.post("/v1/completions", json={"model": SMALL, "prompt": "What is the capital of Georgia?"})
    embedding = await http.post("/v1/embeddings", json={"model": SMALL, "input": "x"})
    rerank = await http.post("/v1/rerank", json={"model": LARGE, "query": "a", "documents": ["a", "b"]})

    assert "Tbilisi" in completion.json()["choices"][0]["text"]
    assert embedding.json()["data"][0]["object"] == "embedding"
    assert rerank.json()["results"][0]["index"] == 0


# Every fault, with and without a stream .............................................................................


UNSEEN = [
    faults.Informational(count=3),
    faults.NoDone(),
    faults.OddUsage(where="finish"),
    faults.OddUsage(where="choices"),
    faults.OddUsage(where="none"),
    faults.WrongModel(),
    faults.FloatCreated(),
    faults.AnyModel(),
    faults.RunsOn(),
    faults.UntilClose(),
    faults.ContentLength(),
    faults.CloseAfter(),
    faults.CloseAfter(reset=True),
    faults.LateHeaders(),
    faults.Hang(seconds=5),
    faults.SilentPrefill(seconds=5),
    faults.Slow(factor=3),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: type(fault).__name__)
async def test_quirk_of_a_neuron_does_not_affect_its_client(cortex, http, beast, fault, stream):
    """An odd answer arrives complete. Three in a row, because a quirk may affect the next answer."""
    if isinstance(fault, faults.UntilClose) and stream:
        beast.faults.add(faults.NoDone())  # the harder case: only a finish reason ends the stream
    beast.faults.add(fault)
    for _ in range(3):
        answer = await http.post(CHAT, json=a_question(stream=stream))
        assert answer.status_code == 200
        assert "Tbilisi" in text_of(answer)
        assert '"error"' not in answer.text
        assert (events(answer)[-1:] == ["[DONE]"]) is (stream and faults.NoDone not in beast.faults.plan(SMALL))
    assert len(beast.requests) == 3
    await settled(cortex.gateway)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (faults.Refuse(), 502, "upstream_connection_error"),
        (faults.Refuse(reset=True), 502, "upstream_connection_error"),
        (faults.Garbage(), 502, "upstream_malformed_response"),
        (faults.BigHeaders(), 502, "upstream_malformed_response"),
        (faults.HttpError(), 500, None),
        (faults.HttpError(plain=True), 500, None),
        (faults.HttpError(status=422, detail=True), 422, None),
        (faults.HttpError(status=503, text="full", retry_after_s=2), 503, None),
        (faults.NotLoaded(), 404, None),
        (faults.Hang(), 504, "deadline_exceeded"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, faults.SimFault) else None,
)
async def test_fault_before_an_answer_is_a_well_formed_error(tmp_path, beast, fault, status, code, stream):
    """JSON with a fitting status, streaming or not; and the next request is served."""
    beast.faults.add(fault)
    patience = replace(PATIENT_DEADLINES, first_byte_seconds=0.2) if code == "deadline_exceeded" else PATIENT_DEADLINES
    sections = {"deadlines": patience, "retries": RetrySettings(attempts=0)}
    async with running_gateway(tmp_path, [beast], **sections) as cortex, a_client(cortex) as http:
        answer = await http.post(CHAT, json=a_question(stream=stream))
        beast.faults.clear()
        cortex.gateway.poller.poll_soon("beast")
        await _served_again(http)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == ({"detail"} if status == 422 else {"error"})
    if status != 422:
        assert answer.json()["error"].keys() == {"message", "type", "code", "param"}
        assert code in (None, answer.json()["error"]["code"])
    assert answer.headers.get("retry-after") == ("2" if status == 503 else None)


@asynccontextmanager
async def a_client(cortex):
    async with httpx.AsyncClient(base_url=cortex.url, trust_env=False, timeout=60) as client:
        yield client


async def _served_again(http):
    with trio.fail_after(SAFETY_NET_S):
        while (await http.post(CHAT, json=a_question())).status_code != 200:
            await trio.sleep(0.02)


CUTS = [
    faults.Drop(after=3),
    faults.Drop(after=3, how="rst"),
    faults.Drop(after=3, cut="chunk"),
    faults.Drop(after=3, cut="event"),
    faults.MalformedChunk(after=3),
]


@pytest.mark.parametrize("fault", CUTS, ids=lambda fault: f"{type(fault).__name__}-{getattr(fault, 'cut', '')}")
async def test_broken_answer_never_looks_complete(cortex, http, beast, fault):
    """A stream ends in one error event and no `[DONE]`; a plain body is cut off where any client notices."""
    beast.faults.add(fault)
    stream = await http.post(CHAT, json=a_question(stream=True))
    assert [json.loads(event)["error"]["type"] for event in events(stream) if '"error"' in event] == ["api_error"]
    assert '"error"' in events(stream)[-1]
    assert "[DONE]" not in stream.text

    try:
        plain = await http.post(CHAT, json=a_question())
    except httpx.RemoteProtocolError:
        pass
    else:  # it broke before the gateway had to send a byte
        assert plain.status_code == 502
    beast.faults.clear()
    assert (await http.post(CHAT, json=a_question())).status_code == 200
    await settled(cortex.gateway)


@pytest.mark.parametrize("reset", [False, True])
async def test_200_answers_in_a_row_from_a_neuron_that_hangs_up_after_each(cortex, http, beast, reset):
    """Although it advertises keep-alive: no failures, and no request is sent twice. A naive pool failed 59 of 200."""
    beast.speed = 10_000
    beast.faults.add(faults.CloseAfter(reset=reset))
    for number in range(200):
        assert "Tbilisi" in text_of(await http.post(CHAT, json=a_question(stream=number % 2 == 0)))

    await settled(cortex.gateway)
    assert beast.counters["requests"] == 200
    assert "cortex_request_errors_total" not in await metrics_of(cortex)


# Scripted neurons on a real port .....................................................................................


@asynccontextmanager
async def gateway_in_front_of(tmp_path, beast, peer):
    """A gateway that polls `beast` but sends its requests to `peer`; it adds no comments."""
    silent = replace(PATIENT_STREAMING, keepalive_seconds=0)
    async with (
        running_gateway(tmp_path, [beast], streaming=silent) as cortex,
        a_client(cortex) as http,
        listening(peer) as url,
    ):
        origin = Origin.parse(url)
        cortex.gateway.upstream._connect = lambda _: open_stream(origin)
        yield cortex, http


async def test_stream_arrives_as_it_is_made(tmp_path, beast):
    """The client gets each event before the neuron makes the next: nothing buffers."""
    made = [*(delta(f" word {number}") for number in range(10)), DONE]
    arrived = [trio.Event() for _ in made]

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(chunked(end=b""))
        for event, at_the_client in zip(made, arrived, strict=True):
            await stream.send_all(b"%x\r\n%b\r\n" % (len(event), event))
            await at_the_client.wait()
        await stream.send_all(b"0\r\n\r\n")

    got = b""
    async with (
        gateway_in_front_of(tmp_path, beast, peer) as (_, http),
        http.stream("POST", CHAT, json=a_question(stream=True)) as a,
    ):
        with trio.fail_after(SAFETY_NET_S):
            async for piece in a.aiter_raw():
                got += piece
                for event, here in zip(accumulate(made), arrived, strict=True):
                    if got.startswith(event):
                        here.set()

    assert got == b"".join(made)


async def test_reused_connection_that_dies_under_a_request_is_replaced_once(tmp_path, beast, monkeypatch):
    """The idle connection closes when the request is sent; the client still gets its answer."""
    monkeypatch.setattr(pool, "IDLE_LIMIT_S", math.inf)  # even if the test is slow with the next request
    statuses = []
    requests = 0

    async def peer(stream):
        nonlocal requests
        async with stream:
            for count in range(2):
                requests += bool(await read_request(stream))
                if count == 1:
                    return
                await stream.send_all(with_length(b"{}"))

    async with gateway_in_front_of(tmp_path, beast, peer) as (cortex, http):
        for _ in range(6):
            statuses.append((await http.post(CHAT, json=a_question())).status_code)
            await settled(cortex.gateway)
        statistics = cortex.gateway.upstream.statistics()

    assert statuses == [200] * 6
    assert requests == 11  # every request but the first was sent twice
    assert (statistics["opened"], statistics["reused"], statistics["in_use"]) == (6, 5, 0)


async def test_trailers_and_informational_responses_are_not_forwarded(tmp_path, beast):
    """They concern only the neuron and the gateway."""
    answer = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + chunked(delta("x"), end=b"0\r\nx-sum: 1\r\n\r\n")
    async with gateway_in_front_of(tmp_path, beast, answering(answer, answer)) as (_, http):
        for _ in range(2):
            got = await http.post(CHAT, json=a_question(stream=True))
            assert (got.status_code, got.content) == (200, delta("x"))
            assert not {"link", "x-sum", "trailer"} & set(got.headers)


async def test_refusal_while_a_large_body_is_on_its_way_reaches_the_client(tmp_path, beast):
    """The neuron answers 413 after the head; the client does not wait until 16 MiB are sent."""

    async def peer(stream):
        async with stream:
            await stream.receive_some(1000)
            await stream.send_all(with_length(b'{"error":"too long"}', status="413 Content Too Large"))
            await done.wait()

    done = trio.Event()
    async with gateway_in_front_of(tmp_path, beast, peer) as (_, http):
        with trio.fail_after(SAFETY_NET_S):
            answer = await http.post(CHAT, json=a_question(padding="x" * 16 * 1024**2))
        done.set()

    assert (answer.status_code, answer.json()["error"]["message"]) == (413, "too long")
