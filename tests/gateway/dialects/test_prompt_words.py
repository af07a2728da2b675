"""Which words of a body become prompt: never more than a model is shown."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.dialects.anthropic.request import translate as translate_messages
from gateway.dialects.prompt_words import PROMPTS, words
from gateway.dialects.responses.request import translate as translate_response
from gateway.errors import BadRequest


def user(content):
    return [{"role": "user", "content": content}]


def count(enough=1_000, fields=("messages", "system"), **body):
    return words(json.dumps(body).encode(), fields, enough)


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
    """Texts of every kind, without the thoughts that no template shows a model again."""
    assert count(messages=user(content)) == expected


def test_words_of_items():
    """Messages and outputs; thoughts are none."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "one two"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "no"}]},
        {"type": "function_call_output", "output": "three"},
    ]

    assert count(fields=("input",), input=items) == 3


def test_words_are_counted_no_further_than_needed():
    """A text of a million words would be a million pieces."""
    assert 10 <= count(enough=10, messages=user("a " * 1_000_000)) <= 11


def test_body_nested_too_deeply_has_no_words():
    """It is refused elsewhere, if at all."""
    depth = 100_000

    assert words(b'{"messages":' + b"[" * depth + b"]" * depth + b"}", ("messages",), 5) == 0


@pytest.mark.parametrize("kind", [[], {}, 5, True])
def test_kind_that_is_no_string_is_nobodys_text(kind):
    """It is refused elsewhere, with its place."""
    assert count(messages=[{"role": "user", "type": kind, "content": "a b"}]) == 0
    assert count(messages=user([{"type": kind, "text": "a b"}, {"type": "text", "text": "c"}])) == 1


# Never more than a model is shown...

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
    """Anything with any of the keys that anything might have."""
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


def shown(outgoing):
    """How many words the messages of a chat completion have, if its template leaves no gap between parts."""
    contents = [message["content"] for message in json.loads(outgoing)["messages"]]
    parted = ([{"text": said}] if isinstance(said, str) else said or () for said in contents)
    return sum(len("".join(part.get("text", "") for part in parts).split()) for parts in parted)


@pytest.mark.parametrize(
    ("path", "translate"), [(b"/v1/messages", translate_messages), (b"/v1/responses", translate_response)]
)
@given(st.data())
def test_translated_prompt_has_no_fewer_words_than_were_counted(path, translate, data):
    """Whatever it is made of: else a prompt that fits might be refused for what no model would have read."""
    turns, rest = PROMPTS[path]
    body = json.dumps({"model": "m", turns: data.draw(TURNS), rest: data.draw(TEXTS | st.none())}).encode()
    try:
        outgoing = translate(body).encode("m")
    except BadRequest:
        assume(False)

    assert words(body, PROMPTS[path], 1_000) <= shown(outgoing)


@given(st.lists(TEXTS, max_size=4))
def test_parts_of_a_turn_are_one_text(texts):
    """Not all templates leave a gap between them."""
    assert count(messages=user([{"type": "text", "text": text} for text in texts])) <= len("".join(texts).split())
