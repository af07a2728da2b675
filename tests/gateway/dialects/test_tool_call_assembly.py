"""Pieces of tool calls become the calls that the model made, however an engine labels the pieces."""

import itertools
import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.engine_traits import PLAIN
from gateway.dialects import ClientRequest
from gateway.dialects.anthropic.dialect import MessagesDialect
from gateway.dialects.chat_chunks import Function, ToolCall
from gateway.dialects.json_splice import locate
from gateway.dialects.responses.dialect import ResponsesDialect
from gateway.dialects.tool_calls import ToolCalls
from gateway.errors import UpstreamMalformedResponse
from gateway.http import sse

X, Y = '{"x":1}', '{"y":2}'
A_AND_B = [("a", X), ("b", Y)]


def piece(name=None, arguments="", *, index=None, id=None):  # noqa: A002 - the field's name
    return ToolCall(index, id, Function(name, arguments))


def assembled(chunks):
    calls = ToolCalls()
    texts = {}
    for parts in chunks:
        for call, text in calls.add(parts):
            texts[id(call)] = texts.get(id(call), "") + text
    assert [texts[id(call)] for call in calls.in_order()] == [call.arguments for call in calls.in_order()]
    return [(call.name, call.arguments) for call in calls.in_order()]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([[piece("a", X), piece("b", Y)]], A_AND_B, id="one array, no index"),
        pytest.param([[piece("a", X)], [piece("b", Y)]], A_AND_B, id="one chunk each, no index"),
        pytest.param([[piece("a", X), piece("a", X)]], [("a", X), ("a", X)], id="the same call twice, no index"),
        pytest.param([[piece("a", X)], [piece("a", Y)]], [("a", X), ("a", Y)], id="one tool, no index"),
        pytest.param(
            [[piece("a", X, index=0, id="")], [piece("b", Y, index=0, id="")]], A_AND_B, id="index 0, empty ids"
        ),
        pytest.param(
            [[piece("a", X, index=0)], [piece("a", Y, index=0)]], [("a", X), ("a", Y)], id="index 0, one tool"
        ),
        pytest.param([[piece("a", X, index=0), piece("b", Y, index=0)]], A_AND_B, id="one array, index 0"),
        pytest.param(
            [[piece("a", '{"x"', index="0")], [piece("b", Y, index="1")], [piece(None, ":1}", index="0")]],
            A_AND_B,
            id="index as text",
        ),
        pytest.param(
            [[piece("a", '{"x"', index=0.0)], [piece("b", Y, index=1.0)], [piece(None, ":1}", index=0.0)]],
            A_AND_B,
            id="index as a float",
        ),
        pytest.param(
            [[piece("a", X, index=[])], [piece("b", Y, index="first")]], A_AND_B, id="index that is no number"
        ),
        pytest.param(
            [
                [piece("a", index=0, id="c1")],
                [piece("b", index=0, id="c2")],
                [piece(None, X, index=0, id="c1")],
                [piece(None, Y, index=0, id="c2")],
            ],
            A_AND_B,
            id="index 0, told apart by id",
        ),
        pytest.param(
            [[piece("a", id="c1")], [piece("b", id="c2")], [piece(None, Y, id="c2"), piece(None, X, id="c1")]],
            A_AND_B,
            id="no index, told apart by id",
        ),
        pytest.param(
            [[piece("a", '{"x"'), piece("b", '{"y"')], [piece(None, ":1}"), piece(None, ":2}")]],
            A_AND_B,
            id="no index, pieces by position",
        ),
        pytest.param(
            [[piece("a", "")], [piece(None, '{"x"')], [piece(None, ":1}")], [piece("b", "")], [piece(None, Y)]],
            A_AND_B,
            id="no index, one after the other",
        ),
        pytest.param(
            [[piece("a", X[:3])], [piece("a", X[3:])], [piece("b", Y[:3])], [piece("b", Y[3:])]],
            A_AND_B,
            id="the name with every piece",
        ),
        pytest.param(
            [[piece("a", index=0)], [piece(None, X, index=0)], [piece("a", index=0)], [piece(None, Y, index=0)]],
            [("a", X), ("a", Y)],
            id="index 0, one tool, names before the arguments",
        ),
        pytest.param(
            [[piece("a", X, index=0, id="c1")], [piece("a", "", index=0, id="c1")]],
            [("a", X)],
            id="an empty last piece",
        ),
        pytest.param(
            [[piece("a", X[:3], index=0, id="c1")], [piece(None, X[3:], index=0)], [piece("a", X, index=0, id="c1")]],
            [("a", X)],
            id="the whole call once more at the end",
        ),
        pytest.param([[piece("a", X, id="c")], [piece("b", Y, id="c")]], A_AND_B, id="one id for every call"),
        pytest.param(
            [
                [piece("a", index=0, id="c")],
                [piece("b", index=1, id="c")],
                [piece(None, X, index=0, id="c")],
                [piece(None, Y, index=1, id="c")],
            ],
            A_AND_B,
            id="one id for every call, right indexes",
        ),
        pytest.param(
            [[piece("a", index=0)], [piece("b", index=0)]], [("a", ""), ("b", "")], id="index 0, no arguments"
        ),
        pytest.param(
            [[piece("a", '{"x":"}', index=0)], [piece("a", '{\\"', index=0)], [piece("a", '"}', index=0)]],
            [("a", '{"x":"}{\\""}')],
            id="brackets and quotes in a string",
        ),
        pytest.param(
            [[piece("a", '{"x":"\\', index=0)], [piece("a", '"}', index=0)], [piece("a", '"}', index=0)]],
            [("a", '{"x":"\\"}"}')],
            id="an escape cut in two",
        ),
        pytest.param([[piece("a", {"x": 1})], [piece("a", {"y": 2})]], [("a", X), ("a", Y)], id="objects"),
    ],
)
def test_pieces_select_their_call(chunks, expected):
    """By id, index or position; text after complete arguments begins another call if it comes with a name."""
    assert assembled(chunks) == expected


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(['"}{', "\\", '\\"}', "[", "é\U0001f600"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "get"]), st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3)),
    min_size=1,
    max_size=4,
)


def pieces_of(text, cuts):
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@st.composite
def labelled_streams(draw):
    """Random calls, cut at random and labelled as some engine labels them. Interleaved where the labels allow it."""
    calls = [(name, json.dumps(arguments, ensure_ascii=draw(st.booleans()))) for name, arguments in draw(CALLS)]
    style = draw(st.sampled_from(["index", "id", "index 0 and id", "index 0", "none", "name repeated", "position"]))
    queues = []
    for number, (name, arguments) in enumerate(calls):
        index = {"index": number, "index 0 and id": 0, "index 0": 0}.get(style)
        id_ = f"c{number}" if style in {"id", "index 0 and id"} else draw(st.sampled_from([None, ""]))
        texts = pieces_of(arguments, draw(st.lists(st.integers(0, 200), max_size=4)))
        if draw(st.booleans()):
            texts.insert(0, "")
        queues.append(
            [
                piece(name if at == 0 or style == "name repeated" else None, text, index=index, id=id_)
                for at, text in enumerate(texts)
            ]
        )
    if style == "position":
        longest = max(map(len, queues))
        for queue in queues:
            queue.extend([piece()] * (longest - len(queue)))
        return calls, [list(parts) for parts in zip(*queues, strict=True)]
    chunks = []
    may_interleave = style in {"index", "id", "index 0 and id"}
    heads = [[queue.pop(0)] for queue in queues] if may_interleave else []  # calls begin in order
    chunks += heads
    while any(queues):
        waiting = [queue for queue in queues if queue]
        queue = draw(st.sampled_from(waiting)) if may_interleave else waiting[0]
        chunks.append([queue.pop(0)])
    return calls, chunks


@given(labelled_streams())
def test_random_pieces_of_random_calls_assemble_to_the_same_calls(stream):
    """Whatever the arguments contain, wherever they are cut, and however the pieces are labelled."""
    calls, chunks = stream

    assert assembled(chunks) == calls


def test_completeness_of_arguments_is_found_in_one_pass():
    """An engine that repeats the name with every piece does not make each piece cost as much as all before it."""
    calls = ToolCalls()
    for _ in range(20_000):
        ((call, _),) = calls.add([piece("a", '{"x":["' if not len(calls) else "}]", index=0)])

    assert len(calls) == 1
    assert call._scanned_pieces == 19_999


BODIES = {
    "messages": (MessagesDialect(), b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"x"}]%b}'),
    "responses": (ResponsesDialect(), b'{"model":"m","input":"x"%b}'),
}
IDS = re.compile(rb'"(?:id|call_id|item_id)":"((?:msg|toolu|resp|call|fc|rs)_[^"]*)"')


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_made_up_ids_differ_from_turn_to_turn(name, stream):
    """A client or proxy may send one `x-request-id` for a whole conversation: results would answer the wrong call."""
    dialect, body = BODIES[name]
    body %= b',"stream":true' if stream else b""
    calls = [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "g", "arguments": "{}"}}]
    seen = []
    for _ in range(2):
        parsed = dialect.parse(ClientRequest(b"/v1/x", body, locate(body), "trace-7"), frozenset({"openai"}))
        translation = parsed.outgoing("m", PLAIN).translation
        if stream:
            chunk = {"choices": [{"delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}
            answer = translation.feed(sse.Reader().feed(sse.write(msgspec.json.encode(chunk)) + sse.write(b"[DONE]")))
        else:
            message = {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}
            answer = translation.whole(msgspec.json.encode(message))
        ids = set(IDS.findall(answer))
        assert len(ids) >= 3
        seen.append(ids)

    assert not seen[0] & seen[1]


@pytest.mark.parametrize("name", BODIES)
def test_an_id_that_the_engine_gives_to_two_calls_is_replaced_for_the_second(name):
    """The client tells the calls apart by their ids."""
    dialect, body = BODIES[name]
    body %= b""
    parsed = dialect.parse(ClientRequest(b"/v1/x", body, locate(body), "r"), frozenset({"openai"}))
    calls = [{"id": "c", "function": {"name": "f", "arguments": "{}"}}] * 2
    message = {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}

    answer = json.loads(parsed.outgoing("m", PLAIN).translation.whole(msgspec.json.encode(message)))

    items = answer.get("content") or answer["output"]
    ids = [item.get("call_id") or item["id"] for item in items]
    assert ids[0] == "c"
    assert len(set(ids)) == 2


@pytest.mark.parametrize("name", BODIES)
def test_answer_with_too_many_calls_is_an_error(name):
    """Writing 600,000 of them blocked every other request for two seconds."""
    dialect, body = BODIES[name]
    whole_body, stream_body = body % b"", body % b',"stream":true'
    calls = [{"function": {"name": "f", "arguments": "{}"}, "type": "function", "index": at} for at in range(10_001)]

    def translation_of(body):
        return (
            dialect.parse(ClientRequest(b"/v1/x", body, locate(body), "r"), frozenset())
            .outgoing("m", PLAIN)
            .translation
        )

    message = {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}
    with pytest.raises(UpstreamMalformedResponse, match="more than 10000 tool calls"):
        translation_of(whole_body).whole(msgspec.json.encode(message))
    streamed = translation_of(stream_body)
    out = b""
    for start in range(0, len(calls), 1_000):
        data = msgspec.json.encode({"choices": [{"delta": {"tool_calls": calls[start : start + 1_000]}}]})
        out += streamed.feed(sse.Reader().feed(sse.write(data)))
    assert b"more than 10000 tool calls" in out
    assert isinstance(streamed.error, UpstreamMalformedResponse)
