"""Uploads that fail: errors after the model, and neurons that refuse, break off or unload. In memory."""

import errno

import pytest
import trio
from fakes.forms import BOUNDARY, a_file, a_form
from fakes.in_memory import SMALL
from fakes.scripted import with_length
from fakes.uploads import ALIAS, Neuron, a_chunk, head, upload
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import GatewaySettings
from gateway.errors import UpstreamConnectionError
from gateway.proxy.forms.spool import MEMORY_BYTES

pytestmark = pytest.mark.usefixtures("fresh_loggers")


# Errors after the model .............................................................................................


@pytest.mark.parametrize(
    ("rest", "status", "code"),
    [
        (b"--" + BOUNDARY + b"\r\n" + ALIAS + b"\r\n--" + BOUNDARY + b"--", 400, "missing_model_field"),
        (b"--" + BOUNDARY + b"\r\nnonsense\r\n\r\n", 400, "malformed_multipart"),
        (b"--" + BOUNDARY + b"x", 400, "malformed_multipart"),
        (b"", 400, "malformed_multipart"),
        (b"y" * 2000, 413, "body_too_large"),
    ],
)
async def test_error_in_the_rest_reaches_the_client(autojump_clock, gateway_for, rest, status, code):
    """The neuron gets an incomplete body, and stays healthy."""
    neuron = Neuron(until=b"0\r\n\r\n")
    gateway = gateway_for(neuron, gateway=GatewaySettings(body_limit_mb=1500 / 1024**2))
    client = gateway.client()
    begin = b"--" + BOUNDARY + b"\r\n" + ALIAS + b"\r\n--" + BOUNDARY + b"\r\n" + a_file(b"some\r\n")
    await client.stream.send_all(head() + a_chunk(begin))
    await wait_all_tasks_blocked()
    assert neuron.requests == 1
    await client.stream.send_all((a_chunk(rest) if rest else b"") + b"0\r\n\r\n")
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (status, code)
    await neuron.closed.wait()
    assert not neuron.received.endswith(b"0\r\n\r\n")
    assert gateway.fleet.nodes["neuron-0"].healthy
    await gateway.idle()


# Failing neurons ....................................................................................................


def refuse_connections(gateway, *names):
    """Refuse connections to these neurons."""
    connect = gateway.upstream._connect

    async def refuse_some(origin):
        await trio.lowlevel.checkpoint()
        if origin.host in names:
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        return await connect(origin)

    gateway.upstream._connect = refuse_some


async def test_upload_is_retried_when_the_connection_is_refused(autojump_clock, gateway_for):
    """No byte of it was sent."""
    neurons = Neuron(), Neuron()
    gateway = gateway_for(*neurons)
    refuse_connections(gateway, "neuron-0")
    body = a_form(ALIAS, a_file(b"one-two"))
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:-20])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[-20:])
    answer = await client.answer()

    assert (answer.status, answer.headers["x-cortex-node"]) == (200, "neuron-1")
    assert neurons[1].body == body.replace(b"helexa/small", SMALL.encode())
    await gateway.idle()


async def test_upload_that_has_begun_is_not_retried(autojump_clock, gateway_for):
    """The bytes that the first neuron took are gone."""
    neurons = Neuron(None, until=b"two"), Neuron()
    gateway = gateway_for(*neurons)
    body = a_form(ALIAS, a_file(b"one-two"))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[at : at + 4])
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (502, UpstreamConnectionError.code)
    assert neurons[1].requests == 0
    await gateway.idle()


@pytest.mark.parametrize("size", [1000, 3 * MEMORY_BYTES])
async def test_upload_that_is_kept_whole_is_retried(gateway_for, size):
    """From memory, or from the disk where it waited for its model."""
    neurons = Neuron(None), Neuron()
    gateway = gateway_for(*neurons)
    body = a_form(a_file(b"x" * size), ALIAS)
    answer = await upload(gateway, body)

    assert (answer.status, answer.headers["x-cortex-node"]) == (200, "neuron-1")
    assert neurons[0].body == neurons[1].body == body.replace(b"helexa/small", SMALL.encode())
    await gateway.idle()


async def test_error_response_during_an_upload_is_passed_on(autojump_clock, gateway_for):
    """A neuron that is full responds at once: the client gets its text, and no other neuron is tried."""
    full = with_length(b'{"error":"queue full"}', status="503 Service Unavailable", more="retry-after: 7\r\n")
    neurons = Neuron(full, until=b"two"), Neuron()
    gateway = gateway_for(*neurons)
    body = a_form(ALIAS, a_file(b"one-two" + b"x" * 1000))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[at : at + 4])
    answer = await client.answer()

    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert answer.error["message"] == "queue full"
    assert neurons[1].requests == 0
    await gateway.idle()


async def test_model_unloaded_during_an_upload_is_a_503(autojump_clock, gateway_for):
    """A 404 would say that the model does not exist; a retry may succeed."""
    gone = with_length(b'{"error":"model not loaded on this neuron"}', status="404 Not Found")
    neurons = Neuron(gone, until=b"two"), Neuron()
    gateway = gateway_for(*neurons)
    body = a_form(ALIAS, a_file(b"one-two"))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[at : at + 4])
    answer = await client.answer()

    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "service_unavailable", "1")
    assert "send the request again" in answer.error["message"]
    assert neurons[1].requests == 0
    await gateway.idle()
