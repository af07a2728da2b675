"""Behaviour observed in real engines, on real sockets: a whole gateway in front of one simulated engine."""

import json
import math
from functools import partial

import httpx
import pytest
import trio
from fakes.engine import SimEngine, an_engine_gateway, counted, start_gateway
from fakes.patience import until
from fakes.running import settled
from fakes.scripted import chunked, listening, read_request, with_length

from gateway.config.settings import NeuronSettings
from neuron.simulated import PROBE, PROBE_ANSWER, faults

SMALL, EMBEDDING = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-Embedding-0.6B"
CHAT = "/v1/chat/completions"


@pytest.fixture
def engine():
    return SimEngine(SMALL, EMBEDDING)


def client(url, **headers):
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False)


def question(model=SMALL, **more):
    return {"model": model, "messages": [{"role": "user", "content": PROBE}]} | more


def events(text):
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def text_of(text):
    chunks = [json.loads(event) for event in events(text) if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_engine_gets_only_inference_and_model_list_requests(engine):
    """No discovery, health or endpoint requests: it has none, and they would fill its log with 404s."""
    async with an_engine_gateway(engine) as (_, url), client(url) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        answer = await http.post(CHAT, json=question())
        assert (await http.get("/health")).json()["status"] == "ok"

    assert {entry["id"]: entry["loaded"] for entry in listed} == {SMALL: True, EMBEDDING: True}
    assert answer.json()["choices"][0]["message"]["content"] == PROBE_ANSWER
    assert answer.headers["x-cortex-node"] == "box"
    assert engine.managed == []


async def test_engine_gets_its_own_name_for_the_model_and_its_own_key(engine):
    """The gateway does not forward the client's credentials and sends its own; the rest of the body is unchanged."""
    keys = {"serves": {"ours": SMALL}, "api_key": "for-the-engine"}
    async with an_engine_gateway(engine, **keys) as (_, url), client(url, authorization="Bearer for-us") as http:
        answer = await http.post(CHAT, json=question("ours"))
        unmapped = await http.post(CHAT, json=question(SMALL))

    (received,) = engine.requests
    assert answer.headers["x-cortex-model"] == "ours"
    assert json.loads(received.body) == question(SMALL)
    assert [value for name, value in received.headers if name == "authorization"] == ["Bearer for-the-engine"]
    assert unmapped.status_code == 404


async def test_engine_that_closes_after_every_stream_while_advertising_keep_alive(engine):
    """llama.cpp's server does it 0.1 to 3 ms after the last byte: naive pools failed 59 of 200 requests."""
    engine.faults.add(faults.CloseAfter())
    async with an_engine_gateway(engine) as (gateway, url), client(url) as http:
        for _ in range(100):
            answer = await http.post(CHAT, json=question(stream=True))
            assert (answer.status_code, text_of(answer.text)) == (200, PROBE_ANSWER)
        await settled(gateway)

    assert engine.counters["requests"] == 100  # no request was sent twice


async def test_engine_that_closes_idle_connections_gets_each_request_once(engine):
    """llama.cpp's server and uvicorn close at 5 s, llama.cpp's after 100 answers, unannounced; no client notices."""
    engine.faults.add(faults.CloseEvery(requests=3), faults.CloseIdle(seconds=0.05))
    async with an_engine_gateway(engine) as (gateway, url), client(url) as http:
        for number in range(20):
            answer = await http.post(CHAT, json=question(stream=number % 2 == 0))
            assert answer.status_code == 200
            if number % 5 == 4:  # until the engine has closed its idle connections
                await until(lambda: all(not one.is_quiet() for one in idle_connections(gateway)))
        await settled(gateway)

    assert engine.counters["requests"] == 20


def idle_connections(gateway):
    """The connections that the pool keeps for the next request."""
    return [connection for connections in gateway.upstream._idle.values() for connection in connections]


@pytest.mark.parametrize("stream", [False, True])
async def test_error_with_a_number_as_code_passes_unchanged_and_its_closed_connection_is_replaced(engine, stream):
    """llama.cpp's server closes after every error, unannounced; cortex does not normalise what it passes through."""
    engine.faults.add(faults.HttpError(status=400, text="no messages", numeric=True, times=3))
    async with an_engine_gateway(engine) as (_, url), client(url) as http:
        for _ in range(3):
            answer = await http.post(CHAT, json=question(stream=stream))
            assert answer.status_code == 400
            assert answer.json()["error"] == {"code": 400, "message": "no messages", "type": "server_error"}
        assert (await http.post(CHAT, json=question(stream=stream))).status_code == 200

    assert engine.counters["requests"] == 4


async def test_messages_stream_of_an_engine_keeps_the_order_of_its_blocks(nursery):
    """llama.cpp's own `/v1/messages` starts block 1 before it has stopped block 0; cortex does not reorder them."""
    blocks = (
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_stop"},
    )
    events = b"".join(b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in blocks)

    async def answer(stream):
        if (await read_request(stream)).startswith(b"GET"):
            await stream.send_all(with_length(b'{"data":[{"id":"m"}]}'))
        else:
            await stream.send_all(chunked(events))

    async with listening(answer) as endpoint:
        settings = NeuronSettings("a", endpoint, "openai", engine="llamacpp", dialects=("openai", "anthropic"))
        _, url = await start_gateway(nursery, [settings])
        async with client(url) as http:
            body = {"model": "m", "max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
            got = await http.post("/v1/messages", json=body)
        nursery.cancel_scope.cancel()

    assert (got.status_code, got.content) == (200, events)


async def test_model_that_the_engine_does_not_list_is_a_404(engine):
    """llama.cpp's server answers for every model name with the one it has."""
    engine.faults.add(faults.AnyModel())
    async with an_engine_gateway(engine) as (_, url), client(url) as http:
        answer = await http.post(CHAT, json=question("gpt-4o"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert engine.counters["requests"] == 0


async def test_stream_of_transformers_serve_passes_unchanged(engine):
    """No [DONE], usage on the finish chunk, `name@main`, a float `created`: nothing is changed, all is counted."""
    engine.faults.add(
        faults.NoDone(), faults.OddUsage(), faults.WrongModel(echo=f"{SMALL}@main"), faults.FloatCreated()
    )
    async with an_engine_gateway(engine) as (gateway, url), client(url) as http:
        answer = await http.post(CHAT, json=question(stream=True))
        await counted(gateway, f'cortex_completion_tokens_total{{model="{SMALL}",node="box"}} 2.0')

    chunks = [json.loads(event) for event in events(answer.text)]
    assert text_of(answer.text) == PROBE_ANSWER
    assert "[DONE]" not in answer.text
    assert {chunk["model"] for chunk in chunks} == {f"{SMALL}@main"}
    assert '"created":1767225600.0' in answer.text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_validation_error_of_fastapi_passes_unchanged(engine, stream):
    """422 {"detail"} says what is wrong with the request; an envelope around it would hide where."""
    engine.faults.add(faults.HttpError(status=422, text="Extra inputs are not permitted", detail=True))
    async with an_engine_gateway(engine) as (_, url), client(url) as http:
        answer = await http.post(CHAT, json=question(stream=stream))

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == "Extra inputs are not permitted"


async def test_plain_text_500_is_wrapped_and_its_closed_connection_replaced(engine):
    """Transformers serve answers so for an unknown model. SDKs need JSON, and the next request another connection."""
    engine.faults.add(faults.HttpError(text="Internal Server Error", plain=True, times=1))
    async with an_engine_gateway(engine) as (_, url), client(url) as http:
        wrapped = await http.post(CHAT, json=question())
        fine = await http.post(CHAT, json=question())

    assert (wrapped.status_code, wrapped.headers["content-type"]) == (500, "application/json")
    assert wrapped.json()["error"]["message"] == "Internal Server Error"
    assert fine.status_code == 200


async def test_engine_that_continues_for_a_disconnected_client_is_not_failed(engine):
    """The lease ends with the client, and no engine reports that it still generates: the next request waits in it."""
    slow = SimEngine(SMALL, speed=1e-9)  # until the test makes it fast
    slow.faults.add(faults.RunsOn(times=1))
    async with an_engine_gateway(slow) as (gateway, url), client(url) as http:
        async with trio.open_nursery() as leaving:
            leaving.start_soon(partial(http.post, CHAT, json=question()))
            await until(lambda: slow.residents[SMALL].places.in_flight)
            leaving.cancel_scope.cancel()
        await until(lambda: not gateway.fleet.leases)
        still_at_it = slow.residents[SMALL].places.in_flight
        slow.speed = math.inf
        answer = await http.post(CHAT, json=question())

    assert still_at_it == 1
    assert answer.status_code == 200
    assert list(slow.cancelled) == []


async def test_embeddings_of_an_engine(engine):
    """Every inference path works in the same way."""
    async with an_engine_gateway(engine, serves={"embed": EMBEDDING}) as (_, url), client(url) as http:
        answer = await http.post("/v1/embeddings", json={"model": "embed", "input": ["a", "b"]})

    assert [entry["index"] for entry in answer.json()["data"]] == [0, 1]


async def test_engine_is_used_again_after_an_outage(engine):
    """Its model list is its health check: without it it is down, and with one answer it is healthy."""
    async with an_engine_gateway(engine) as (gateway, url), client(url) as http:
        engine.faults.add(faults.EndpointFails(path="/v1/models"))
        await until(lambda: not gateway.fleet.nodes["box"].healthy)
        assert (await http.post(CHAT, json=question())).status_code == 503
        engine.faults.clear()
        await until(lambda: gateway.fleet.nodes["box"].healthy)
        assert (await http.post(CHAT, json=question())).status_code == 200


async def test_cortex_behind_cortex(engine):
    """One gateway per site, one in front of them: the inner one's models are served as any engine's."""
    async with an_engine_gateway(engine) as (inner, inner_url), trio.open_nursery() as nursery:
        neurons = [NeuronSettings("site", inner_url, "openai", engine="cortex", serves={"site/small": SMALL})]
        outer, url = await start_gateway(nursery, neurons)
        async with client(url) as http:
            listed = [entry["id"] for entry in (await http.get("/v1/models")).json()["data"]]
            answer = await http.post(CHAT, json=question("site/small", stream=True))
        await settled(outer)
        await settled(inner)
        nursery.cancel_scope.cancel()

    assert listed == [EMBEDDING, "site/small"]
    assert text_of(answer.text) == PROBE_ANSWER
    assert (answer.headers["x-cortex-node"], answer.headers["x-cortex-model"]) == ("site", "site/small")
    assert len(answer.headers.get_list("x-cortex-node")) == 1


async def test_base_path_is_where_control_and_inference_go(nursery):
    """For an API behind a prefix: no request goes outside it."""
    requested = []
    bodies = {b"GET": b'{"data":[{"id":"m"}]}', b"POST": b'{"choices":[]}'}

    async def answer(stream):
        async with stream:
            request = await read_request(stream)
            method, path, _ = request.split(b" ", 2)
            requested.append((method, path))
            body = bodies[method]
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
    endpoint = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/team"
    _, url = await start_gateway(nursery, [NeuronSettings("a", endpoint, "openai", base_path="/openai/v3")])
    async with client(url) as http:
        assert (await http.post(f"{CHAT}?x=1", json=question("m"))).status_code == 200
    nursery.cancel_scope.cancel()

    assert set(requested) == {(b"GET", b"/team/openai/v3/models"), (b"POST", b"/team/openai/v3/chat/completions?x=1")}
