"""What an answer said, out of a neuron's bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.shadow.transcript import Transcript


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(delta, finish=None):
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def call(arguments, index=0, name=None):
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"tool_calls": [{"index": index, "function": function}]}


def streamed(*chunks, times=None):
    """Heard from a stream that was asked for at 100 s; chunk n came at 101 + n unless `times` say otherwise."""
    heard = Transcript(100.0, stream=True)
    for index, data in enumerate(chunks):
        heard.feed(data, (times or {}).get(index, 101.0 + index))
    return heard.side("m", "n", 110.0, ok=True)


def whole(**message):
    heard = Transcript(100.0, stream=False)
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}).encode()
    for at in range(0, len(body), 7):
        heard.feed(body[at : at + 7], 101.0)
    return heard.side("m", "n", 110.0, ok=True)


USAGE = {"prompt_tokens": 5, "completion_tokens": 8}


def test_stream_and_whole_answer_say_the_same():
    """The same words are the same answer, however they came."""
    stream = streamed(chunk({"role": "assistant"}), chunk({"content": "Tbi"}), chunk({"content": "lisi"}, "stop"))

    assert stream.said == whole(content="Tbilisi").said
    assert stream.said != whole(content="Batumi").said
    assert stream.finish_reason == whole(content="x").finish_reason == "stop"


def test_times_are_those_of_tokens():
    """The role chunk is not the first token; speed is counted from the first one to the end."""
    side = streamed(
        chunk({"role": "assistant", "content": ""}), chunk({"content": "a"}), event(choices=[], usage=USAGE)
    )

    assert (side.first_token_ms, side.duration_ms, side.completion_tokens) == (2000.0, 10000.0, 8)
    assert side.tokens_per_s == 1.0
    assert whole(content="a").tokens_per_s is None


def test_calls_are_compared_by_what_they_mean():
    """Split anywhere, spaced anyhow, keys in any order."""
    split = streamed(chunk(call('{"a":', name="look")), chunk(call(' 1, "b": 2}')), chunk({}, "tool_calls"))
    other = whole(tool_calls=[{"function": {"name": "look", "arguments": '{"b":2,"a":1}'}}])

    assert split.said == other.said
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
def test_garbage_is_heard_without_a_word(pieces, stream):
    """Nothing a neuron sends makes it raise."""
    heard = Transcript(0.0, stream=stream)
    for piece in pieces:
        heard.feed(piece, 1.0)
    heard.side("m", "n", 2.0, ok=True)


def test_endless_answer_is_not_kept_whole():
    """Two answers beyond the limit are compared by what was kept of them; memory does not grow."""
    heard = Transcript(0.0, stream=True)
    for _ in range(40):
        heard.feed(chunk({"content": "x" * 100_000}), 1.0)

    assert sum(map(len, heard._text)) <= 1024 * 1024
