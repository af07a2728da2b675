"""Server-sent events: the same events wherever the network splits a stream, and every byte of it."""

import itertools
import re
import time
from functools import partial

import pytest
from fakes.framed import MeteredStream, TranslatedStream
from fakes.patience import best_of, measured
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.rename_model import ModelRenamer
from gateway.http import sse
from gateway.proxy.response.server_timing import LastComment

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
    (b'{"a":"\xc3\xa9"}', None),
    (b"no space", b"ping"),
    (b"one\ntwo", None),
    (b"", None),
    (b" two spaces", None),
    (b"[DONE]", None),
]


def events_of(*chunks):
    """What the reader returns for these chunks and at the end. Checks that `raw` has every byte."""
    reader = sse.Reader()
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    last = reader.end()
    events += [] if last is None else [last]
    assert b"".join(event.raw for event in events) == b"".join(chunks)
    return events


def read(*chunks):
    return [(event.data, event.type) for event in events_of(*chunks) if event.data is not None]


def test_reader_gives_the_same_events_at_every_split():
    """Split in two anywhere, also inside UTF-8, `: `, and CRLF."""
    assert read(SAMPLE) == EVENTS
    for cut in range(len(SAMPLE) + 1):
        assert read(SAMPLE[:cut], SAMPLE[cut:]) == EVENTS


def test_reader_gives_the_same_events_byte_by_byte():
    """The worst network."""
    assert read(*(SAMPLE[i : i + 1] for i in range(len(SAMPLE)))) == EVENTS


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n")), max_size=6), st.data())
def test_what_is_written_is_read_back(texts, data):
    """Whatever the text and wherever it is split."""
    stream = b"".join(sse.write(text.encode()) for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert [data.decode() for data, _ in read(*pieces)] == texts


LINE_ENDS = [b"\n", b"\r", b"\r\n"]
FIELDS = [b"data: x", b"data:y", b"data", b"event: e", b": comment", b"id: 7", b"unknown"]


def expected_events(stream):
    """The format's own algorithm (HTML section 9.2.6), line by line over the whole stream."""
    *lines, rest = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    events, data, type_ = [], [], None
    for line in [*lines, rest, b""]:  # what lacks its blank line counts too
        name, _, value = line.partition(b":")
        if not line:
            events += [(b"\n".join(data), type_)] if data else []
            data, type_ = [], None
        elif name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            type_ = value.removeprefix(b" ")
    return events


@given(
    st.lists(st.tuples(st.sampled_from([b"", *FIELDS]), st.sampled_from(LINE_ENDS)), max_size=10),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.sampled_from([b"", b"data: last"]),
)
def test_events_of_any_mixture_of_line_ends_at_every_split(lines, start, rest):
    """CR, LF and CRLF mixed: one definition of a blank line, whichever chunks the bytes arrive in."""
    stream = start + b"".join(itertools.chain.from_iterable(lines)) + rest
    expected = expected_events(stream)

    assert read(stream) == expected
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == expected
    for split in range(1, len(stream)):
        assert read(stream[:split], stream[split:]) == expected


@pytest.mark.parametrize(
    "blank_line", [first + second for first in LINE_ENDS for second in LINE_ENDS if first + second != b"\r\n"]
)
def test_event_is_returned_with_the_byte_that_completes_its_blank_line(blank_line):
    """Without waiting for the next event. The LF of a CRLF is not needed, and comes later without data."""
    reader = sse.Reader()
    returned = [(byte, event) for byte in b"data: x" + blank_line for event in reader.feed(bytes([byte]))]

    assert returned[0][1].data == b"x"
    assert returned[0][1].raw == b"data: x" + blank_line.removesuffix(b"\n" if blank_line.endswith(b"\r\n") else b"")
    assert [(event.data, event.raw) for _, event in returned[1:]] == (
        [(None, b"\n")] if blank_line.endswith(b"\r\n") else []
    )
    assert reader.between_events
    assert sse.ends_an_event((b"data: x" + blank_line)[-3:])


def test_whole_chunk_is_its_own_raw():
    """Bytes that pass through are not copied."""
    reader = sse.Reader()
    chunks = [b"data: %d\n\n" % number for number in range(3)]
    reader.feed(b": start\n\n")

    assert all(reader.feed(chunk)[0].raw is chunk for chunk in chunks)


def test_reader_knows_whether_it_is_between_events():
    """So that a stream that breaks off inside an event differs from one that has ended."""
    reader = sse.Reader()
    reader.feed(b"data: x\n\n")
    assert reader.between_events
    assert reader.end() is None
    reader.feed(b"data: x\n")
    assert not reader.between_events
    assert reader.end() == sse.Event(b"x", None, b"data: x\n")


@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_event_over_the_limit_is_returned_in_pieces_without_data(line_end):
    """An upstream that never ends an event cannot fill the memory; the bytes pass, and the next event is read."""
    reader = sse.Reader(limit_bytes=100)
    piece = b"data: 0123456789" + line_end
    returned = []
    for _ in range(20):
        returned += reader.feed(piece)
        assert reader.partial_bytes <= 100
    blank_line = b"\n\n".removeprefix(line_end)
    returned += reader.feed(blank_line + b"data: next\n\n")
    *pieces, following = returned

    assert {(event.data, event.is_whole) for event in pieces} == {(None, False)}
    assert b"".join(event.raw for event in pieces) == piece * 20 + blank_line
    assert following == sse.Event(b"next", None, b"data: next\n\n")


def test_end_inside_an_event_over_the_limit_is_not_whole():
    """It has no data, and is not a comment either."""
    reader = sse.Reader(limit_bytes=100)
    reader.feed(b"x" * 200)

    assert reader.end() == sse.Event(None, None, b"", is_whole=False)


def test_released_bytes_are_not_in_the_event():
    """They may be sent before the event is complete; its data is read all the same."""
    reader = sse.Reader()
    reader.feed(b"data: ab")
    assert (reader.partial_bytes, reader.release_partial()) == (8, b"data: ab")
    reader.feed(b"cd")
    assert reader.release_partial() + reader.release_partial() == b"cd"

    assert reader.feed(b"e\n\ndata: x\n\n") == [
        sse.Event(b"abcde", None, b"e\n\n", is_whole=False),
        sse.Event(b"x", None, b"data: x\n\n"),
    ]


@measured
@pytest.mark.parametrize("cut_bytes", [16 * 1024, 1024])
@pytest.mark.parametrize(
    "reader",
    [
        lambda: sse.Reader().feed,
        lambda: partial(MeteredStream().feed, now=0.0),
        lambda: LastComment(lambda: b"total;dur=1").feed,
        lambda: TranslatedStream(ModelRenamer("alias", None, lambda _: b"")).feed,
    ],
    ids=["reader", "meter", "timing", "echo"],
)
async def test_event_of_megabytes_takes_milliseconds_each(reader, cut_bytes):
    """An image in one event, in many pieces; 8 MiB once took half a minute of CPU."""
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
    [
        (b"a\n\n", True),
        (b"\r\n\r\n", True),
        (b"\r\n\r", True),
        (b"a\r\r", True),
        (b"a\n\r\n", True),
        (b"a\n", False),
        (b"\r\n", False),
    ],
)
def test_ends_an_event_knows_every_line_end(tail, between):
    """A keep-alive comment may only stand between two events."""
    assert sse.ends_an_event(tail) is between
