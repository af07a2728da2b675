"""The gateway's own errors, and those of the neuron, as a client gets them, in memory."""

import json
from functools import partial

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.proxy_clients import JSON, raw_ask, recording
from fakes.scripted import answering, with_length
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import (
    DeadlineSettings,
    GatewaySettings,
    LimitSettings,
)
from gateway.fleet.circuit_breaker import FAILURES
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

pytestmark = pytest.mark.usefixtures("fresh_loggers")
DRIPPING = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9000\r\n\r\n"


# The gateway's own errors...


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b'{"model":"x"}}', 400, "malformed_json"),
        (b'{"model":"\xff"}', 400, "malformed_json"),
        (b'{"model":"x","t":NaN}', 400, "malformed_json"),
        (b"[]", 400, "missing_model_field"),
        (b"{}", 400, "missing_model_field"),
        (b'{"model":7}', 400, "missing_model_field"),
        (b'{"x":{"model":"y"}}', 400, "missing_model_field"),
        (b'{"model":"x","model":"y"}', 400, "missing_model_field"),
        (b'{"model":"nobody/has-it"}', 404, "model_not_found"),
    ],
)
async def test_invalid_request_gets_an_error_envelope(autojump_clock, before, body, status, code):
    """It never reaches a neuron."""
    received = []
    gateway = before(recording(received, with_length(JSON)))
    answer = await raw_ask(gateway, body=body)

    assert (answer.status, answer.error["code"], answer.error["type"]) == (status, code, "invalid_request_error")
    assert "model" in answer.error["message"]
    assert ("not found" in answer.error["message"]) is (status == 404)
    assert answer.headers["content-type"] == "application/json"
    assert received == []
    assert gateway.connections == 0


async def test_method_other_than_post_is_not_allowed(autojump_clock, before):
    """405, in the envelope."""
    answer = await raw_ask(before(answering(with_length(JSON))), method="PUT")

    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")


async def test_no_healthy_node_is_checked_first(autojump_clock, before):
    """Before the model's name, even if the model is unknown."""
    gateway = before(answering(with_length(JSON)))
    for _ in range(3):
        gateway.fleet.missed("beast", "gone")
    answer = await raw_ask(gateway, body=b'{"model":"nobody/has-it"}')

    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "service_unavailable", "5")
    assert "no healthy nodes available" in answer.error["message"]


@pytest.mark.parametrize(("size", "status"), [(1024, 200), (1025, 413)])
@pytest.mark.parametrize("declared", [True, False])
async def test_body_limit_is_exact(autojump_clock, before, size, status, declared):
    """A declared length is refused before the body is read."""
    gateway = before(answering(with_length(JSON)), gateway=GatewaySettings(body_limit_mb=1 / 1024))
    body = b'{"model":"helexa/small"}'.ljust(size)
    client = gateway.client()
    if declared:
        await client.stream.send_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
        await client.stream.send_all(body if status == 200 else b"")
    else:
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        await client.stream.send_all(
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + chunk
        )
    got, headers = await client.head()
    body = await client.piece(headers)

    assert got == status
    assert status == 200 or json.loads(body)["error"]["code"] == "body_too_large"


async def test_body_that_does_not_arrive_in_time_is_a_408(autojump_clock, before):
    """After exactly `upload_seconds`; half a request leaves nothing behind."""
    gateway = before(answering(with_length(JSON)), deadlines=DeadlineSettings(header_seconds=10, upload_seconds=30))
    client = gateway.client()
    await client.stream.send_all(b'POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n{"model"')
    answer = await client.answer()

    assert (answer.status, answer.error["type"]) == (408, "invalid_request_error")
    assert answer.arrivals[0][0] == 30
    await gateway.idle()


async def test_slow_body_that_goes_on_arriving_is_served(autojump_clock, before):
    """The deadline is for every 16 KiB, not for all of it: 100 s here."""
    gateway = before(answering(with_length(JSON)), deadlines=DeadlineSettings(header_seconds=10, upload_seconds=30))
    client = gateway.client()
    body = b'{"model":"helexa/small","prompt":"%b"}' % (b"a" * 5 * 16 * 1024)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    await client.stream.send_all(head % len(body))
    for at in range(0, len(body), 17 * 1024):
        await trio.sleep(20)
        await client.stream.send_all(body[at : at + 17 * 1024])
    answer = await client.answer()

    assert (answer.status, answer.arrivals[0][0]) == (200, 100)


async def test_requests_beyond_the_limit_get_a_503(autojump_clock, before):
    """With a Retry-After."""
    gateway = before(neuron("beast", [24576], [SMALL]), limits=LimitSettings(requests=2))
    served = []

    async def ask():
        served.append((await gateway.client().ask()).status)

    async with trio.open_nursery() as asking:
        for _ in range(2):
            asking.start_soon(ask)
        await wait_all_tasks_blocked()
        answer = await gateway.client().ask()

    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
    assert served == [200, 200]
    assert (await gateway.client().ask()).status == 200


async def test_body_memory_is_limited_over_all_requests(autojump_clock, before):
    """A body that arrives slowly counts as far as it has arrived; a request that ends frees its share."""
    limits = LimitSettings(bodies_mb=10_000 / 1024**2)
    gateway = before(neuron("beast", [24576], [SMALL]), limits=limits)
    padding = "x" * 3_900
    async with trio.open_nursery() as asking:
        asking.start_soon(partial(gateway.client().ask, padding=padding))
        dripping = gateway.client()
        await dripping.stream.send_all(DRIPPING + b" " * 4_000)
        await wait_all_tasks_blocked()
        answer = await gateway.client().ask(padding=padding)
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
        assert 7_900 < gateway.inference.body_memory.reserved_bytes < 8_200
        await dripping.stream.aclose()
        await wait_all_tasks_blocked()
        assert (await gateway.client().ask(padding=padding)).status == 200

    assert gateway.inference.body_memory.reserved_bytes == 0
    await gateway.idle()


# Error responses of the neuron...


@pytest.mark.parametrize(
    ("status", "kind", "body", "passed_on"),
    [
        ("400 Bad", "application/json", b'{"error":{"message":"no","type":"x","code":7,"param":null}}', None),
        ("422 No", "application/json", b'{"detail":[{"msg":"extra"}]}', None),
        ("500 Oh", "application/json", b'{"error":"CUDA"}', ("CUDA", "api_error")),
        ("500 Oh", "text/plain; charset=utf-8", b"Internal Server Error\n", ("Internal Server Error", "api_error")),
        ("502 Bad", "text/html", b"", ("the neuron answered with status 502 and no error message", "api_error")),
        ("429 Slow", "application/json", b'"later"', ('"later"', None)),
        ("404 No", "text/plain", b"\xff\xfe", ("\ufffd\ufffd", "invalid_request_error")),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_error_response_of_a_neuron_is_passed_on(autojump_clock, before, status, kind, body, passed_on, stream):
    """JSON objects unchanged; a flat error, plain text or an empty body in the envelope."""
    gateway = before(answering(with_length(body, kind=kind, status=status, more="retry-after: 7\r\n")))
    answer = await gateway.client().ask(stream=stream)

    assert answer.status == int(status[:3])
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["content-type"] == "application/json"
    if passed_on is None:
        assert answer.body == body
    else:
        assert answer.error["message"] == passed_on[0]
        assert passed_on[1] in (None, answer.error["type"])
    await gateway.idle()


async def test_long_error_body_is_cut_at_64_kib(autojump_clock, before):
    """No more of it is ever buffered."""
    gateway = before(answering(with_length(b"x" * 1_000_000, kind="text/plain", status="500 Oh")))
    answer = await gateway.client().ask()

    assert len(answer.error["message"]) == 65_536
    assert gateway.upstream.statistics()["idle"] == 0


async def test_503_of_the_only_neuron_is_passed_on_with_its_retry_after(autojump_clock, before):
    """When there is no other replica."""
    full = with_length(b'{"error":"queue full"}', status="503 Service Unavailable", more="retry-after: 3\r\n")
    answer = await before(answering(full)).client().ask()

    assert (answer.status, answer.headers["retry-after"], answer.error["message"]) == (503, "3", "queue full")


async def test_400_resets_a_neurons_misses(autojump_clock, before):
    """The neuron answered, so polls that it missed before no longer count."""
    gateway = before(answering(with_length(b'{"error":"too hot"}', status="400 Bad Request")))
    gateway.fleet.missed("beast")
    gateway.fleet.missed("beast")
    assert (await gateway.client().ask()).status == 400
    assert gateway.fleet.nodes["beast"].misses == 0


@pytest.mark.parametrize(("status", "opens"), [(503, False), (429, False), (500, True)])
async def test_503_is_no_fault_of_the_neuron(autojump_clock, nursery, status, opens):
    """Another replica answers, again and again. A 500 counts as a fault."""
    neurons = {name: neuron(name, [24576], [SMALL]) for name in "ab"}
    neurons["a"].faults.add(faults.HttpError(status=status))
    gateway = InMemoryGateway(nursery, neurons)
    for _ in range(2 * FAILURES):
        assert (await gateway.client().ask()).status == 200

    assert gateway.fleet.nodes["a"].breaker.closed is not opens


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
async def test_only_a_404_with_not_loaded_means_not_loaded(autojump_clock, before, status):
    """An engine's error about an adapter or about weights does not: the model stays listed."""
    gateway = before(answering(with_length(b'{"error":"the draft model is not loaded"}', status=status)))
    answer = await gateway.client().ask()

    assert (answer.status, answer.error["message"]) == (int(status[:3]), "the draft model is not loaded")
    assert [replica.id for replica in gateway.fleet.replicas(SMALL)] == [SMALL]


@pytest.mark.parametrize(
    ("name", "header"),
    [("größe/klein", "gr%c3%b6%c3%9fe/klein"), ("a\r\nx-evil: 1", "a%0d%0ax-evil: 1"), ("a b", "a b")],
)
async def test_any_model_name_fits_into_a_header(autojump_clock, nursery, name, header):
    """Names are percent-encoded where they are not printable ASCII."""
    gateway = InMemoryGateway(nursery, {"beast": answering(with_length(JSON))}, loaded={"beast": name})
    answer = await gateway.client().ask(model=name)

    assert (answer.status, answer.headers["x-cortex-model"]) == (200, header)
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("retry_after", ["9" * 400, "9" * 5000, "-4", "soon", "Wed, 25 Nov 2026 14:00:00 GMT"])
async def test_absurd_retry_after_is_ignored(autojump_clock, before, retry_after):
    """The neuron gets requests as if it had sent none."""
    full = with_length(
        b'{"error":"queue full"}', status="503 Service Unavailable", more=f"retry-after: {retry_after}\r\n"
    )
    gateway = before(answering(full, with_length(JSON)))

    assert (await gateway.client().ask()).error["message"] == "queue full"
    assert (await gateway.client().ask()).body == JSON


@pytest.mark.parametrize("stream", [False, True])
async def test_oversized_headers_are_a_502(autojump_clock, before, stream):
    """The limit for a neuron's headers is 64 KiB."""
    beast = neuron("beast", [24576], [SMALL])
    beast.faults.add(faults.BigHeaders())
    answer = await before(beast).client().ask(stream=stream)

    assert (answer.status, answer.error["code"]) == (502, "upstream_malformed_response")
