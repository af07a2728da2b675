"""The meters: the same result wherever the network splits an answer."""

import itertools
import json

import pytest
from fakes.framed import MeteredStream
from fakes.scripted import DONE, ROLE, delta
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.usage_fields import Usage
from gateway.telemetry.meter import BODY_LIMIT_BYTES, BodyMeter

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}
READ = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=0)


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def a_chunk(a_delta, finish_reason=None, **more):
    return {"choices": [{"index": 0, "delta": a_delta, "finish_reason": finish_reason}], **more}


FINISH = event(a_chunk({}, "stop"))


def result_of(meter):
    """Everything but the times."""
    return (meter.generated, meter.usage, meter.finished, meter.done, meter.preamble, meter.error)


def fed(*chunks, finish=True):
    """A meter that was fed these chunks, one per second."""
    stream = MeteredStream()
    for second, chunk in enumerate(chunks):
        stream.feed(chunk, float(second))
    if finish:
        assert stream.finish(float(len(chunks)))
    return stream.meter


@pytest.mark.parametrize(
    ("events", "usage"),
    [
        ((delta("a"), delta("b"), FINISH, event({"choices": [], "usage": USAGE}), DONE), READ),
        ((delta("a"), event(a_chunk({}, "stop", usage=USAGE)), DONE), READ),
        ((delta("a"), event(a_chunk({"content": "b"}, usage=USAGE)), FINISH, DONE), READ),
        ((event(a_chunk({"content": "a"}, usage=USAGE)), DONE), READ),
        ((event(a_chunk({"role": "assistant"}, usage=USAGE)), delta("a"), FINISH), READ),
        ((delta("a"), FINISH, DONE, event({"choices": [], "usage": USAGE})), READ),
        ((delta("a"), event({"choices": [], "usage": USAGE})[:-2]), READ),
        ((delta("a"), event({"usage": USAGE, "choices": None}), event(a_chunk({}, "stop", usage=None)), DONE), READ),
        ((delta('"usage": {"prompt_tokens": 1}'.replace('"', '\\"')), FINISH, DONE), None),
        ((delta("a"), event({"choices": [], "usage": {}})), Usage()),
    ],
)
def test_usage_is_found_in_every_place_and_at_every_split(events, usage):
    """In a chunk of its own, in any chunk, after the terminator, without a last blank line; at every split."""
    stream = b"".join(events)
    whole = fed(stream)
    assert whole.usage == usage
    assert result_of(fed(*events)) == result_of(whole)
    for at in range(1, len(stream)):
        assert result_of(fed(stream[:at], stream[at:])) == result_of(whole), stream[:at]
    assert result_of(fed(*[stream[at : at + 1] for at in range(len(stream))])) == result_of(whole)


deltas = st.sampled_from(
    [
        {},
        {"role": "assistant"},
        {"role": "assistant", "content": ""},
        {"content": None},
        {"content": ""},
        {"content": "Tbilisi"},
        {"content": "data: x\n\ndata:"},
        {"content": '{"usage": {"prompt_tokens": 1}, "content":"x"}'},
        {"content": '""'},
        {"content": "თბილისი ☃"},
        {"reasoning_content": "hm"},
        {"reasoning_content": ""},
        {"tool_calls": [{"index": 0, "function": {"arguments": ""}}]},
        {"tool_calls": []},
        {"refusal": "no"},
    ]
)
chunks = st.one_of(
    deltas.map(a_chunk),
    st.builds(a_chunk, deltas, st.sampled_from([None, "stop", "length"]), usage=st.sampled_from([None, USAGE])),
    st.lists(deltas, max_size=2).map(lambda ds: {"choices": [{"index": i, "delta": d} for i, d in enumerate(ds)]}),
    st.sampled_from(
        [{"choices": [{"text": "x"}]}, {"choices": [{"text": ""}]}, {"error": {"message": "out of memory"}}]
    ),
    st.just({"type": "response.output_text.delta", "delta": "x"}),
    st.just({"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 1}}}),
)
pieces = st.one_of(
    st.builds(
        lambda value, compact, ascii_only: (
            b"data: " + json.dumps(value, separators=(",", ":") if compact else None, ensure_ascii=ascii_only).encode()
        ),
        chunks,
        st.booleans(),
        st.booleans(),
    ),
    st.sampled_from(
        [b": keep-alive", b"data: [DONE]", b"data: not json", b"event: ping\ndata: {}", b'data: {"choices":\ndata: []}']
    ),
)


@st.composite
def cut_streams(draw):
    """A stream, and the same in chunks; often split between events, as engines do, sometimes anywhere."""
    end = draw(st.sampled_from([b"\n\n", b"\n\n", b"\r\n\r\n"]))
    events = [piece.replace(b"\n", end[: len(end) // 2]) + end for piece in draw(st.lists(pieces, max_size=12))]
    stream = b"".join(events)
    at_events = [sum(map(len, events[:count])) for count in range(len(events))]
    anywhere = draw(st.lists(st.integers(0, len(stream)), max_size=4))
    between = draw(st.lists(st.sampled_from(at_events), max_size=12)) if at_events else []
    cuts = sorted({0, len(stream), *anywhere, *between})
    return stream, [stream[a:b] for a, b in itertools.pairwise(cuts)]


@given(cut_streams())
def test_result_does_not_depend_on_where_the_stream_is_split(cut):
    """One chunk or many: the result is the same."""
    stream, chunks_of_it = cut

    assert result_of(fed(*chunks_of_it, finish=False)) == result_of(fed(stream, finish=False))


@given(cut_streams())
def test_deltas_are_timed_by_the_chunks_that_complete_them(cut):
    """The first and the last chunk that completed one; comments and usage chunks do not count."""
    stream, first_at, last_at = MeteredStream(), None, None
    meter = stream.meter
    for now, chunk in enumerate(cut[1]):
        before = meter.generated
        stream.feed(chunk, now)
        if meter.generated > before:
            first_at, last_at = now if first_at is None else first_at, now

    assert (meter.first_at, meter.last_at) == (first_at, last_at)


@pytest.mark.parametrize(
    ("first", "generates"),
    [
        (ROLE, False),
        (b": keep-alive\n\n", False),
        (event(a_chunk({"role": "assistant", "content": None})), False),
        (event({"choices": [], "prompt_filter_results": []}), False),
        (event({"type": "response.created", "response": {"usage": None}}), False),
        (delta("a"), True),
        (event(a_chunk({"reasoning_content": "hm"})), True),
        (event(a_chunk({"reasoning": "hm"})), True),
        (event(a_chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]})), True),
        (event({"choices": [{"text": "a"}]}), True),
        (event({"type": "response.output_text.delta", "delta": "a"}), True),
        (b"data: what is this\n\n", True),
    ],
)
def test_first_token_is_the_first_generated_delta(first, generates):
    """Content, reasoning or a tool call; not the role chunk, which engines send before the prefill."""
    meter = fed(first, delta("b"), finish=False)

    assert meter.first_at == (0 if generates else 1)
    assert meter.last_at == 1


@pytest.mark.parametrize(
    ("stream", "whole"),
    [
        (delta("a"), True),
        (delta("a") + b"data: [DONE]", True),
        (delta("a") + b"data: [DONE]\n", True),
        (delta("a")[:-1], True),
        (delta("a")[:-5], False),
        (delta("a") + b"da", False),
        (b"", True),
    ],
)
def test_end_inside_an_event_is_detected(stream, whole):
    """An engine may omit the last blank line, but not half a JSON object."""
    metered = MeteredStream()
    metered.feed(stream, 0)

    assert metered.finish(1) is whole


@pytest.mark.parametrize("content_type", [b"audio/wav", b"image/png", b"application/octet-stream", b"text/plain"])
def test_nothing_is_kept_of_a_body_that_is_not_json(content_type):
    """A megabyte of audio for each request would be wasted."""
    meter = BodyMeter(content_type=content_type)
    meter.feed(b'{"usage":{"prompt_tokens":1}}')

    assert meter._pieces == []
    meter.finish()
    assert meter.usage is None


MESSAGES = [
    {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}},
    {"type": "message_stop"},
]


def test_native_messages_stream_is_metered():
    """Prompt tokens from its start, completion tokens from its end; its own finish reason and terminator."""
    meter = fed(*[event(one) for one in MESSAGES])

    assert meter.usage == Usage(10, 12, 3)
    assert (meter.generated, meter.first_at, meter.last_at) == (2, 3, 4)
    assert (meter.finish_reason, meter.finished, meter.done) == ("end_turn", True, True)
    assert fed(*[event(one) for one in MESSAGES[:3]], finish=False).preamble


@given(st.lists(st.integers(0, 200), max_size=5))
def test_usage_of_a_plain_body_does_not_depend_on_cuts(cuts):
    """One piece or many."""
    body = json.dumps({"choices": [{"message": {"content": "x" * 50}}], "usage": USAGE}).encode()
    meter = BodyMeter()
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        meter.feed(body[start:end])
    meter.finish()

    assert meter.usage == READ


@pytest.mark.parametrize("step", [65_536, BODY_LIMIT_BYTES * 4])
def test_usage_at_the_end_of_a_huge_body_is_found(step):
    """Embeddings have megabytes, and only the end is kept."""
    body = json.dumps({"data": [0.123456] * 300_000, "usage": USAGE}).encode()
    meter = BodyMeter()
    for at in range(0, len(body), step):
        meter.feed(body[at : at + step])
        assert sum(map(len, meter._pieces)) <= BODY_LIMIT_BYTES
    meter.finish()

    assert meter.usage == READ


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"\xff", b'{"usage":{' * 3000, b"[" * 100_000])
def test_body_without_usage_has_no_usage(body):
    """Also if it is not JSON."""
    meter = BodyMeter()
    meter.feed(body)
    meter.finish()

    assert meter.usage is None
