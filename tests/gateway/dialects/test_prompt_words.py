"""Words in a prompt: never more are counted than reach the model."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.dialects.anthropic.request import translate as translate_messages
from gateway.dialects.prompt_words import PROMPT_FIELDS, count_words
from gateway.dialects.responses.request import translate as translate_response
from gateway.errors import BadRequest


def user(content):
    return [{"role": "user", "content": content}]


def count(stop_at=1_000, fields=("messages", "system"), **body):
    return count_words(json.dumps(body).encode(), fields, stop_at)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one two\nthree\t four \u3000 five", 5),
        ("", 0),
        (None, 0),
        (5, 0),
        (["one two ", {"type": "text", "text": "three"}, {"type": "novelty", "text": "no no"}], 3),
        ("<think>not any more</think> one two", 2),
        ([{"type": "thinking", "thinking": "no", "text": "no"}, {"type": "text", "text": "one"}], 1),
        ([{"type": "tool_result", "content": [{"type": "text", "text": "one two"}]}], 2),
    ],
)
def test_words_of_a_turn(content, expected):
    """Text parts of known types count; reasoning of earlier turns does not."""
    assert count(messages=user(content)) == expected


def test_words_of_items():
    """Messages and tool outputs count; reasoning does not."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "one two"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "no"}]},
        {"type": "function_call_output", "output": "three"},
    ]

    assert count(fields=("input",), input=items) == 3


def test_counting_stops_at_the_given_number():
    """Splitting a text of a million words would allocate a million strings."""
    assert 10 <= count(stop_at=10, messages=user("a " * 1_000_000)) <= 11


def test_body_nested_too_deeply_has_no_words():
    """The neuron or the dialect rejects it."""
    depth = 100_000

    assert count_words(b'{"messages":' + b"[" * depth + b"]" * depth + b"}", ("messages",), 5) == 0


@pytest.mark.parametrize("kind", [[], {}, 5, True])
def test_part_whose_type_is_not_a_string_is_not_counted(kind):
    """The dialect rejects it with its path."""
    assert count(messages=[{"role": "user", "type": kind, "content": "a b"}]) == 0
    assert count(messages=user([{"type": kind, "text": "a b"}, {"type": "text", "text": "c"}])) == 1


# Never more than reach the model...

TEXTS = st.text("ab \n\u00a0", max_size=8) | st.sampled_from(["a </think> b", "x-anthropic-billing-header: a b"])
KINDS = st.sampled_from(
    [
        "text",
        "input_text",
        "output_text",
        "tool_result",
        "search_result",
        "document",
        "thinking",
        "mcp_tool_result",
        "message",
        "reasoning",
        "refusal",
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "novelty",
    ]
)


def blocks(contents):
    """Any combination of the keys that a turn, item or part can have."""
    return st.fixed_dictionaries(
        {},
        optional={
            "type": KINDS,
            "role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]),
            "text": TEXTS,
            "content": contents,
            "output": contents,
            "thinking": TEXTS,
            "tool_use_id": st.just("t"),
            "call_id": st.just("t"),
        },
    )


CONTENTS = st.recursive(TEXTS | st.none(), lambda inner: st.lists(TEXTS | blocks(inner), max_size=3), max_leaves=6)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": CONTENTS},
        optional={"type": st.just("message")},
    )
    | blocks(CONTENTS),
    min_size=1,
    max_size=3,
)


def words_sent(outgoing):
    """Words in the messages of a chat completion, for a template that puts no space between parts."""
    contents = [message["content"] for message in json.loads(outgoing)["messages"]]
    part_lists = ([{"text": content}] if isinstance(content, str) else content or () for content in contents)
    return sum(len("".join(part.get("text", "") for part in parts).split()) for parts in part_lists)


@pytest.mark.parametrize(
    ("path", "translate"), [(b"/v1/messages", translate_messages), (b"/v1/responses", translate_response)]
)
@given(st.data())
def test_count_is_at_most_the_words_of_the_translated_prompt(path, translate, data):
    """For any request: otherwise a prompt that fits would be rejected for text that no model reads."""
    turns, rest = PROMPT_FIELDS[path]
    body = json.dumps({"model": "m", turns: data.draw(TURNS), rest: data.draw(TEXTS | st.none())}).encode()
    try:
        outgoing = translate(body).encode("m")
    except BadRequest:
        assume(False)

    assert count_words(body, PROMPT_FIELDS[path], 1_000) <= words_sent(outgoing)


@given(st.lists(TEXTS, max_size=4))
def test_parts_of_a_turn_are_one_text(texts):
    """Some chat templates put no space between the parts."""
    assert count(messages=user([{"type": "text", "text": text} for text in texts])) <= len("".join(texts).split())
