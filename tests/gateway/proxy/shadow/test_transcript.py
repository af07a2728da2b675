"""Transcript: one answer, summed up for a comparison."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http import sse
from gateway.proxy.shadow.transcript import Transcript


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(delta, finish=None):
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def call(arguments, index=0, name=None):
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"tool_calls": [{"index": index, "function": function}]}


def streamed(*chunks, times=None):
    """Summary of a stream that was requested at 100 s; chunk n arrived at 101 + n unless `times` say otherwise."""
    transcript, reader = Transcript(100.0), sse.Reader()
    for index, data in enumerate(chunks):
        transcript.read(reader.feed(data), (times or {}).get(index, 101.0 + index))
    return transcript.summary("m", "n", 110.0, ok=True)


def whole(**message):
    transcript = Transcript(100.0)
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}).encode()
    for at in range(0, len(body), 7):
        transcript.add_body(body[at : at + 7])
    return transcript.summary("m", "n", 110.0, ok=True)


USAGE = {"prompt_tokens": 5, "completion_tokens": 8}


def test_stream_and_whole_answer_have_the_same_digest():
    """The same text is the same answer."""
    stream = streamed(chunk({"role": "assistant"}), chunk({"content": "Tbi"}), chunk({"content": "lisi"}, "stop"))

    assert stream.content_digest == whole(content="Tbilisi").content_digest
    assert stream.content_digest != whole(content="Batumi").content_digest
    assert stream.finish_reason == whole(content="x").finish_reason == "stop"


def test_times_are_those_of_tokens():
    """The role chunk is not the first token; speed is measured from the first token to the end."""
    summary = streamed(
        chunk({"role": "assistant", "content": ""}), chunk({"content": "a"}), event(choices=[], usage=USAGE)
    )

    assert (summary.first_token_ms, summary.duration_ms, summary.completion_tokens) == (2000.0, 10000.0, 8)
    assert summary.tokens_per_s == 1.0
    assert whole(content="a").tokens_per_s is None


def test_calls_are_compared_by_their_decoded_arguments():
    """Split anywhere, with any spaces, keys in any order."""
    split = streamed(chunk(call('{"a":', name="look")), chunk(call(' 1, "b": 2}')), chunk({}, "tool_calls"))
    other = whole(tool_calls=[{"function": {"name": "look", "arguments": '{"b":2,"a":1}'}}])

    assert split.content_digest == other.content_digest
    assert (split.calls, split.calls_valid) == (1, True)


@pytest.mark.parametrize(
    ("calls", "valid"),
    [
        ([call("{", name="look")], False),
        ([call("[]", name="look")], False),
        ([call("{}")], False),
        ([call("", name="look")], True),
        ([call("{}", 0, "a"), call("{", 1, "b")], False),
        ([], None),
    ],
)
def test_validity_of_calls_is_of_all_of_them(calls, valid):
    """A name, and an object for arguments."""
    assert streamed(*map(chunk, calls)).calls_valid is valid


@given(st.lists(st.binary(max_size=60) | st.just(chunk({"content": "x"})), max_size=20), st.booleans())
def test_garbage_is_ignored(pieces, stream):
    """Nothing that an upstream sends makes it raise."""
    transcript, reader = Transcript(0.0), sse.Reader()
    for piece in pieces:
        if stream:
            transcript.read(reader.feed(piece), 1.0)
        else:
            transcript.add_body(piece)
    transcript.summary("m", "n", 2.0, ok=True)


def test_endless_answer_is_not_kept_whole():
    """Two answers beyond the limit are compared by what was kept of them; memory does not grow."""
    transcript, reader = Transcript(0.0), sse.Reader()
    for _ in range(40):
        transcript.read(reader.feed(chunk({"content": "x" * 100_000})), 1.0)

    assert sum(map(len, transcript._text)) <= 1024 * 1024
