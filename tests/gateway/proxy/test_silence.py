"""Long silences, long streams, and each deadline to the second. In memory, on the autojump clock."""

import dataclasses

import pytest
import trio
from fakes.in_memory import InMemoryGateway

from gateway.config.settings import DeadlineSettings, RetrySettings, Settings, StreamingSettings
from neuron.simulated.faults import Drop, Hang, HttpError, LateHeaders, Refuse, SilentPrefill
from neuron.simulated.fleet import neuron

SMALL = "Qwen/Qwen3-1.7B"
CHAT = "/v1/chat/completions"
NO_RETRIES = RetrySettings(attempts=0)


@pytest.fixture
def beast():
    return neuron("beast", [24576], [SMALL])


@pytest.fixture
def start(nursery, beast):
    def start_gateway(**sections):
        return InMemoryGateway(nursery, {"beast": beast}, dataclasses.replace(Settings(), **sections))

    return start_gateway


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def comments(answer):
    return [at for at, piece in answer.arrivals if piece == b": keep-alive\n\n"]


@pytest.mark.parametrize("late_headers", [True, False])
async def test_nine_minutes_of_prefill_keep_the_connection(autojump_clock, start, beast, late_headers):
    """Before the headers or after the role chunk: keep-alives every second, then less often, then the whole answer.

    go-openai gives up after 300 lines without data, and a comment is two lines.
    """
    gateway = start()
    beast.faults.add(SilentPrefill(seconds=540))
    if late_headers:
        beast.faults.add(LateHeaders())
    answer = await gateway.client().ask(stream=True)

    assert answer.status == 200
    assert answer.events[-1] == "[DONE]"
    assert trio.current_time() > 540
    gaps = [b - a for a, b in zip(comments(answer), comments(answer)[1:], strict=False)]
    assert gaps[:7] == pytest.approx([1] * 7, abs=0.01)
    assert gaps[-30:] == pytest.approx([15] * 30, abs=0.01)
    assert gaps == sorted(gaps)
    assert 2 * len(comments(answer)) < 120
    await gateway.idle()


@pytest.mark.parametrize(("path", "end"), [(CHAT, "[DONE]"), ("/v1/messages", '{"type":"message_stop"}')])
async def test_twenty_minute_stream_is_complete(autojump_clock, nursery, path, end):
    """A stream has no total deadline by default, translated or not."""

    async def serve(wire):
        await wire.receive_some()
        await wire.send_all(STREAM_HEAD)
        for _ in range(1200 // 100):
            await trio.sleep(100)
            await wire.send_all(chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'))
        await wire.send_all(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    gateway = InMemoryGateway(nursery, {"beast": serve})
    answer = await gateway.client().ask(path=path, stream=True, max_tokens=99)

    data = [line.removeprefix("data: ") for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert sum('"x"' in one for one in data) == 12
    assert data[-1] == end
    assert trio.current_time() == 1200
    await gateway.idle()


async def test_stream_is_committed_early_at_exactly_five_seconds(autojump_clock, start, beast):
    """A 200 and a keep-alive; a failure after that is one error event without a terminator."""
    gateway = start(deadlines=DeadlineSettings(first_byte_seconds=20), retries=NO_RETRIES)
    beast.faults.add(Hang())
    answer = await gateway.client().ask(stream=True)

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert comments(answer)[:3] == [5, 6, 7]
    assert trio.current_time() == 20
    assert len(answer.events) == 1
    assert '"code":"deadline_exceeded","param":"first_byte"' in answer.events[0]
    await gateway.idle()


async def test_failure_before_the_early_commit_still_has_its_status(autojump_clock, start, beast):
    """Nothing was sent, so the client gets a 504."""
    gateway = start(deadlines=DeadlineSettings(first_byte_seconds=4), retries=NO_RETRIES)
    beast.faults.add(Hang())
    answer = await gateway.client().ask(stream=True)

    assert (answer.status, answer.error["code"], answer.error["param"]) == (504, "deadline_exceeded", "first_byte")
    assert trio.current_time() == 4


@pytest.mark.parametrize("stream", [True, False])
async def test_first_byte_deadline_fires_exactly_on_time(autojump_clock, start, beast, stream):
    """Streaming or not, 600 s by default."""
    gateway = start(streaming=StreamingSettings(early_commit_seconds=0), retries=NO_RETRIES)
    beast.faults.add(Hang())
    answer = await gateway.client().ask(stream=stream)

    assert (answer.status, answer.error["param"]) == (504, "first_byte")
    assert trio.current_time() == 600
    await gateway.idle()


async def test_connect_deadline_fires_exactly_on_time(nursery, autojump_clock):
    """A host that drops packets: 5 s by default, and a miss for that neuron."""
    gateway = InMemoryGateway(nursery, {"beast": None}, Settings(retries=NO_RETRIES))

    async def never(origin):
        await trio.sleep_forever()

    gateway.upstream._connect = never
    answer = await gateway.client().ask()

    assert (answer.status, answer.error["code"], answer.error["param"]) == (504, "deadline_exceeded", "connect")
    assert trio.current_time() == 5
    assert gateway.fleet.nodes["beast"].misses == 1
    await gateway.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_idle_deadline_fires_exactly_on_time(nursery, autojump_clock, stream):
    """From the last chunk on; a stream ends with an error event, another body stays incomplete."""
    gateway = InMemoryGateway(nursery, {"beast": stalls_at(10, stream=stream)}, Settings(retries=NO_RETRIES))
    client = gateway.client()
    if stream:
        answer = await client.ask(stream=True)
        assert answer.events[0].startswith('{"choices"')
        assert '"param":"idle"' in answer.events[-1]
        assert "[DONE]" not in answer.events
    else:
        with pytest.raises(EOFError):
            await client.ask()
    assert trio.current_time() == 10 + 300
    await gateway.idle()


def stalls_at(when, *, stream):
    """A neuron that sends a piece at once, another at `when`, and then nothing more."""
    kind = b"text/event-stream" if stream else b"application/json"
    piece = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' if stream else b" " * 40

    async def serve(wire):
        await wire.receive_some()
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: " + kind + b"\r\n\r\n"
        await wire.send_all(head + chunk(piece))
        await trio.sleep_until(when)
        await wire.send_all(chunk(piece))
        await wire.receive_some()

    return serve


async def test_keep_alive_is_never_inside_an_event(nursery, autojump_clock):
    """The neuron pauses for a minute inside one: the client gets nothing, then the rest of the event."""
    half, rest = b'data: {"choices":[{"delta":{"content":"x', b'yz"}}]}\n\ndata: [DONE]\n\n'

    async def serve(wire):
        await wire.receive_some()
        first = b'data: {"choices":[{"delta":{"content":"w"}}]}\n\n' + half
        await wire.send_all(STREAM_HEAD + chunk(first))
        await trio.sleep(60)
        await wire.send_all(chunk(rest) + b"0\r\n\r\n")

    gateway = InMemoryGateway(nursery, {"beast": serve})
    answer = await gateway.client().ask(stream=True)

    assert comments(answer) == []
    assert answer.body.endswith(half + rest)


async def test_incomplete_event_is_ended_before_the_error_event(nursery, autojump_clock):
    """The error is an event of its own."""

    async def serve(wire):
        await wire.receive_some()
        first = b'data: {"choices":[{"delta":{"content":"w"}}]}\n\ndata: {"choi'
        await wire.send_all(STREAM_HEAD + chunk(first))
        await wire.aclose()

    gateway = InMemoryGateway(nursery, {"beast": serve})
    answer = await gateway.client().ask(stream=True)

    assert answer.events[1] == '{"choi'
    assert '"code":"upstream_connection_error"' in answer.events[2]
    assert len(answer.events) == 3


async def test_keep_alives_can_be_turned_off(autojump_clock, start, beast):
    """0 turns off keep-alives, and the early 200."""
    gateway = start(streaming=StreamingSettings(keepalive_seconds=0, early_commit_seconds=0))
    beast.faults.add(SilentPrefill(seconds=100))
    answer = await gateway.client().ask(stream=True)

    assert comments(answer) == []
    assert answer.events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("fault", "stream"),
    [
        (Refuse(times=1), True),
        (Refuse(times=1), False),
        (HttpError(status=503, retry_after_s=3, times=1), True),
        (HttpError(status=503, retry_after_s=3, times=1), False),
        (Drop(after=1, times=1), True),  # the role chunk has come, no token yet
    ],
)
async def test_fault_before_the_first_token_is_retried_at_another_replica(nursery, autojump_clock, fault, stream):
    """The client gets one complete answer, and each neuron got one request."""
    neurons = {"a": neuron("a", [24576], [SMALL]), "b": neuron("b", [24576], [SMALL])}
    neurons["a"].faults.add(fault)
    gateway = InMemoryGateway(nursery, neurons)
    answer = await gateway.client().ask(stream=stream)

    assert answer.status == 200
    assert b"error" not in answer.body
    assert [len(each.requests) for each in neurons.values()] == [1, 1]
    await gateway.idle()


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("fault", [Refuse(), HttpError(status=503, retry_after_s=3), HttpError(status=500)])
async def test_retries_are_limited(nursery, autojump_clock, fault, retries):
    """To `retries.attempts` over all kinds of failure, though there are more replicas."""
    neurons = {name: neuron(name, [24576], [SMALL]) for name in "abcde"}
    for each in neurons.values():
        each.faults.add(fault)
    gateway = InMemoryGateway(nursery, neurons, Settings(retries=RetrySettings(attempts=retries)))
    answer = await gateway.client().ask()

    assert answer.status >= 500
    assert sorted(len(each.requests) for each in neurons.values()) == [0] * (4 - retries) + [1] * (1 + retries)
    await gateway.idle()
