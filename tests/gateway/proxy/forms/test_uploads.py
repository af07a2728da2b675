"""Forms on their way through, in memory: begun before they have come, and sent a second time only if they are whole."""

import dataclasses
import errno
import re

import pytest
import structlog
import trio
from fakes.forms import BOUNDARY, CONTENT_TYPE, a_file, a_form, a_part, read_form
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.patience import SAFETY_NET_S
from fakes.scripted import chunked, read_request, with_length
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import GatewaySettings, Settings
from gateway.errors import UpstreamConnectionError
from gateway.fleet.reports import ModelReport, NodeReport
from gateway.proxy import form_request
from gateway.proxy.forms.spool import MEMORY_BYTES
from gateway.proxy.forms.upload import Upload

TRANSCRIPTIONS = "/v1/audio/transcriptions"
ANSWER = with_length(b'{"text":"Tbilisi"}')
ALIAS = a_part(b"model", b"helexa/small")
LARGE = b"x" * (2 * MEMORY_BYTES)


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Loggers made while logs are captured must not outlive the capture."""
    yield
    structlog.reset_defaults()


class Neuron:
    """Reads up to `until`, then says `answer`; or closes, if that is None. `heard` is what it was sent."""

    def __init__(self, answer=ANSWER, until=b"--" + BOUNDARY + b"--\r\n"):
        self.answer = answer
        self.until = until
        self.heard = b""
        self.asked = 0
        self.left = trio.Event()

    async def __call__(self, stream):
        self.asked += 1
        heard = b""
        while not heard.endswith(self.until) or not heard:
            piece = bytes(await stream.receive_some(65_536))
            if not piece:
                break
            heard += piece
            self.heard = heard
        else:
            if self.answer is not None:
                await stream.send_all(self.answer)
                while await stream.receive_some(65_536):
                    pass
        self.left.set()
        await stream.aclose()

    @property
    def head(self):
        return self.heard.partition(b"\r\n\r\n")[0].decode()

    @property
    def body(self):
        return self.heard.partition(b"\r\n\r\n")[2]


@pytest.fixture
def before(nursery):
    """Makes a gateway before neurons; all of them have the model."""

    def make(*neurons, **sections):
        named = {f"neuron-{index}": neuron for index, neuron in enumerate(neurons)}
        return InMemoryGateway(nursery, named, dataclasses.replace(Settings(), **sections))

    return make


def head(length=None, *more):
    """The head of an upload; in chunks if there is no length. `more` are further header lines."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    lines = [b"POST %b HTTP/1.1" % TRANSCRIPTIONS.encode(), b"host: cortex", b"connection: close", framing]
    return b"\r\n".join([*lines, b"content-type: " + CONTENT_TYPE, *more, b"", b""])


def a_chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


async def upload(gateway, body):
    """A form, sent at once; the answer."""
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body)
    return await client.answer()


def events_of(logs):
    return [entry for entry in logs if entry["event"] == "request"]


# What the neuron gets...


async def test_neuron_gets_the_beginning_while_the_client_still_sends(autojump_clock, before):
    """As soon as the field is whole: with the length that will be, and the name that is the neuron's."""
    neuron = Neuron()
    gateway = before(neuron)
    body = a_form(ALIAS, a_file(b"one-two"))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    heard = neuron.body
    await trio.sleep(20)
    await client.stream.send_all(body[at:])
    answer = await client.answer()

    assert heard == body[:at].replace(b"helexa/small", SMALL.encode())
    assert neuron.body == body.replace(b"helexa/small", SMALL.encode())
    assert f"content-length: {len(neuron.body)}" in neuron.head.splitlines()
    assert f"content-type: {CONTENT_TYPE.decode()}" in neuron.head.splitlines()
    assert (answer.status, answer.body) == (200, b'{"text":"Tbilisi"}')
    assert (answer.headers["x-cortex-model"], answer.headers["x-cortex-alias"]) == (SMALL.lower(), "helexa/small")
    await gateway.idle()


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("size", [0, 1000, MEMORY_BYTES - 500, 3 * MEMORY_BYTES])
async def test_form_arrives_whole_wherever_its_model_stands(before, model_first, size):
    """From memory or from disk, at once or in pieces: the same parts, by python-multipart's reading."""
    neuron = Neuron()
    gateway = before(neuron)
    parts = [ALIAS, a_file(b"x" * size), a_part(b"language", b"en")]
    body = a_form(*(parts if model_first else parts[::-1]))
    answer = await upload(gateway, body)

    assert answer.status == 200
    assert neuron.body == body.replace(b"helexa/small", SMALL.encode())
    assert [part.value for part in read_form(neuron.body) if part.name == b"model"] == [SMALL.encode()]
    await gateway.idle()


async def test_form_for_a_model_by_its_own_name_goes_out_byte_identical(autojump_clock, before):
    """As any body does."""
    neuron = Neuron()
    gateway = before(neuron)
    body = a_form(a_part(b"model", SMALL.encode()), a_file(b"x"), before=b"preamble\r\n", after=b"\r\nepilogue")
    neuron.until = b"epilogue"
    await upload(gateway, body)

    assert neuron.body == body


async def test_form_in_chunks_goes_on_in_chunks(autojump_clock, before):
    """Nobody knows its length; the neuron's connection is told the end."""
    neuron = Neuron(until=b"0\r\n\r\n")
    gateway = before(neuron)
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


# Time, and clients that leave...


async def test_little_is_read_before_a_neuron_takes_it(autojump_clock, before, monkeypatch):
    """A client that is quicker than its neuron's door waits: what is read ahead needs no file."""
    opened = []

    def opening(*arguments, **more):
        opened.append(Upload(*arguments, **more))
        return opened[0]

    async def never(origin):
        await trio.sleep_forever()

    monkeypatch.setattr(form_request, "Upload", opening)
    gateway = before(Neuron())
    gateway.upstream._connect = never
    body = a_form(ALIAS, a_file(LARGE * 4))
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body)
    await trio.sleep(1)

    assert opened[0].received_bytes <= MEMORY_BYTES < len(body) / 4
    await client.leave()
    await trio.sleep(60)  # what has not been read hides that it left: the deadlines of connecting end it
    await gateway.idle()


async def test_upload_may_take_long_while_it_goes_on_and_ends_when_it_does_not(autojump_clock, before):
    """Ten minutes of 16 KiB every 29 s; then 30 s of nothing: 408, and the neuron sees its connection go."""
    neuron = Neuron()
    gateway = before(neuron)
    client = gateway.client()
    await client.stream.send_all(head(10_000_000) + b"--" + BOUNDARY + b"\r\n" + ALIAS + b"\r\n--" + BOUNDARY + b"\r\n")
    await client.stream.send_all(a_file(b""))
    for _ in range(20):
        await trio.sleep(29)
        await client.stream.send_all(b"x" * 16_384)
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.arrivals[0][0] == 20 * 29 + 30
    await neuron.left.wait()
    await gateway.idle()


async def test_client_that_drips_is_given_up(autojump_clock, before):
    """A byte now and then is no upload; the time for 16 KiB runs on."""
    gateway = before(Neuron())
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
async def test_deadline_of_the_clients_own_covers_its_upload(autojump_clock, before, named):
    """Before its model is known, and after."""
    gateway = before(Neuron())
    client = gateway.client()
    begin = b"--" + BOUNDARY + b"\r\n" + ALIAS
    begin += b"\r\n--" + BOUNDARY + b"\r\n" if named else b""
    await client.stream.send_all(head(10_000, b"x-request-deadline-ms: 2500") + begin)
    answer = await client.answer()

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert answer.arrivals[0][0] == 2.5
    await gateway.idle()


async def test_time_the_neuron_takes_is_not_the_clients(autojump_clock, before):
    """A client waits as long as its neuron may: here for the answer, twenty minutes without a word."""

    async def peer(stream):
        await read_request(stream)
        await trio.sleep(500)
        await stream.send_all(ANSWER)

    gateway = before(peer)

    assert (await upload(gateway, a_form(ALIAS, a_file(b"x")))).status == 200
    assert trio.current_time() == 500


@pytest.mark.parametrize("sent", [b"", b"\r\n--" + BOUNDARY + b"\r\n" + a_file(b"some")])
async def test_client_that_leaves_in_its_upload_is_seen_by_the_neuron(autojump_clock, before, sent):
    """Before the model is known there is no neuron; after it, its connection ends in the midst of a body."""
    neuron = Neuron()
    gateway = before(neuron)
    with capture_logs() as logs:
        client = gateway.client()
        model = b"--" + BOUNDARY + b"\r\n" + ALIAS
        await client.stream.send_all(head(10_000) + model + sent)
        await wait_all_tasks_blocked()
        assert neuron.asked == (1 if sent else 0)
        await client.leave()
        if sent:
            await neuron.left.wait()
        await gateway.idle()

    (event,) = events_of(logs)
    assert (event["outcome"], event["bytes_in"]) == ("client_disconnected", len(model + sent))


async def test_client_that_leaves_before_its_model_with_a_file_on_disk_leaves_nothing(before):
    """The file is gone with it."""
    gateway = before(Neuron())
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


async def test_client_that_leaves_while_its_model_is_loaded_is_noticed(before):
    """Its upload is read to its end meanwhile, or its leaving would hide behind it."""
    gateway = before(Neuron())
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


# What is wrong with the rest of a form...


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
async def test_fault_in_the_rest_is_told_although_the_neuron_is_at_it(autojump_clock, before, rest, status, code):
    """The client hears what is wrong; the neuron gets no end of a body, and is not blamed."""
    neuron = Neuron(until=b"0\r\n\r\n")
    gateway = before(neuron, gateway=GatewaySettings(body_limit_mb=1500 / 1024**2))
    client = gateway.client()
    begin = b"--" + BOUNDARY + b"\r\n" + ALIAS + b"\r\n--" + BOUNDARY + b"\r\n" + a_file(b"some\r\n")
    await client.stream.send_all(head() + a_chunk(begin))
    await wait_all_tasks_blocked()
    assert neuron.asked == 1
    await client.stream.send_all((a_chunk(rest) if rest else b"") + b"0\r\n\r\n")
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (status, code)
    await neuron.left.wait()
    assert not neuron.heard.endswith(b"0\r\n\r\n")
    assert gateway.fleet.nodes["neuron-0"].healthy
    await gateway.idle()


# Neurons that fail, or say no...


def refusing(gateway, *names):
    """Whoever connects to these is refused."""
    connect = gateway.upstream._connect

    async def refuse_some(origin):
        await trio.lowlevel.checkpoint()
        if origin.host in names:
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        return await connect(origin)

    gateway.upstream._connect = refuse_some


async def test_upload_is_tried_elsewhere_if_not_a_byte_of_it_has_gone(autojump_clock, before):
    """A refused connection took nothing."""
    neurons = Neuron(), Neuron()
    gateway = before(*neurons)
    refusing(gateway, "neuron-0")
    body = a_form(ALIAS, a_file(b"one-two"))
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:-20])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[-20:])
    answer = await client.answer()

    assert (answer.status, answer.headers["x-cortex-node"]) == (200, "neuron-1")
    assert neurons[1].body == body.replace(b"helexa/small", SMALL.encode())
    await gateway.idle()


async def test_upload_that_has_begun_is_not_tried_elsewhere(autojump_clock, before):
    """What the first one took is gone."""
    neurons = Neuron(None, until=b"two"), Neuron()
    gateway = before(*neurons)
    body = a_form(ALIAS, a_file(b"one-two"))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[at : at + 4])
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (502, UpstreamConnectionError.code)
    assert neurons[1].asked == 0
    await gateway.idle()


@pytest.mark.parametrize("size", [1000, 3 * MEMORY_BYTES])
async def test_upload_that_is_all_here_is_tried_elsewhere(before, size):
    """From memory, or from the disk on which it had to wait for its model."""
    neurons = Neuron(None), Neuron()
    gateway = before(*neurons)
    body = a_form(a_file(b"x" * size), ALIAS)
    answer = await upload(gateway, body)

    assert (answer.status, answer.headers["x-cortex-node"]) == (200, "neuron-1")
    assert neurons[0].body == neurons[1].body == body.replace(b"helexa/small", SMALL.encode())
    await gateway.idle()


async def test_refusal_in_the_midst_of_an_upload_is_passed_on(autojump_clock, before):
    """A neuron that has no room says so at once: its words reach the client, and nobody else is asked."""
    full = with_length(b'{"error":"queue full"}', status="503 Service Unavailable", more="retry-after: 7\r\n")
    neurons = Neuron(full, until=b"two"), Neuron()
    gateway = before(*neurons)
    body = a_form(ALIAS, a_file(b"one-two" + b"x" * 1000))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[at : at + 4])
    answer = await client.answer()

    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert answer.error["message"] == "queue full"
    assert neurons[1].asked == 0
    await gateway.idle()


async def test_model_that_went_under_an_upload_is_a_503(autojump_clock, before):
    """A 404 says "never"; the next try may well be answered."""
    gone = with_length(b'{"error":"model not loaded on this neuron"}', status="404 Not Found")
    neurons = Neuron(gone, until=b"two"), Neuron()
    gateway = before(*neurons)
    body = a_form(ALIAS, a_file(b"one-two"))
    at = body.index(b"-two")
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body[:at])
    await wait_all_tasks_blocked()
    await client.stream.send_all(body[at : at + 4])
    answer = await client.answer()

    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "service_unavailable", "1")
    assert "send the request again" in answer.error["message"]
    assert neurons[1].asked == 0
    await gateway.idle()


# Streams...


@pytest.mark.parametrize("last", [True, False])
async def test_stream_that_a_form_asks_for_is_kept_company(autojump_clock, before, last):
    """Its 200 comes after 5 s, though not before the upload has ended; then comments while there is silence."""

    async def peer(stream):
        while not bytes(await stream.receive_some(65_536)).endswith(b"--\r\n"):
            pass
        await trio.sleep(8.5)
        await stream.send_all(chunked(b'data: {"type":"transcript.text.done","text":"x"}\n\n'))

    gateway = before(peer)
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


async def test_phase_of_an_upload_is_in_the_log(autojump_clock, before):
    """What the client took to send is not what the neuron took to answer."""
    gateway = before(Neuron())
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
