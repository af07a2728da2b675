"""Basic behaviour of a gateway, as black-box tests over real sockets."""

import hashlib
import json

import httpx
import pytest
import structlog
import trio
from fakes.patience import SAFETY_NET_S
from fakes.running import LARGE, PROBE, SMALL, one_neuron, running_gateway, settled

from neuron.simulated.fleet import neuron

CHAT = "/v1/chat/completions"


@pytest.fixture
async def running(tmp_path):
    async with running_gateway(tmp_path) as gateway:
        yield gateway


@pytest.fixture
async def client(running):
    async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as http:
        yield http


def last_request(running):
    return running.neurons[0].requests[-1]


@pytest.mark.parametrize("model", [SMALL, LARGE])
async def test_body_that_names_a_concrete_model_goes_out_byte_identical(running, client, model):
    """Odd spacing, key order, numbers and escapes included."""
    body = b'{ "x":1.10e1,  "model" : "%b","y":"\\u00e9\\/", "messages":%b}' % (model.encode(), _messages())
    await client.post(CHAT, content=body)

    assert last_request(running).sha256 == hashlib.sha256(body).hexdigest()


def _messages():
    return json.dumps(PROBE).encode()


async def test_alias_changes_only_the_model(running, client):
    """In a body with and without a stream."""
    for stream in (b"true", b"false"):
        template = b'{"stream":%b, "model": "%b", "messages":%b }'
        answer = await client.post(CHAT, content=template % (stream, b"helexa/small", _messages()))
        expected = template % (stream, SMALL.encode(), _messages())
        assert answer.status_code == 200
        assert last_request(running).sha256 == hashlib.sha256(expected).hexdigest()
        assert answer.headers["x-cortex-alias"] == "helexa/small"
        assert answer.headers["x-cortex-model"] == SMALL
        assert answer.headers["x-cortex-node"] == "beast"


@pytest.mark.parametrize(
    ("body", "status", "code", "text"),
    [
        (b"{}", 400, "missing_model_field", "model"),
        (b"[]", 400, "missing_model_field", "model"),
        (b'{"model":"a","model":"b"}', 400, "missing_model_field", "model"),
        (b"", 400, "malformed_json", "model"),
        (b'{"model":', 400, "malformed_json", "model"),
        (b'{"model":"nobody/has-it"}', 404, "model_not_found", "not found"),
        (b'{"model":"helexa/dead"}', 404, "model_not_found", "nobody/has-it"),
    ],
)
async def test_request_that_cannot_be_served_gets_the_reason(client, body, status, code, text):
    """In the envelope, and never with a traceback."""
    answer = await client.post(CHAT, content=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert text in answer.json()["error"]["message"]


async def test_other_methods_and_paths_are_refused_in_the_envelope(client):
    """405 on a path that exists, 404 on one that does not."""
    wrong_method = await client.get(CHAT)
    nowhere = await client.get("/v1/nothing")

    assert (wrong_method.status_code, wrong_method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")


async def test_no_healthy_neuron_is_a_503_before_anything_else(running, client):
    """Also for an unknown model."""
    await running.down()
    answer = await client.post(CHAT, json={"model": "nobody/has-it"})

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "no healthy nodes available" in answer.json()["error"]["message"]
    assert (await client.get("/health")).json()["status"] == "degraded"


async def test_models_are_listed_with_aliases_and_without_dead_ones(client):
    """Sorted by id; an alias copies its target's entry; ids with slashes raw and quoted."""
    listed = (await client.get("/v1/models")).json()
    ids = [entry["id"] for entry in listed["data"]]
    raw = (await client.get("/v1/models/helexa/small")).json()
    quoted = (await client.get("/v1/models/helexa%2Fsmall")).json()

    assert listed["object"] == "list"
    assert ids == sorted(ids)
    assert "helexa/dead" not in ids
    assert raw == quoted
    assert raw["alias_of"] == SMALL
    assert list(raw)[:7] == ["id", "object", "created", "owned_by", "loaded", "feasible_on", "locations"]
    assert (await client.get("/v1/models/nobody/has-it")).json()["error"]["code"] == "model_not_found"


async def test_neuron_gets_no_credentials_of_the_client(running, client):
    """Credentials, cookies, our own, hop-by-hop and unlisted headers are not forwarded; listed ones are."""
    secret = {"authorization": "Bearer k", "cookie": "c=1", "x-api-key": "k", "proxy-authorization": "p"}
    ours = {"x-cortex-model": "forged", "x-helexa-x": "1"}
    hop = {"connection": "keep-alive, x-hop", "x-hop": "1", "te": "trailers", "keep-alive": "1"}
    kept = {"user-agent": "me/1", "x-session-id": "kept", "x-request-id": "mine-1"}
    answer = await client.post(
        CHAT, json={"model": SMALL, "messages": PROBE}, headers={**secret, **ours, **hop, **kept, "x-custom": "1"}
    )
    forwarded = {name.lower(): value for name, value in dict(last_request(running).headers).items()}

    assert not forwarded.keys() & {*secret, *ours, "x-hop", "te", "keep-alive", "x-custom"}
    assert {name: forwarded[name] for name in kept} == kept
    assert forwarded["accept-encoding"] == "identity"
    assert forwarded["host"] == running.gateway.fleet.nodes["beast"].endpoint.removeprefix("http://")
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-cortex-model"] == SMALL


async def test_invalid_request_id_is_replaced(client):
    """It is written to logs: 1 to 128 characters of a small alphabet."""
    for bad in ("a b", "x" * 129, 'a"b'):
        answer = await client.post(CHAT, json={"model": SMALL, "messages": PROBE}, headers={"x-request-id": bad})
        assert answer.headers["x-request-id"] != bad
        assert len(answer.headers["x-request-id"]) == 32


async def test_metrics_appear_with_the_first_request_and_not_before(running, client):
    """Except gauges of catalogue and fleet; and no `_created` series ever."""
    before = (await client.get(running.metrics_url)).text
    await client.post(CHAT, json={"model": "helexa/small", "stream": True, "messages": PROBE})
    await settled(running.gateway)
    after = (await client.get(running.metrics_url)).text
    route = f'{{model="{SMALL}",node="beast"}}'

    assert "cortex_requests" not in before
    assert "cortex_catalogue_generation 1.0" in before
    assert 'cortex_node_healthy{node="beast"} 1.0' in before
    for name in ("requests_total", "request_duration_seconds_count", "time_to_first_token_seconds_count"):
        assert f"cortex_{name}{route} 1.0" in after
    assert f'cortex_alias_requests_total{{alias="helexa/small",model="{SMALL}"}} 1.0' in after
    assert f"cortex_inflight_requests{route} 0.0" in after
    assert "_created" not in after


async def test_each_request_has_exactly_one_terminal_log_event(running, client):
    """Whatever its outcome, with client, model, neuron and duration."""
    with structlog.testing.capture_logs() as logs:
        running.gateway.request_log.log = structlog.get_logger("cortex.request")
        await client.post(CHAT, json={"model": "helexa/small", "messages": PROBE})
        await client.post(CHAT, json={"model": "nobody/has-it"})
        await client.post(CHAT, content=b"{")
        await settled(running.gateway)
    events = [entry for entry in logs if entry["event"] == "request"]

    assert [(entry["status"], entry["outcome"]) for entry in events] == [(200, "ok"), (404, "error"), (400, "error")]
    served = events[0]
    assert (served["alias"], served["model"], served["node"]) == ("helexa/small", SMALL, "beast")
    assert served["completion_tokens"] > 0
    assert {"connect", "first_byte"} <= served["phases_ms"].keys()
    assert {"request_id", "duration_ms", "bytes_in", "bytes_out"} <= served.keys()


async def test_body_beyond_the_limit_is_a_413(running):
    """By its length, before the client sends a byte of it; no neuron gets any of it."""
    async with await trio.open_tcp_stream("127.0.0.1", running.port) as stream:
        await stream.send_all(b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 68157440\r\n\r\n" % CHAT.encode())
        with trio.fail_after(SAFETY_NET_S):
            answer = b""
            while piece := await stream.receive_some():
                answer += piece

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer
    assert list(running.neurons[0].requests) == []


async def test_head_and_ready_answer_api_clients(client):
    """A popular coding CLI begins with `HEAD /`."""
    assert (await client.head("/")).status_code == 200
    assert (await client.get("/ready")).json() == {"ready": True}


async def test_browsers_may_send_requests_from_any_origin_by_default(client):
    """Preflight without auth, and the header on every answer."""
    origin = {"origin": "https://app.example"}
    preflight = await client.options(CHAT, headers={**origin, "access-control-request-method": "POST"})
    answer = await client.post(CHAT, json={"model": SMALL, "messages": PROBE}, headers=origin)

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_poller_discovers_updates_and_prunes(tmp_path):
    """A model that another client loads appears; an unloaded one disappears; a dead neuron is marked."""
    simulated = [*one_neuron(), neuron("benjy", [16384], [], speed=100)]

    def where(data, model):
        places = [place for entry in data if entry["id"] == model for place in entry["locations"]]
        return [place["node"] for place in places if place["status"] == "loaded"]

    async def until_on(client, nodes):
        with trio.fail_after(SAFETY_NET_S):
            while where((await client.get("/v1/models")).json()["data"], SMALL) != nodes:
                await trio.sleep(0.05)

    async with running_gateway(tmp_path, simulated) as running:
        benjy = running.gateway.fleet.nodes["benjy"].endpoint
        async with (
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as client,
            httpx.AsyncClient(base_url=benjy, trust_env=False, timeout=60) as control,
        ):
            await control.post("/models/load", json={"model_id": SMALL, "harness": "llamacpp"})
            await until_on(client, ["beast", "benjy"])
            await control.post("/models/unload", json={"model_id": SMALL})
            await until_on(client, ["beast"])
