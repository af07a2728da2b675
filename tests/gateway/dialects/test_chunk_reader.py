"""Characters that an engine cuts in two arrive whole in translated streams."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.anthropic.stream import MessagesStream
from gateway.dialects.chat.chunk_reader import ChunkReader
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.stream import ResponsesStream
from gateway.http import sse

HIGH, LOW, FACE = "\ud83d", "\ude00", "\U0001f600"


def chunk(delta, finish_reason=None):
    """JSON with escapes, so that it can hold half a pair."""
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}).encode()


def client_texts(make, *datas):
    """The text of each kind that the client reads."""
    translator = make()
    raw = b"".join(translator.feed(data) for data in datas) + translator.finish()
    texts = {}
    for event in sse.Reader().feed(raw):
        fields = json.loads(event.data)
        delta = fields.get("delta")
        if isinstance(delta, str):
            texts[fields["type"]] = texts.get(fields["type"], "") + delta
        elif isinstance(delta, dict):
            for kind in ("text", "thinking", "partial_json"):
                texts[kind] = texts.get(kind, "") + delta.get(kind, "")
    assert translator.error is None
    return texts


def messages():
    return MessagesStream(MessagesContext("r", "m"))


def responses():
    return ResponsesStream(ResponsesContext("r", "m"))


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        ([{"content": "hi " + HIGH}, {"content": LOW + " bye"}], f"hi {FACE} bye"),
        ([{"content": HIGH}, {"content": LOW}], FACE),
        ([{"content": HIGH}, {"content": ""}, {"role": "assistant"}, {"content": LOW}], FACE),
        ([{"content": HIGH}, {"content": "x"}], "\ufffdx"),
        ([{"content": HIGH}, {"content": HIGH}, {"content": LOW}], "\ufffd" + FACE),
        ([{"content": LOW}, {"content": HIGH}], "\ufffd\ufffd"),
        ([{"content": "a" + LOW + HIGH + LOW + HIGH}], f"a\ufffd{FACE}\ufffd"),
        ([{"content": [{"type": "text", "text": "x" + HIGH}]}, {"content": LOW}], "x" + FACE),
        ([{"content": HIGH}], "\ufffd"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize(("make", "kind"), [(messages, "text"), (responses, "response.output_text.delta")])
@pytest.mark.parametrize("end", [(chunk({}, "stop"),), (chunk({}), b"[DONE]")], ids=["reason", "done"])
def test_halves_of_a_character_are_joined(make, kind, deltas, text, end):
    """Only a half that stays alone is replaced."""
    assert client_texts(make, *map(chunk, deltas), *end)[kind] == text


def test_halves_are_joined_in_each_kind_of_text():
    """In reasoning and in the arguments of each of two calls, whose pieces are mixed."""

    def call(index, arguments, **function):
        return {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"arguments": arguments, **function}}]}

    deltas = [
        {"reasoning_content": "hm" + HIGH},
        {"reasoning_content": LOW},
        call(0, '{"x":"' + HIGH, name="f"),
        call(1, '{"y":"' + HIGH, name="g"),
        call(0, LOW + '"}'),
        call(1, LOW + '"}'),
    ]

    texts = client_texts(messages, *map(chunk, deltas), chunk({}, "tool_calls"))

    assert texts["thinking"] == "hm" + FACE
    assert texts["partial_json"] == f'{{"x":"{FACE}"}}{{"y":"{FACE}"}}'


def test_half_before_another_kind_of_text_keeps_its_place():
    """It stays alone: the answer has gone on."""
    out = client_texts(messages, chunk({"reasoning_content": "a" + HIGH}), chunk({"content": "b"}), chunk({}, "stop"))

    assert (out["thinking"], out["text"]) == ("a\ufffd", "b")


@given(st.text(alphabet=st.sampled_from(["a", "é", FACE, "\U0001f44d", "\U00010000"]), max_size=8), st.data())
def test_text_cut_anywhere_between_utf_16_units_arrives_whole(text, data):
    """As engines and proxies written in JavaScript cut it."""
    units = [pair.decode("utf-16-le", "surrogatepass") for pair in _pairs(text.encode("utf-16-le"))]
    reader, got, at = ChunkReader(), "", 0
    while at < len(units):
        size = data.draw(st.integers(1, 3))
        piece = "".join(units[at : at + size])
        got += reader.read(chunk({"content": piece})).choices[0].delta.content_text
        at += size

    assert got == text
    assert reader.rest() is None


def _pairs(data):
    return [data[at : at + 2] for at in range(0, len(data), 2)]


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"delta":{"content":"\xff"}}]}',
        b'{"choices":[{"delta":{"content":"\xff\\ud83d"}}]}',
        b'{"choices":[{"delta":{"content":"\\ud83d"}}],"x":NaN}',
        b'{"choices":[{"delta":{"content":"\\ud83d"}}],"x":' + b"[" * 100_000,
        b"[" * 100_000,
        b'{"choices":"\\ud83d"}',
        b"\xff",
    ],
    ids=lambda data: ascii(data[:50]),
)
@pytest.mark.parametrize("make", [messages, responses])
def test_bytes_that_are_no_chunk_are_an_error_event(make, data):
    """Not UTF-8, not JSON, nested too deeply, or of another type: never an exception."""
    translator = make()

    assert b"event: error" in translator.feed(data)
    assert isinstance(translator.error, errors.UpstreamMalformedResponse)
