"""The path of a request, in memory: one client, the proxy, and a neuron that each test scripts; its log and metrics."""

import json
import re

import pytest
import trio
from fakes.in_memory import SMALL
from fakes.proxy_clients import JSON, raw_ask, recording
from fakes.scripted import DONE, ROLE, answering, chunked, delta, read_request, with_length
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import (
    StreamingSettings,
)
from gateway.http.sse import KEEP_ALIVE
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

pytestmark = pytest.mark.usefixtures("fresh_loggers")
EVENTS = (ROLE, delta("Tbi"), delta("lisi"), b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', DONE)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
LOG_FIELDS = {
    "request_id", "path", "alias", "model", "node", "status", "outcome", "stream", "duration_ms", "phases_ms",
    "bytes_in", "bytes_out",
}  # fmt: skip


def breaking_off(answer, end=b""):
    """A neuron that sends `answer`, a second later `end`, and closes."""

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(answer)
        await trio.sleep(1)
        await stream.send_all(end)
        await stream.aclose()

    return peer


def samples(gateway):
    """All sample lines of the metrics."""
    return [line for line in gateway.metrics.expose().decode().splitlines() if not line.startswith("#")]


# The request to the neuron...


@pytest.mark.parametrize(
    ("body", "sent_on"),
    [
        (b'{"model": "Qwen/Qwen3-1.7B" ,"temperature":1e400,\t"x":"\\ud800"}', None),
        (b'{"a":{"model":"helexa/small"},"model":"helexa/small","b":1.0}', b'{"a":{"model":"helexa/small"},"model":"Qwen/Qwen3-1.7B","b":1.0}'),  # noqa: E501 - a body and what becomes of it, side by side
        (b'{"mod\\u0065l":"helexa\\/small"}', b'{"mod\\u0065l":"Qwen/Qwen3-1.7B"}'),
    ],
)  # fmt: skip
async def test_body_is_passed_on_unchanged_but_for_an_aliased_model(autojump_clock, before, body, sent_on):
    """A model id changes nothing; an alias changes that one value."""
    received = []
    gateway = before(recording(received, with_length(JSON)))
    answer = await raw_ask(gateway, body=body)

    assert (answer.status, answer.body) == (200, JSON)
    assert received[0].partition(b"\r\n\r\n")[2] == (sent_on or body)


async def test_neuron_gets_the_clients_headers_without_hop_by_hop_and_credentials(autojump_clock, before):
    """Only the listed ones, and none that `connection` names; identity encoding and a request id are added."""
    received = []
    gateway = before(recording(received, with_length(JSON)))
    secret = ["authorization: Bearer s", "cookie: s", "x-api-key: s", "proxy-authorization: s", "x-helexa-who: s"]
    hops = ["connection: X-Hop, keep-alive", "x-hop: s", "keep-alive: 5", "te: trailers", "upgrade: h2c", "expect: s"]
    ours = ["x-cortex-node: s", "accept-encoding: gzip", "x-request-id: mine-1", "trailer: s"]
    await raw_ask(gateway, *secret, *hops, *ours, "Content-Type: application/json", "x-other: dropped", "accept: */*")

    head = received[0].partition(b"\r\n\r\n")[0].decode()
    assert head.splitlines()[0] == "POST /v1/chat/completions HTTP/1.1"
    assert sorted(head.splitlines()[1:]) == [
        "accept-encoding: identity",
        "accept: */*",
        "content-length: 27",
        "content-type: application/json",
        "host: beast:13131",
        "x-request-id: mine-1",
    ]


@pytest.mark.parametrize(
    "spelled", ["/v1/embeddings", "/v1/%65mbeddings", "/v1%2fembeddings", "http://x/v1/embeddings"]
)
async def test_neuron_gets_the_endpoints_path_and_the_clients_query(autojump_clock, before, spelled):
    """However the client spelled the path."""
    received = []
    await raw_ask(before(recording(received, with_length(JSON))), path=f"{spelled}?a=%2F&b")

    assert received[0].startswith(b"POST /v1/embeddings?a=%2F&b HTTP/1.1\r\n")


# The response to the client...


@pytest.mark.parametrize(
    ("sent", "kept"), [("mine-1:a.b_c", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False)]
)
async def test_valid_request_id_of_the_client_is_kept(autojump_clock, before, sent, kept):
    """Otherwise the gateway makes one, so that two logs can always be joined."""
    answer = await raw_ask(before(answering(with_length(JSON))), f"x-request-id: {sent}")
    request_id = answer.headers["x-request-id"]

    assert (request_id == sent) is kept
    assert kept or re.fullmatch("[0-9a-f]{32}", request_id)


async def test_client_gets_the_neurons_headers_without_hop_by_hop_ones(autojump_clock, before):
    """Only the listed ones; cookies and `server` are not. The gateway's own headers replace the neuron's."""
    hops = "connection: keep-alive, X-Hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-authenticate: x\r\n"
    own = "x-cortex-node: liar\r\nx-request-id: its\r\nserver: llama.cpp\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n"
    gateway = before(answering(with_length(JSON, more=hops + own)))
    client = gateway.client()
    await client.send()
    head = (await client._until(b"\r\n\r\n")).decode()
    names = sorted(line.partition(":")[0] for line in head.splitlines()[1:-1])

    assert names == sorted(
        [
            "content-type",
            "content-length",
            "x-request-id",
            "x-cortex-model",
            "x-cortex-node",
            "x-cortex-alias",
            "server-timing",
            "connection",
            "date",
        ]
    )
    assert "x-cortex-node: beast\r\n" in head
    assert f"x-cortex-model: {SMALL}\r\n" in head
    assert "x-cortex-alias: helexa/small\r\n" in head


async def test_stream_passes_unchanged_with_the_neurons_content_type(autojump_clock, before):
    """No charset is added or removed; a header switches off nginx's buffering."""
    for kind in ("text/event-stream", "text/event-stream; charset=utf-8"):
        gateway = before(answering(chunked(*EVENTS, kind=kind, more="cache-control: max-age=60\r\n")))
        answer = await gateway.client().ask(stream=True)

        assert answer.body == b"".join(EVENTS)
        assert answer.headers["content-type"] == kind
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
        await gateway.idle()


async def test_chunks_are_relayed_as_they_arrive(autojump_clock, before):
    """A token per second arrives as a token per second; the role chunk waits for the first."""

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(chunked(ROLE, end=b""))
        for _ in range(5):
            await trio.sleep(0.9)
            await stream.send_all(chunked(delta("x"), end=b"").partition(b"\r\n\r\n")[2])
        await stream.send_all(b"0\r\n\r\n")

    answer = await before(peer).client().ask(stream=True)

    assert [round(at, 1) for at, _ in answer.arrivals] == [0.9, 1.8, 2.7, 3.6, 4.5]
    assert answer.arrivals[0][1] == ROLE + delta("x")


@pytest.mark.parametrize(
    "answer",
    [
        chunked(*EVENTS),
        chunked(b"".join(EVENTS)),
        with_length(b"".join(EVENTS), kind="text/event-stream"),
        UNTIL_CLOSE + b"".join(EVENTS),
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + chunked(*EVENTS, end=b"0\r\nx-trailer: 1\r\n\r\n"),
    ],
)
async def test_stream_is_complete_with_every_framing(autojump_clock, before, answer):
    """Chunked, with a length, or until close; 1xx responses and trailers are not passed on."""
    gateway = before(answering(answer, then_close=True))
    got = await gateway.client().ask(stream=True)

    assert (got.status, got.body) == (200, b"".join(EVENTS))
    assert "x-trailer" not in got.headers
    await gateway.idle()


async def test_answer_in_chunks_that_arrive_at_once_gets_a_length(autojump_clock, before):
    """However the engine frames an answer that is whole."""
    peer = recording([], chunked(JSON[:5], JSON[5:9], JSON[9:], kind="application/json"))

    answer = await raw_ask(before(peer))

    assert (answer.body, answer.headers["content-length"]) == (JSON, str(len(JSON)))


async def test_stream_with_a_length_gets_keep_alives(autojump_clock, before):
    """They make it longer than the neuron declared, so the content-length is not passed on."""
    half, rest = b"".join(EVENTS[:2]), b"".join(EVENTS[2:])

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(with_length(half + rest, kind="text/event-stream").removesuffix(rest))
        await trio.sleep(2.5)
        await stream.send_all(rest)

    answer = await before(peer).client().ask(stream=True)

    assert "content-length" not in answer.headers
    assert answer.body == half + 2 * KEEP_ALIVE + rest


async def test_long_preamble_is_not_held_back(autojump_clock, before):
    """Of half a megabyte before the first token, at most 64 KiB wait."""
    early = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","padding":"%b"}}]}\n\n' % (b"x" * 40_000)

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(chunked(early, end=b""))
        await trio.sleep(1)
        await stream.send_all(b"%x\r\n%b\r\n" % (len(early), early))
        await trio.sleep(1)
        await stream.send_all(chunked(delta("x"), DONE).partition(b"\r\n\r\n")[2])

    answer = await before(peer, streaming=StreamingSettings(keepalive_seconds=0)).client().ask(stream=True)

    assert answer.body == 2 * early + delta("x") + DONE
    assert answer.arrivals[0][0] == 1, "the first two went together, before there was a token"


@pytest.mark.parametrize(
    ("answer", "end", "code"),
    [
        (chunked(ROLE, delta("x"), end=b""), b"", "upstream_connection_error"),
        (chunked(ROLE, delta("x"), end=b""), b"1", "upstream_connection_error"),
        (chunked(ROLE, delta("x"), end=b""), b"zz\r\n", "upstream_malformed_response"),
        (chunked(ROLE, delta("x"), delta("y")[:-9], end=b""), b"0\r\n\r\n", "upstream_malformed_response"),
        (UNTIL_CLOSE + ROLE + delta("x"), b"", "upstream_connection_error"),
    ],
)
async def test_stream_that_breaks_off_ends_in_one_error_event(autojump_clock, before, answer, end, code):
    """The chunks so far stay, there is no `[DONE]`, and the body's framing is complete."""
    gateway = before(breaking_off(answer, end))
    got = await gateway.client().ask(stream=True)

    assert got.body.startswith(ROLE + delta("x"))
    assert json.loads(got.events[-1])["error"]["code"] == code
    assert got.body.count(b'"error"') == 1
    assert b"[DONE]" not in got.body
    await gateway.idle()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (with_length(JSON)[:-5], b""),
        (chunked(JSON, kind="application/json", end=b""), b""),
        (chunked(JSON, kind="x/y", end=b""), b"zz\r\n"),
    ],
)
async def test_body_that_breaks_off_is_left_incomplete(autojump_clock, before, answer, end, stream):
    """No regular end, and no error event in a body that is not a stream, whatever the client asked for."""
    gateway = before(breaking_off(answer, end))
    client = gateway.client()
    await client.send(stream=stream)
    with capture_logs() as logs:
        _, headers = await client.head()
        body = b""
        with pytest.raises(EOFError):
            while True:
                body += await _a_piece(client, headers)
    await gateway.idle()

    assert JSON.startswith(body)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == []


async def _a_piece(client, headers):
    if "content-length" not in headers:
        return await client.piece(headers) or b""
    piece = await client.piece(headers)
    if not piece:
        raise EOFError
    return piece


@pytest.mark.parametrize("pieces", [(JSON,), (b'{"a":1,\n\n', b'"b":2}'), (b" \n\n", JSON)])
async def test_json_answer_to_a_streaming_request_gets_no_keep_alives(autojump_clock, before, pieces):
    """Some engines do not stream everything: the client gets one JSON body, however slow it is."""

    async def peer(stream):
        await read_request(stream)
        await trio.sleep(1)
        await stream.send_all(chunked(kind="application/json", end=b""))
        for piece in pieces:
            await trio.sleep(7)
            await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))
        await stream.send_all(b"0\r\n\r\n")

    answer = await before(peer).client().ask(stream=True)

    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == b"".join(pieces)


async def test_json_answer_after_an_early_200_is_an_error_event(autojump_clock, before):
    """The early head promised the client events."""

    async def peer(stream):
        await read_request(stream)
        await trio.sleep(6)
        await stream.send_all(with_length(JSON))

    answer = await before(peer).client().ask(stream=True)

    assert answer.headers["content-type"] == "text/event-stream"
    assert [json.loads(event)["error"]["code"] for event in answer.events] == ["upstream_malformed_response"]


async def test_unrequested_stream_is_relayed_as_a_stream(autojump_clock, before):
    """The neuron's content type decides."""
    answer = await before(answering(chunked(*EVENTS))).client().ask()

    assert answer.body == b"".join(EVENTS)


# Log and metrics...


def log_of(logs):
    return [entry for entry in logs if entry["event"] == "request"]


async def test_each_request_writes_one_log_event_with_all_fields(autojump_clock, before):
    """However the request ended."""
    beast = neuron("beast", [24576], [SMALL])
    with capture_logs() as logs:
        gateway = before(beast)
        await gateway.client().ask()
        await gateway.client().ask(stream=True)
        await raw_ask(gateway, body=b"{")
        await raw_ask(gateway, body=b'{"model":"nobody/has-it"}')
        beast.faults.add(faults.HttpError(times=1))
        await gateway.client().ask()
        beast.faults.add(faults.Drop(after=2, times=1))
        await gateway.client().ask(stream=True)
        client = gateway.client()
        await client.send(stream=True)
        await trio.sleep(0.5)
        await client.leave()
        await gateway.idle()
        half = gateway.client()
        await half.stream.send_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n")
        await wait_all_tasks_blocked()
        await half.leave()
        await gateway.idle()

    entries = log_of(logs)
    assert all(entry.keys() >= LOG_FIELDS for entry in entries)
    assert [(entry["outcome"], entry["status"], entry.get("error")) for entry in entries] == [
        ("ok", 200, None),
        ("ok", 200, None),
        ("error", 400, "malformed_json"),
        ("error", 404, "model_not_found"),
        ("upstream_error", 500, None),
        ("error", 200, "upstream_connection_error"),
        ("client_disconnected", 0, None),
        ("client_disconnected", 0, None),
    ]
    assert (entries[0]["alias"], entries[0]["model"], entries[0]["node"]) == ("helexa/small", SMALL, "beast")
    assert entries[0]["prompt_tokens"] > entries[0]["cached_tokens"] >= 0
    assert (entries[0]["tokens_estimated"], entries[1]["tokens_estimated"]) == (False, True)
    assert entries[1]["first_token_ms"] == pytest.approx(2485, abs=30)
    assert [set(entry["phases_ms"]) for entry in entries[:2]] == [
        {"connect", "first_byte", "idle"},
        {"first_byte", "idle"},
    ]
    assert len({entry["request_id"] for entry in entries}) == len(entries)


async def test_metrics_appear_with_the_first_request_and_not_before(autojump_clock, before):
    """No series without a sample, no `_created`; and the counts are right."""
    gateway = before(neuron("beast", [24576], [SMALL]))
    assert samples(gateway) == []
    await gateway.client().ask(stream=True)
    await gateway.idle()
    route = f'{{model="{SMALL}",node="beast"}}'

    counted = samples(gateway)
    assert f"cortex_requests_total{route} 1.0" in counted
    assert f"cortex_inflight_requests{route} 0.0" in counted
    assert f"cortex_request_duration_seconds_count{route} 1.0" in counted
    assert f"cortex_time_to_first_token_seconds_count{route} 1.0" in counted
    assert f'cortex_alias_requests_total{{alias="helexa/small",model="{SMALL}"}} 1.0' in counted
    assert not [line for line in counted if "errors" in line or "_created" in line or "disconnects" in line]


async def test_unknown_model_names_do_not_become_labels(autojump_clock, before):
    """Otherwise clients could fill the memory with labels, one 404 at a time."""
    gateway = before(answering(with_length(JSON)))
    for number in range(20):
        await raw_ask(gateway, body=b'{"model":"made/up-%d"}' % number)
    errors = [line for line in samples(gateway) if line.startswith("cortex_request_errors_total")]
    for _ in range(3):
        gateway.fleet.missed("beast", "gone")
    for number in range(20):
        await raw_ask(gateway, body=b'{"model":"made/up-%d"}' % number)

    assert len(errors) == 1
    assert errors[0].endswith('code="model_not_found",model="",node=""} 20.0')
    assert "made/up" not in gateway.metrics.expose().decode()


async def test_errors_about_a_known_model_have_its_name_as_label(autojump_clock, before):
    """By its id, not by the alias."""
    gateway = before(answering(with_length(JSON)))
    for _ in range(3):
        gateway.fleet.missed("beast", "gone")
    await gateway.client().ask()

    (line,) = [line for line in samples(gateway) if line.startswith("cortex_request_errors_total")]
    assert f'model="{SMALL}"' in line
