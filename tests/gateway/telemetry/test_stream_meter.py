"""The stream meter: the same result wherever the network splits a stream, and few events decoded."""

import itertools
import json

import pytest
from fakes.framed import MeteredStream
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import chat_chunks
from gateway.dialects.usage_fields import Usage
from gateway.http.sse import Reader
from gateway.telemetry.meter import BodyMeter, StreamMeter

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}}


def delta(**fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def stream(*chunks, done=True):
    data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return (data + ("data: [DONE]\n\n" if done else "")).encode()


def metered(*pieces):
    return stream_of(*pieces).meter


def stream_of(*pieces):
    stream = MeteredStream()
    for now, piece in enumerate(pieces):
        stream.feed(piece, now)
    return stream


def summary(*pieces):
    stream = stream_of(*pieces)
    meter = stream.meter
    return meter.generated, meter.usage, meter.done, meter.finished, meter.preamble, stream.finish(99)


PLAIN = stream(ROLE, delta(content="a"), delta(content="b"), delta(content="c"), {"choices": [], "usage": USAGE})


def test_plain_deltas_are_not_decoded(monkeypatch):
    """Only events that bytes alone cannot judge are decoded: up to the first token, the finish, the usage."""
    decoded, decode = [], chat_chunks.decode_event
    monkeypatch.setattr(chat_chunks, "decode_event", lambda data: decoded.append(data) or decode(data))
    plain = json.dumps(delta(content="word"), separators=(",", ":"))
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    pieces = [stream(ROLE, done=False), *[f"data: {plain}\n\n".encode()] * 1000, stream(finish, {"usage": USAGE})]
    meter = metered(*pieces)

    assert (meter.generated, meter.finished, meter.done) == (1000, True, True)
    assert meter.usage is not None
    assert len(decoded) == 4


def test_usage_is_found_in_every_kind_of_chunk():
    """In a chunk of its own, in the finish chunk, in one with content; a cached count of 0 is 0."""
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    for last in ({"choices": [], "usage": USAGE}, {**finish, "usage": USAGE}, {**delta(content="x"), "usage": USAGE}):
        assert metered(stream(ROLE, delta(content="a"), last)).usage == Usage(7, 3, 0, None)
    assert metered(stream(ROLE, {**delta(content="a"), "usage": None})).usage is None


def test_first_generated_delta_is_not_the_role_chunk():
    """Nor a comment or an empty delta; reasoning and tool calls are generated."""
    for said in ({"content": "x"}, {"reasoning_content": "x"}, {"tool_calls": [{"index": 0}]}):
        meter = metered(
            b": hi\n\n", stream(ROLE, done=False), stream(delta(content=""), done=False), stream(delta(**said))
        )
        assert (meter.first_at, meter.generated) == (3, 1)


def test_preamble_ends_with_any_event_but_a_role_chunk():
    """A delta, an error, an unknown event, the terminator."""
    assert metered(b": hi\n\n" + stream(ROLE, done=False)).preamble
    for event in (b'data: {"n":1}\n\n', b"data: hello\n\n", b'data: {"error":{}}\n\n', b"data: [DONE]\n\n"):
        assert not metered(event).preamble


@given(st.lists(st.integers(0, len(PLAIN)), max_size=8))
def test_result_is_independent_of_the_splits(cuts):
    """Any number, anywhere."""
    edges = [0, *sorted(cuts), len(PLAIN)]
    pieces = [PLAIN[a:b] for a, b in itertools.pairwise(edges)]

    assert summary(*pieces) == summary(PLAIN)


KINDS = ["content", "reasoning_content", "tool", "usage", "finish"]


@given(st.lists(st.sampled_from(KINDS), max_size=12), st.data())
def test_skimming_counts_as_reading_does(kinds, data):
    """Whole events are skimmed, split ones are framed: same deltas, same usage."""
    made = {
        "content": delta(content="x"),
        "reasoning_content": delta(reasoning_content="x"),
        "tool": delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
        "usage": {"choices": [], "usage": USAGE},
        "finish": {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    }
    events = [stream(made[kind], done=False) for kind in ["content", *kinds]]
    whole = b"".join(events)
    cut = data.draw(st.integers(0, len(whole)))

    assert summary(*events) == summary(whole[:cut], whole[cut:])


@pytest.mark.parametrize(
    ("end", "whole"),
    [
        (b"", True),
        (b"data: [DONE]", True),
        (b"data: [DONE]\n", True),
        (b'data: {"a":1}\n', True),
        (b'data: {"a"', False),
    ],
)
def test_end_in_the_middle_of_an_event_is_detected(end, whole):
    """An engine may omit the last blank line."""
    assert stream_of(stream(ROLE, delta(content="a"), done=False) + end).finish(99) is whole


def test_body_meter_reads_usage_of_both_vocabularies():
    """Chat and Responses; and of a body too long to keep, from its end."""
    for body, usage in (
        ({"usage": USAGE}, Usage(7, 3, 0, None)),
        ({"usage": {"input_tokens": 5, "output_tokens": 2}}, Usage(5, 2, None, None)),
        ({"data": "x" * 2_000_000, "usage": USAGE}, Usage(7, 3, 0, None)),
        ({"usage": "lots"}, None),
        ([], None),
    ):
        meter = BodyMeter()
        data = json.dumps(body).encode()
        for i in range(0, len(data), 50_000):
            meter.feed(data[i : i + 50_000])
        meter.finish()
        assert meter.usage == usage


TEXTS = [
    b"Tbilisi",
    b" is",
    b'\\"quoted\\"',
    b"line\\n",
    b"ends in a backslash\\\\",
    "é".encode(),
    b"",
    b"a\\u0022",
    b"b",
]
DELTAS = {
    "chat": b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n',
    "reasoning": b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"%b"},"finish_reason":null}]}\n\n',
    "both": b'data: {"choices":[{"delta":{"reasoning_content":"x","content":"%b"},"finish_reason":null}]}\n\n',
    "completion": b'data: {"choices":[{"index":0,"text":"%b","finish_reason":null}]}\n\n',
}


@pytest.mark.parametrize(
    "last", [b"c", b'","finish_reason":"stop', b'"},"finish_reason":"stop"}]}\n\ndata: {"x":"', b"c\n"]
)
@pytest.mark.parametrize("delta", DELTAS.values(), ids=DELTAS.keys())
def test_chunk_like_the_last_counts_as_if_it_were_framed(delta, last):
    """A chunk that differs from the one before in its text only is not framed; the count must be the same."""
    skimming, framing = StreamMeter(), StreamMeter()
    reader, other = Reader(), Reader()
    for number, text in enumerate([*TEXTS, *TEXTS, last, b"d"]):
        chunk = delta % text
        if not (reader.between_events and skimming.skim(chunk, number)):
            skimming.read(reader.feed(chunk), number)
        framing.read(other.feed(chunk), number)
        figures = [(meter.generated, meter.last_at, meter.finish_reason, meter.done) for meter in (skimming, framing)]
        assert figures[0] == figures[1], (text, figures)
