"""Forms through a whole gateway, in memory: sent on while they arrive, and retried only if they are kept whole."""

import re

import pytest
import trio
from fakes.forms import BOUNDARY, CONTENT_TYPE, a_file, a_form, a_part, read_form
from fakes.in_memory import SMALL
from fakes.patience import SAFETY_NET_S
from fakes.scripted import chunked, read_request
from fakes.uploads import ALIAS, ANSWER, TRANSCRIPTIONS, Neuron, a_chunk, head, upload
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gateway.fleet.reports import ModelReport, NodeReport
from gateway.proxy.forms import form_request
from gateway.proxy.forms.spool import MEMORY_BYTES
from gateway.proxy.forms.upload import Upload

pytestmark = pytest.mark.usefixtures("fresh_loggers")
LARGE = b"x" * (2 * MEMORY_BYTES)


def events_of(logs):
    return [entry for entry in logs if entry["event"] == "request"]


# What the neuron receives ...........................................................................................


async def test_neuron_gets_the_beginning_while_the_client_still_sends(autojump_clock, gateway_for):
    """As soon as the field is complete: with the final length, and the neuron's name for the model."""
    neuron = Neuron()
    gateway = gateway_for(neuron)
    body = a_form(ALIAS, a_file(b"one-two"))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    received = neuron.body
    await trio.sleep(20)
    await client.stream.send_all(body[at:])
    answer = await client.answer()

    assert received == body[:at].replace(b"helexa/small", SMALL.encode())
    assert neuron.body == body.replace(b"helexa/small", SMALL.encode())
    assert f"content-length: {len(neuron.body)}" in neuron.head.splitlines()
    assert f"content-type: {CONTENT_TYPE.decode()}" in neuron.head.splitlines()
    assert (answer.status, answer.body) == (200, b'{"text":"Tbilisi"}')
    assert (answer.headers["x-cortex-model"], answer.headers["x-cortex-alias"]) == (SMALL.lower(), "helexa/small")
    await gateway.idle()


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("size", [0, 1000, MEMORY_BYTES - 500, 3 * MEMORY_BYTES])
async def test_form_arrives_complete_wherever_its_model_is(gateway_for, model_first, size):
    """From memory or from disk: python-multipart reads the same parts."""
    neuron = Neuron()
    gateway = gateway_for(neuron)
    parts = [ALIAS, a_file(b"x" * size), a_part(b"language", b"en")]
    body = a_form(*(parts if model_first else parts[::-1]))
    answer = await upload(gateway, body)

    assert answer.status == 200
    assert neuron.body == body.replace(b"helexa/small", SMALL.encode())
    assert [part.value for part in read_form(neuron.body) if part.name == b"model"] == [SMALL.encode()]
    await gateway.idle()


async def test_form_with_the_models_own_name_is_sent_unchanged(autojump_clock, gateway_for):
    """Like any body."""
    neuron = Neuron()
    gateway = gateway_for(neuron)
    body = a_form(a_part(b"model", SMALL.encode()), a_file(b"x"), before=b"preamble\r\n", after=b"\r\nepilogue")
    neuron.until = b"epilogue"
    await upload(gateway, body)

    assert neuron.body == body


async def test_chunked_form_is_sent_chunked(autojump_clock, gateway_for):
    """Its length is not known."""
    neuron = Neuron(until=b"0\r\n\r\n")
    gateway = gateway_for(neuron)
    body = a_form(ALIAS, a_file(b"one-two"))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head() + a_chunk(body[:at]))
    await wait_all_tasks_blocked()
    await client.stream.send_all(a_chunk(body[at:]) + b"0\r\n\r\n")

    assert (await client.answer()).status == 200
    assert "transfer-encoding: chunked" in neuron.head.splitlines()
    joined = b"".join(re.findall(rb"[0-9a-f]+\r\n(.*?)\r\n(?=[0-9a-f]+\r\n)", neuron.body, re.DOTALL))
    assert b"one-two" in joined
    await gateway.idle()


# Time and disconnects ...............................................................................................


async def test_little_is_read_ahead_of_the_neuron(autojump_clock, gateway_for, monkeypatch):
    """A client that is faster than its neuron waits; what is read ahead needs no file."""
    opened = []

    def opening(*arguments, **more):
        opened.append(Upload(*arguments, **more))
        return opened[0]

    async def never(origin):
        await trio.sleep_forever()

    monkeypatch.setattr(form_request, "Upload", opening)
    gateway = gateway_for(Neuron())
    gateway.upstream._connect = never
    body = a_form(ALIAS, a_file(LARGE * 4))
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body)
    await trio.sleep(1)

    assert opened[0].received_bytes <= MEMORY_BYTES < len(body) / 4
    await client.leave()
    await trio.sleep(60)  # unread bytes hide the disconnect; the connect deadline ends the request
    await gateway.idle()


async def test_slow_upload_continues_and_a_stalled_one_ends(autojump_clock, gateway_for):
    """Ten minutes of 16 KiB every 29 s, then 30 s of nothing: a 408, and the neuron sees its connection close."""
    neuron = Neuron()
    gateway = gateway_for(neuron)
    client = gateway.client()
    await client.stream.send_all(head(10_000_000) + b"--" + BOUNDARY + b"\r\n" + ALIAS + b"\r\n--" + BOUNDARY + b"\r\n")
    await client.stream.send_all(a_file(b""))
    for _ in range(20):
        await trio.sleep(29)
        await client.stream.send_all(b"x" * 16_384)
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.arrivals[0][0] == 20 * 29 + 30
    await neuron.closed.wait()
    await gateway.idle()


async def test_client_that_sends_single_bytes_gets_a_408(autojump_clock, gateway_for):
    """A byte per second does not restart the time for 16 KiB."""
    gateway = gateway_for(Neuron())
    client = gateway.client()
    await client.stream.send_all(head(10_000_000) + b"--" + BOUNDARY + b"\r\n" + a_file(b""))
    async with trio.open_nursery() as dripping:

        async def drip():
            while True:
                await trio.sleep(1)
                await client.stream.send_all(b"x")

        dripping.start_soon(drip)
        answer = await client.answer()
        dripping.cancel_scope.cancel()

    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.arrivals[0][0] == 30
    await gateway.idle()


@pytest.mark.parametrize("named", [False, True])
async def test_clients_total_deadline_covers_its_upload(autojump_clock, gateway_for, named):
    """Before its model is known, and after."""
    gateway = gateway_for(Neuron())
    client = gateway.client()
    begin = b"--" + BOUNDARY + b"\r\n" + ALIAS
    begin += b"\r\n--" + BOUNDARY + b"\r\n" if named else b""
    await client.stream.send_all(head(10_000, b"x-request-deadline-ms: 2500") + begin)
    answer = await client.answer()

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert answer.arrivals[0][0] == 2.5
    await gateway.idle()


async def test_neurons_time_does_not_count_as_a_stalled_upload(autojump_clock, gateway_for):
    """The client may wait for the response as long as the neuron is allowed."""

    async def peer(stream):
        await read_request(stream)
        await trio.sleep(500)
        await stream.send_all(ANSWER)

    gateway = gateway_for(peer)

    assert (await upload(gateway, a_form(ALIAS, a_file(b"x")))).status == 200
    assert trio.current_time() == 500


@pytest.mark.parametrize("sent", [b"", b"\r\n--" + BOUNDARY + b"\r\n" + a_file(b"some")])
async def test_neuron_sees_a_client_disconnect_during_its_upload(autojump_clock, gateway_for, sent):
    """Before the model is known there is no neuron; after that, its connection closes within the body."""
    neuron = Neuron()
    gateway = gateway_for(neuron)
    with capture_logs() as logs:
        client = gateway.client()
        model = b"--" + BOUNDARY + b"\r\n" + ALIAS
        await client.stream.send_all(head(10_000) + model + sent)
        await wait_all_tasks_blocked()
        assert neuron.requests == (1 if sent else 0)
        await client.leave()
        if sent:
            await neuron.closed.wait()
        await gateway.idle()

    (event,) = events_of(logs)
    assert (event["outcome"], event["bytes_in"]) == ("client_disconnected", len(model + sent))


async def test_disconnect_before_the_model_removes_the_file(gateway_for):
    """The file on disk is closed."""
    gateway = gateway_for(Neuron())
    client = gateway.client()
    await client.stream.send_all(head(10_000_000) + b"--" + BOUNDARY + b"\r\n" + a_file(LARGE))
    with trio.fail_after(SAFETY_NET_S):
        while not gateway.inference.spools.on_disk_bytes:
            await trio.sleep(0.005)
    await client.leave()
    with trio.fail_after(SAFETY_NET_S):
        while gateway.request_log.live:
            await trio.sleep(0.005)

    assert (gateway.inference.spools.open_files, gateway.inference.spools.on_disk_bytes) == (0, 0)
    await gateway.idle()


async def test_disconnect_while_the_model_loads_is_noticed(gateway_for):
    """The upload is read to its end meanwhile; otherwise its bytes would hide the disconnect."""
    gateway = gateway_for(Neuron())
    gateway.fleet.answered("neuron-0", _loading())
    body = a_form(ALIAS, a_file(LARGE))
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body)
    with trio.fail_after(SAFETY_NET_S):
        while gateway.inference.spools.on_disk_bytes < MEMORY_BYTES:
            await trio.sleep(0.005)
    await client.leave()
    with trio.fail_after(SAFETY_NET_S):
        while gateway.request_log.live:
            await trio.sleep(0.005)

    assert gateway.inference.spools.open_files == 0
    await gateway.idle()


def _loading():
    return NodeReport((ModelReport(SMALL, "loading", url="http://neuron-0:13131"),), devices=())


# Streams ............................................................................................................


@pytest.mark.parametrize("last", [True, False])
async def test_stream_requested_by_a_form_gets_keep_alives(autojump_clock, gateway_for, last):
    """Its 200 is sent after 5 s, but not before the upload has ended; then comments while the neuron is silent."""

    async def peer(stream):
        while not bytes(await stream.receive_some(65_536)).endswith(b"--\r\n"):
            pass
        await trio.sleep(8.5)
        await stream.send_all(chunked(b'data: {"type":"transcript.text.done","text":"x"}\n\n'))

    gateway = gateway_for(peer)
    parts = [ALIAS, a_part(b"stream", b"true"), a_file(b"x")]
    body = a_form(*([parts[0], parts[2], parts[1]] if last else parts))
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:-20])
    await trio.sleep(20)
    await client.stream.send_all(body[-20:])
    answer = await client.answer()

    assert answer.status == 200
    assert [at for at, piece in answer.arrivals if piece == b": keep-alive\n\n"] == [25.0, 26.0, 27.0, 28.0]
    assert answer.events == ['{"type":"transcript.text.done","text":"x"}']
    await gateway.idle()


async def test_phase_of_an_upload_is_in_the_log(autojump_clock, gateway_for):
    """The client's time to send is not the neuron's time to answer."""
    gateway = gateway_for(Neuron())
    body = a_form(ALIAS, a_file(b"one-two"))
    with capture_logs() as logs:
        client = gateway.client()
        await client.stream.send_all(head(len(body)) + body[:-20])
        await trio.sleep(12)
        await client.stream.send_all(body[-20:])
        await client.answer()
        await gateway.idle()

    (event,) = events_of(logs)
    assert event["phases_ms"]["upload"] == 12_000
    assert (event["bytes_in"], event["path"], event["outcome"]) == (len(body), TRANSCRIPTIONS, "ok")
