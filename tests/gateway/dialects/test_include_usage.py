"""Usage that the gateway asks for: one option added, one chunk dropped, and every other byte as it was."""

import itertools
import json

import pytest
from fakes.framed import TranslatedStream
from fakes.scripted import DONE, ROLE, delta
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.include_usage import HELD_LIMIT_BYTES, UsageStripper, asking_for_usage
from gateway.dialects.json_splice import locate
from gateway.dialects.large_bodies.spliced_body import Edit, edited

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


# Asking...


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"model":"m","stream":true}', b'{"stream_options":{"include_usage":true},"model":"m","stream":true}'),
        (b' {\n "model":"m"}', b' {"stream_options":{"include_usage":true},\n "model":"m"}'),
        (b'{"a":"\\u0041","model":"m"}', b'{"stream_options":{"include_usage":true},"a":"\\u0041","model":"m"}'),
        (b'{"model":"m","stream_options":{}}', b'{"model":"m","stream_options":{"include_usage":true}}'),
        (b'{"a":1,"stream_options" : { "x":1} }', b'{"a":1,"stream_options" : {"include_usage":true, "x":1} }'),
        (b'{"model":"m","stream_options":null}', b'{"model":"m","stream_options":{"include_usage":true}}'),
        (
            b'{"model":"m","prompt":"say \\"stream_options\\": {}"}',
            b'{"stream_options":{"include_usage":true},"model":"m","prompt":"say \\"stream_options\\": {}"}',
        ),
        (
            b'{"model":"m","tools":[{"stream_options":{}}]}',
            b'{"stream_options":{"include_usage":true},"model":"m","tools":[{"stream_options":{}}]}',
        ),
    ],
)  # fmt: skip
def test_option_is_added_in_the_right_place(body, asked):
    """At the start of the body, or in the client's own options if they are an object or null."""
    assert edited(body, asking_for_usage(body)) == asked


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream_options":{"include_usage":true}}',
        b'{"model":"m","stream_options":{"include_usage":false}}',
        b'{"model":"m","stream_options":{"include_usage":null,"x":1}}',
        b'{"model":"m","stream_options":{"includ\\u0065_usage":false}}',
        b'{"model":"m","stream_options":"yes"}',
        b'{"model":"m","stream_options":[]}',
        b'{"model":"m","stream_options":7}',
        b'{"model":"m","stream_options":{},"stream_options":{}}',
        b'{"model":"m","a":{"stream_options":{}},"stream_options":{}}',
        b'{"model":"m","stream\\u005foptions":{}}',
        b'{"model":"m","x":"\\ud800","y":{"stream_options":1}}',
    ],
)
def test_body_is_unchanged_if_the_client_decided_or_the_engine_must_judge(body):
    """Set by the client; a wrong type, twice, or spelled in escapes."""
    assert asking_for_usage(body) is None


keys = st.text(max_size=6) | st.sampled_from(["model", "stream_options", "include_usage"])
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
options = st.one_of(values, st.dictionaries(st.sampled_from(["include_usage", "x", "continuous_usage_stats"]), scalars))


@st.composite
def bodies(draw):
    """A request, with some `stream_options` or none, in any layout."""
    value = draw(st.dictionaries(st.text(max_size=8), values, max_size=4)) | {"model": draw(st.text(max_size=8))}
    if draw(st.booleans()):
        value["stream_options"] = draw(options)
    order = draw(st.permutations(list(value)))
    layout = draw(st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}]))
    return json.dumps({key: value[key] for key in order}, ensure_ascii=draw(st.booleans()), **layout).encode()


@given(bodies(), st.text(max_size=8))
def test_nothing_else_of_a_body_changes(body, name):
    """Only option and model differ after parsing; the bytes around the edits are the same."""
    edit = asking_for_usage(body)
    before = json.loads(body)
    said = before.get("stream_options")
    if edit is None:
        assert said is not None or b"stream_options" in body
        return
    model = locate(body)
    renamed = Edit(model.start, model.end, json.dumps(name).encode())
    outgoing = edited(body, edit, renamed)

    assert json.loads(outgoing) == before | {
        "model": name,
        "stream_options": {**(said or {}), "include_usage": True},
    }
    assert not (said or {}).keys() & {"include_usage"}
    assert edited(body, edit) == body[: edit.start] + edit.text + body[edit.end :]
    assert edit.end - edit.start in {0, len(b"null")}


# Removing...


def event(value, end=b"\n\n", compact=True):
    return b"data: " + json.dumps(value, separators=(",", ":") if compact else None).encode() + end


def stripped(*chunks):
    """The output for each chunk, and at the end."""
    stripper = TranslatedStream(UsageStripper())
    pieces = [stripper.feed(chunk) for chunk in chunks]
    return [*pieces, stripper.finish()]


OURS = event({"id": "x", "choices": [], "usage": USAGE})


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("compact", [True, False])
def test_usage_chunk_is_dropped_wherever_the_stream_is_split(end, compact):
    """Alone, together with others, in two halves, byte by byte."""
    ours = event({"choices": [], "usage": USAGE}, end, compact)
    before = (ROLE + delta("a") + FINISH).replace(b"\n\n", end)
    after = DONE.replace(b"\n\n", end)
    stream = before + ours + after
    assert b"".join(stripped(stream)) == before + after
    for at in range(1, len(stream)):
        assert b"".join(stripped(stream[:at], stream[at:])) == before + after, stream[:at]
    assert b"".join(stripped(*[stream[at : at + 1] for at in range(len(stream))])) == before + after


@pytest.mark.parametrize(
    "stays",
    [
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}),
        event({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": None}),
        event({"choices": [], "usage": None}),
        event({"choices": [], "prompt_filter_results": []}),
        event({"choices": None, "usage": USAGE}),
        event({"usage": USAGE}),
        event({"choices": [{"delta": {"content": '{"choices":[],"usage":{}}'}}]}),
        event({"error": {"message": "out of memory"}, "usage": USAGE}),
        b'data: {"choices":[],"usage":{\n\n',
        b'data: "usage"\n\n',
        b': {"choices":[],"usage":{}}\n\n',
        b'event: usage\ndata: {"choices":[],\ndata: "usage":null}\n\n',
    ],
)
def test_every_other_event_stays(stays):
    """Usage in a chunk with choices passes; so does what only looks like usage."""
    assert b"".join(stripped(delta("a") + stays + DONE)) == delta("a") + stays + DONE


def test_other_chunks_are_not_delayed():
    """A chunk of whole events passes at once, as the same object if it is one event; half an event waits."""
    chunks = [ROLE, delta("a"), b": keep-alive\n\n", delta("b") + delta("c"), FINISH]
    stripper = TranslatedStream(UsageStripper())
    assert [stripper.feed(chunk) for chunk in chunks] == chunks
    assert all(stripper.feed(chunk) is chunk for chunk in chunks if chunk.count(b"data:") == 1)
    assert stripper.feed(delta("d") + OURS[:20]) == delta("d")
    assert stripper.feed(OURS[20:] + DONE) == DONE


def test_usage_chunk_without_a_last_blank_line_is_dropped():
    """An engine may omit it; half an event is passed on."""
    assert b"".join(stripped(delta("a") + OURS[:-2])) == delta("a")
    assert b"".join(stripped(delta("a") + OURS[:-9])) == delta("a") + OURS[:-9]


@pytest.mark.parametrize("step", [1000, 65_536])
def test_long_event_passes_as_it_comes(step):
    """An image in a delta has megabytes: no more of it is held than a usage chunk could have."""
    long = delta("x" * 200_000)
    stream = long + OURS + long + DONE
    stripper, out = TranslatedStream(UsageStripper()), b""
    for at in range(0, len(stream), step):
        out += stripper.feed(stream[at : at + step])
        held_bytes = min(at + step, len(stream)) - len(out)
        assert held_bytes <= HELD_LIMIT_BYTES + len(OURS)
        assert len(out) >= min(at, len(long)) - HELD_LIMIT_BYTES

    assert out + stripper.finish() == long + long + DONE


COMMENT = b": keep-alive\n\n"
texts = st.sampled_from(
    [ROLE, delta("a"), delta("\\n\\n"), FINISH, DONE, OURS, COMMENT, delta("x" * 20_000), b"data: x\n\n"]
)


@given(st.lists(texts, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_rest_of_a_stream_is_identical_wherever_it_is_split(events, line_end, data):
    """Any number of usage chunks, anywhere."""
    stream = b"".join(events).replace(b"\n", line_end)
    kept = b"".join(event for event in events if event is not OURS).replace(b"\n", line_end)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]
    out = b"".join(stripped(*pieces))

    assert out == kept
