"""Keys of conversations and API keys for sticky aliases."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.sticky_key import key_of


def conversation(body, headers=()):
    return key_of(list(headers), json.dumps(body).encode(), "conversation")


def user(content):
    return {"role": "user", "content": content}


AUDIO = {"type": "input_audio", "input_audio": {"data": "aaaa"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("first", "same_later"),
    [
        ("hello", "hello"),
        ("hello", [{"type": "text", "text": "hello"}]),
        ([{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}], "hello"),
        ([{"type": "input_text", "text": "hello"}], [{"text": "hello", "type": "text"}]),
        ([IMAGE, {"type": "text", "text": "what is it?"}], [IMAGE, {"type": "text", "text": "what is it?"}]),
    ],
)
def test_key_ignores_how_the_first_message_is_wrapped(first, same_later):
    """A moved cache mark, or a string that becomes a block, leaves the conversation the same."""
    assert conversation({"messages": [user(first)]}) == conversation(
        {"messages": [{"role": "system", "content": "be brief"}, user(same_later), user("and then?")]}
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"messages": [user("a")]}, {"messages": [user("b")]}),
        ({"messages": [user([{"text": "ab"}, {"text": "c"}])]}, {"messages": [user([{"text": "a"}, {"text": "bc"}])]}),
        ({"messages": [user([IMAGE])]}, {"messages": [user([IMAGE | {"image_url": {"url": "http://x"}}])]}),
        ({"messages": [user([AUDIO])]}, {"messages": [user([AUDIO | {"input_audio": {"data": "bbbb"}}])]}),
        (
            {"messages": [user([{"type": "file", "file": {"file_id": "f1"}}])]},
            {"messages": [user([{"type": "file", "file": {"file_id": "f2"}}])]},
        ),
        (
            {"input": [user([{"type": "input_file", "file_id": "f1"}])]},
            {"input": [user([{"type": "input_file", "file_id": "f2"}])]},
        ),
        ({"input": "a"}, {"input": "b"}),
        ({"prompt": "a"}, {"prompt": "b"}),
        ({"input": ["a", "b"]}, {"input": ["a", "c"]}),
        ({"input": [[1, 2]]}, {"input": [[1, 3]]}),
    ],
)
def test_different_first_messages_have_different_keys(one, other):
    """In every dialect, attachments included."""
    assert conversation(one) is not None
    assert conversation(one) != conversation(other)


def test_responses_input_is_read_like_messages():
    """A string, untyped items and typed items with the same text have the same key."""
    keys = {
        conversation({"input": "hello"}),
        conversation({"input": [user("hello")]}),
        conversation({"input": [{"type": "message", **user([{"type": "input_text", "text": "hello"}])}, user("more")]}),
        conversation({"input": [{"type": "reasoning", "summary": []}, user("hello")]}),
    }

    assert len(keys) == 1
    assert None not in keys


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [user("")]},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": 5},
        {"messages": [user({"text": "no list"})]},
        {"input": None},
        {"input": []},
        {"prompt": ""},
        {"prompt": None},
    ],
)
def test_body_without_a_user_message_has_no_key(body):
    """Its request may go to any target; the neuron rejects a wrong shape."""
    assert conversation(body) is None


def test_session_header_takes_precedence_over_the_content():
    """The client has named the conversation itself."""
    named = [(b"x-session-id", b"s-1")]

    assert conversation({"messages": [user("a")]}, named) == conversation({"messages": [user("b")]}, named)
    assert conversation({"messages": [user("a")]}, named) != conversation({"messages": [user("a")]})


@pytest.mark.parametrize("value", [b"", b"x" * 129, b"a b", b"\xff", b"a\n"])
def test_invalid_session_header_is_ignored(value):
    """The content gives the key instead."""
    body = {"messages": [user("a")]}

    assert conversation(body, [(b"x-session-id", value)]) == conversation(body)


def test_api_key_is_hashed_from_either_header():
    """Different secrets and headers give different keys, and the key does not contain the secret."""
    bearer = key_of([(b"authorization", b"Bearer sk-1")], b"{}", "key")
    other = key_of([(b"authorization", b"Bearer sk-2")], b"{}", "key")
    anthropic = key_of([(b"x-api-key", b"sk-1")], b"{}", "key")

    assert len({bearer, other, anthropic}) == 3
    assert None not in {bearer, anthropic}
    assert anthropic != key_of([(b"x-api-key", b"sk-2")], b"{}", "key")
    assert b"sk-1" not in bearer
    assert key_of([(b"x-session-id", b"s")], b"{}", "key") is None


TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=20)), max_size=6)


@given(st.text(min_size=1), TURNS, TURNS, st.sampled_from(["messages", "input"]))
def test_key_stays_the_same_over_later_turns(opening, before, after, field):
    """With any later turns, and with a system message first."""
    began = {field: [{"role": "system", "content": "s"}, user(opening)]}
    later = {field: [*began[field], *({"role": role, "content": text} for role, text in (*before, *after))]}

    assert conversation(later) == conversation(began)
    assert conversation(began) is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["messages", "input", "prompt", "role", "content", "text", "source"]) | st.text(), inner
            )
        ),
    )
)
def test_no_body_raises(body):
    """A client may send any JSON."""
    assert isinstance(conversation(body), bytes | None)
