"""The SSE reader against every way a network can cut a stream."""

import time
from functools import partial

import pytest
from fakes.patience import best_of, measured
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.rename_model import Echo
from gateway.http import sse
from gateway.proxy.server_timing import LastComment
from gateway.telemetry.meter import StreamMeter

SAMPLE = (
    b"\xef\xbb\xbf: hello\r\n\r\n"
    b'data: {"a":"\xc3\xa9"}\r\n\r\n'
    b"event: ping\rdata:no space\r\r"
    b"data: one\ndata: two\n\n"
    b"id: 7\nretry: 10\nunknown\n\n"
    b"data\n\n"
    b"data:  two spaces\n\r\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    sse.Event(b'{"a":"\xc3\xa9"}'),
    sse.Event(b"no space", b"ping"),
    sse.Event(b"one\ntwo"),
    sse.Event(b""),
    sse.Event(b" two spaces"),
    sse.Event(b"[DONE]"),
]


def read(*chunks):
    reader = sse.Reader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


def test_reader_gives_the_same_events_at_every_split():
    """Cut in two anywhere, also inside UTF-8, `: `, and CRLF."""
    assert read(SAMPLE) == EVENTS
    for cut in range(len(SAMPLE) + 1):
        assert read(SAMPLE[:cut], SAMPLE[cut:]) == EVENTS


def test_reader_gives_the_same_events_byte_by_byte():
    """The worst network there is."""
    assert read(*(SAMPLE[i : i + 1] for i in range(len(SAMPLE)))) == EVENTS


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n")), max_size=6), st.data())
def test_what_is_written_is_read_back(texts, data):
    """Whatever the text and wherever it is cut."""
    stream = b"".join(sse.write(text.encode()) for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert [event.data.decode() for event in read(*pieces)] == texts


def test_reader_says_when_an_event_is_unfinished():
    """So that a break in its midst is told from an end."""
    reader = sse.Reader()
    reader.feed(b"data: x\n\n")
    assert not reader.pending
    reader.feed(b"data: x\n")
    assert reader.pending


def test_reader_refuses_an_event_without_end():
    """A neuron that never ends a line may not fill our memory."""
    reader = sse.Reader(limit_bytes=100)
    with pytest.raises(sse.EventTooLong):
        for _ in range(20):
            reader.feed(b"data: 0123456789")
    reader = sse.Reader(limit_bytes=100)
    with pytest.raises(sse.EventTooLong):
        for _ in range(20):
            reader.feed(b"data: 0123456789\n")


@measured
@pytest.mark.parametrize("cut_bytes", [16 * 1024, 1024])
@pytest.mark.parametrize(
    "reader",
    [
        lambda: sse.Reader().feed,
        lambda: partial(StreamMeter().feed, now=0.0),
        lambda: LastComment(lambda: b"total;dur=1").feed,
        lambda: Echo("alias", None, lambda _: b"").feed,
    ],
    ids=["reader", "meter", "timing", "echo"],
)
async def test_event_of_megabytes_takes_milliseconds_each(reader, cut_bytes):
    """A picture in one event, in as many pieces as the network makes of it; 8 MiB were half a minute of CPU once."""
    data = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"a" * 4 * 1024**2)
    pieces = [data[at : at + cut_bytes] for at in range(0, len(data), cut_bytes)]

    async def take():
        feed = reader()
        began = time.process_time()
        for piece in pieces:
            feed(piece)
        return time.process_time() - began

    await best_of(take, 1.0)


@pytest.mark.parametrize(
    ("tail", "between"),
    [(b"a\n\n", True), (b"\r\n\r\n", True), (b"a\r\r", True), (b"a\n\r\n", True), (b"a\n", False), (b"\r\n", False)],
)
def test_ends_an_event_knows_every_line_end(tail, between):
    """A comment of ours may only stand between two events."""
    assert sse.ends_an_event(tail) is between
