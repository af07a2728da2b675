"""relay_stream: the bytes that a client gets of an upstream's stream, wherever the network splits it."""

import itertools
from functools import partial

import pytest
import trio
from fakes.asgi_send import RecordedSend
from fakes.scripted import DONE, ROLE, delta
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.settings import DeadlineSettings, StreamingSettings
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.anthropic.stream import PING, MessagesStream
from gateway.dialects.chat_translator import ChatTranslation
from gateway.dialects.include_usage import UsageStripper
from gateway.dialects.rename_model import ModelRenamer
from gateway.errors import UpstreamConnectionError, UpstreamMalformedResponse
from gateway.http import sse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.relay import relay_stream
from gateway.proxy.response.client_response import ClientResponse
from gateway.proxy.response.keepalive import KeepAlive
from gateway.proxy.shadow.transcript import Transcript
from gateway.proxy.upstream_stream import UpstreamStream
from gateway.telemetry.meter import StreamMeter

FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
PLAIN = b'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
USAGE = b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":4}}\n\n'
STREAM = b": hello\n\n" + ROLE + PLAIN + delta("b") + PLAIN + FINISH + USAGE + DONE


class Upstream:
    """A response body in chunks. `error` is raised at its end."""

    def __init__(self, chunks, error=None, *, framed=True):
        self._chunks = [chunk for chunk in chunks if chunk]
        self._error = error
        self.framed = framed
        self.complete = False

    async def receive(self):
        if self._chunks:
            return self._chunks.pop(0)
        if self._error is not None:
            raise self._error
        self.complete = True
        return b""


async def relayed(upstream, translation=None, transcript=None):
    """What the client got, and the meter."""
    wire = RecordedSend()
    client = ClientResponse(wire.send)
    keepalive = KeepAlive(client, StreamingSettings(), lambda: (200, []))
    phases = PhaseDeadlines(DeadlineSettings())
    frames_all = translation is not None and not translation.passes_text
    stream = UpstreamStream(upstream, StreamMeter(), transcript, frames_all=frames_all)
    with phases:
        preamble = await stream.read_preamble(phases)
        assert wire.messages == []
        await relay_stream(stream, preamble, phases, keepalive, translation=translation)
    assert client.ended
    return wire.body, stream.meter


def split(stream, cuts):
    return [stream[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), len(stream)])]


def messages():
    return ChatTranslation(MessagesStream(MessagesContext("r", "m", answer_id="r")), bytes, keepalive_bytes=PING)


def renamer(then=None):
    return ModelRenamer("alias", then, lambda error: sse.write(error.message.encode()))


TRANSLATIONS = {
    "pass-through": lambda: None,
    "usage": UsageStripper,
    "rename": renamer,
    "rename+usage": lambda: renamer(UsageStripper()),
    "messages": messages,
    "rename+messages": lambda: renamer(messages()),
}
EXPECTED = {
    "pass-through": STREAM,
    "usage": STREAM.replace(USAGE, b""),
    "rename": STREAM.replace(b'"model":"m"', b'"model":"alias"'),
    "rename+usage": STREAM.replace(USAGE, b"").replace(b'"model":"m"', b'"model":"alias"'),
}


@pytest.mark.parametrize("name", TRANSLATIONS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_output_and_meter_do_not_depend_on_splits(name, line_end, cuts):
    """Verbatim but for what the translation changes; usage, tokens and terminator are metered in every case."""
    make = TRANSLATIONS[name]
    stream = STREAM.replace(b"\n", line_end)
    body, meter = trio.run(relayed, Upstream(split(stream, cuts)), make())

    if name in EXPECTED:
        assert body == EXPECTED[name].replace(b"\n", line_end)
    else:
        assert body == trio.run(relayed, Upstream([stream]), make())[0]
        assert body.count(b"event: message_stop") == 1
    assert (meter.generated, meter.done, meter.finished, meter.usage.completion_tokens) == (3, True, True, 4)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_transcript_reads_the_same_events(cuts):
    """A shadowed request is relayed byte for byte, and its transcript has every word."""
    transcript = Transcript(0.0)
    body, _ = trio.run(relayed, Upstream(split(STREAM, cuts)), None, transcript)
    summary = transcript.summary("m", "n", 1.0, ok=True)
    other = Transcript(0.0)
    other.read(sse.Reader().feed(STREAM), 0.0)

    assert body == STREAM
    assert summary.content_digest == other.summary("m", "n", 1.0, ok=True).content_digest
    assert (summary.completion_tokens, summary.finish_reason) == (4, "stop")


async def test_long_event_is_passed_on_as_it_arrives_while_usage_is_stripped():
    """It is still metered as one event."""
    long = delta("x" * 200_000)
    stream = ROLE + delta("a") + long + USAGE + DONE
    body, meter = await relayed(Upstream(split(stream, range(1000, len(stream), 1000))), UsageStripper())

    assert body == stream.replace(USAGE, b"")
    assert (meter.generated, meter.usage.completion_tokens) == (2, 4)


@pytest.mark.parametrize("name", ["pass-through", "usage", "rename"])
async def test_event_over_the_limit_passes_unmetered(name):
    """The client decides what to do with it; the events after it are metered."""
    long = delta("x" * (sse.EVENT_LIMIT_BYTES + 2**21))
    stream = ROLE + delta("a") + long + delta("b") + DONE
    body, meter = await relayed(Upstream(split(stream, range(2**20, len(stream), 2**20))), TRANSLATIONS[name]())

    assert body == stream
    assert (meter.generated, meter.done) == (2, True)


async def test_event_over_the_limit_fails_a_translated_stream():
    """With an error event in the client's dialect."""
    long = delta("x" * (sse.EVENT_LIMIT_BYTES + 2**21))
    wire_of = partial(relayed, Upstream([ROLE, delta("a"), long[:-10], long[-10:]]), messages())

    with pytest.raises(UpstreamMalformedResponse, match="more than 8388608 bytes"):
        await wire_of()


@pytest.mark.parametrize("name", TRANSLATIONS)
async def test_stream_that_ends_inside_an_event_is_an_error(name):
    """Half a JSON object is not an answer."""
    with pytest.raises(UpstreamMalformedResponse, match="in the middle of an event"):
        await relayed(Upstream([ROLE, delta("a"), delta("b")[:-9]]), TRANSLATIONS[name]())


@pytest.mark.parametrize("name", TRANSLATIONS)
async def test_error_after_the_terminator_is_the_end(name):
    """The client has its whole answer."""
    make = TRANSLATIONS[name]
    body, _ = await relayed(Upstream([STREAM], UpstreamConnectionError("reset")), make())

    assert body == (await relayed(Upstream([STREAM]), make()))[0]


@pytest.mark.parametrize(("events", "is_complete"), [((ROLE, delta("a")), False), ((ROLE, delta("a"), FINISH), True)])
async def test_unframed_body_must_say_that_it_is_complete(events, is_complete):
    """The end of a connection may be a crash."""
    upstream = Upstream(events, framed=False)
    if is_complete:
        assert (await relayed(upstream))[0] == b"".join(events)
    else:
        with pytest.raises(UpstreamConnectionError, match="broke off without an end"):
            await relayed(upstream)
