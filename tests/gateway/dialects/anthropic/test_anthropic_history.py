"""Messages requests: a conversation, turn by turn, and that each turn extends what the engine has cached."""

import json
from itertools import pairwise

import pytest
from fakes import coding_cli
from fakes.anthropic_requests import SEPARATE, assistant, messages, outgoing, user
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.engine_traits import Backend
from gateway.dialects.anthropic import request
from gateway.dialects.anthropic.signature import sign

SEPARATE_ANYWHERE = Backend(alternating_roles=False, system_anywhere=True)


# A session of a coding client...


def test_coding_cli_request_reaches_the_upstream_as_chat_completions():
    """Every field that has a counterpart is translated; the others are dropped."""
    body = coding_cli.body()
    assert 70_000 < len(body) < 82_000
    as_chat = request.translate(body)
    sent = json.loads(as_chat.encode("Qwen/Qwen3-1.7B", SEPARATE))

    assert (sent["stream"], as_chat.context("r", "m").show_thinking) == (True, True)
    assert sent.keys() == {
        "model",
        "messages",
        "max_tokens",
        "user",
        "tools",
        "chat_template_kwargs",
        "stream",
        "stream_options",
    }
    assert sent["model"] == "Qwen/Qwen3-1.7B"
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["user"] == coding_cli.USER_ID
    assert sent["chat_template_kwargs"] == {"enable_thinking": True}
    assert len(sent["tools"]) == 24
    for given_tool, tool in zip(coding_cli.request()["tools"], sent["tools"], strict=True):
        assert tool.keys() == {"type", "function"}
        assert tool["function"] == {
            "name": given_tool["name"],
            "description": given_tool["description"],
            "parameters": given_tool["input_schema"],
        }
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "user", "user"]
    assert sent["messages"][0]["content"].startswith("You are a coding assistant.\nUse this tool")
    assert sent["messages"][3]["content"] == "<system-reminder>\nAvailable agents: none\n</system-reminder>"
    assert b"cache_control" not in as_chat.encode("m")


def test_coding_cli_second_turn_extends_the_first_byte_for_byte():
    """Although the CLI changes a hash in its system prompt every turn. The neuron's prefix cache stays valid."""
    first, second = (request.translate(coding_cli.body(turn)).encode("m") for turn in (1, 2))
    prefix = first[: first.index(b'],"max_tokens"')]

    assert second.startswith(prefix)


def test_coding_cli_tool_results_precede_the_rest_of_the_turn():
    """Chat completions wants them right after the call; Messages allows them anywhere in the turn."""
    sent = outgoing(coding_cli.body(2), SEPARATE)["messages"]

    assert sent[4] == {
        "role": "assistant",
        "content": "I will look.",
        "tool_calls": [
            {
                "id": f"toolu_{i}",
                "type": "function",
                "function": {"name": "ListFile", "arguments": f'{{"path":"/{i}"}}'},
            }
            for i in (1, 2)
        ],
    }
    assert sent[5:7] == [
        {"role": "tool", "tool_call_id": "toolu_1", "content": "a.py"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no such folder"},
    ]
    text, label, image = sent[7]["content"]
    assert text == {"type": "text", "text": "go on"}
    assert "toolu_1" in label["text"]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


# Prefix stability...

texts = st.text(max_size=10)
pictures = st.just(coding_cli.PICTURE)
text_blocks = st.builds(lambda text: {"type": "text", "text": text}, texts)
odd_blocks = st.sampled_from(
    [{"type": "novelty", "text": "says"}, {"text": "bare"}, "string", None, {"type": "redacted_thinking"}]
)
results = st.builds(
    lambda content, bad: {"type": "tool_result", "tool_use_id": "t", "content": content, "is_error": bad},
    st.none() | texts | st.lists(text_blocks | pictures, max_size=2),
    st.booleans(),
)
thoughts = st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": sign(text)}, texts)
calls = st.builds(
    lambda value: {"type": "tool_use", "id": "t", "name": "f", "input": value},
    st.dictionaries(texts, texts, max_size=2),
)


def turns(role, *blocks):
    content = st.none() | texts | st.lists(st.one_of(text_blocks, odd_blocks, *blocks), max_size=4)
    return st.fixed_dictionaries({"role": st.just(role), "content": content}, optional={"cache_control": st.just({})})


conversations = st.lists(
    turns("user", pictures, results) | turns("assistant", thoughts, calls) | turns("system"), min_size=2, max_size=6
)


@given(conversations, st.data(), st.none() | texts, st.booleans(), st.booleans())
def test_longer_conversation_extends_the_shorter_byte_for_byte(turns, data, system, thoughts, anywhere):
    """For any turns: each is translated without regard to the turns after it."""
    shorter = turns[: data.draw(st.integers(1, len(turns) - 1))]
    backend = Backend(reasoning_content=thoughts, system_anywhere=anywhere, alternating_roles=False)
    first, second = (
        request.translate(json.dumps({"model": "m", "system": system, "messages": some}).encode()).encode("m", backend)
        for some in (shorter, turns)
    )

    assert second.startswith(first[: first.rindex(b'],"chat_template_kwargs"')])


@given(st.lists(st.tuples(conversations, conversations), min_size=2, max_size=3), st.booleans(), st.booleans())
def test_next_turn_extends_the_last_one_when_roles_are_merged(exchanges, thoughts, anywhere):
    """At every length that a client sends: up to a user turn, and then with the answer and further turns after it."""
    backend = Backend(reasoning_content=thoughts, system_anywhere=anywhere)
    sent, turns = [], []
    for before, answer in exchanges:
        turns += [*(t for t in before if t["role"] != "assistant"), user("ask")]
        body = json.dumps({"model": "m", "messages": turns}).encode()
        sent.append(request.translate(body).encode("m", backend))
        turns += [assistant("said"), *(t for t in answer if t["role"] == "assistant")]

    for first, second in pairwise(sent):
        prefix = first[: first.rindex(b'],"chat_template_kwargs"')]
        assert second.startswith(prefix)
        roles = [message["role"] for message in json.loads(second)["messages"]]
        assert all(a != b for a, b in pairwise(roles) if a in {"user", "assistant"})


@given(st.lists(texts, max_size=3))
def test_string_and_text_blocks_give_the_same_bytes(texts):
    """Clients turn one into the other to add a `cache_control` mark."""
    marked = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in texts]

    assert messages(user(marked)) == messages(user("\n".join(texts)))


# Forms of turns...


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ""),
        ("hi", "hi"),
        ([], ""),
        (["hi", {"type": "text", "text": "there"}], "hi\nthere"),
        ({"type": "text", "text": "bare block"}, "bare block"),
        ([{"text": "no type"}], "no type"),
        ([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "known"}], "known"),
        ([{"type": "compaction", "content": "in short"}], "in short"),
        (
            [{"type": "document", "title": "T", "context": "C", "source": {"type": "text", "data": "x"}}],
            "T\nC\nx",
        ),
        ([{"type": "novelty", "text": "says something"}], "says something"),
        ([None, {"type": "text"}], ""),
        ([{"type": "tool_reference", "tool_name": "Web"}], "[tool Web is available]"),
        (
            [{"type": "search_result", "source": "u", "title": "T", "content": [{"type": "text", "text": "x"}]}],
            "T\nu\nx",
        ),
        ([{"type": "text", "text": "half \ud83d pair"}], "half \ufffd pair"),
    ],
)
def test_user_content_is_accepted_in_every_form(content, expected):
    """An unknown block is accepted if it has a text."""
    assert messages(user(content)) == [{"role": "user", "content": expected}]


def test_turns_of_one_role_are_merged_unless_the_backend_takes_them():
    """Anthropic's API combines them, and many chat templates refuse them."""
    turns = [user("a"), user("b"), assistant("c"), assistant("d"), user([coding_cli.PICTURE]), user("e")]

    assert messages(*turns[:2], backend=SEPARATE) == [user("a"), user("b")]
    sent = messages(*turns)
    assert sent[:2] == [user("a\n\nb"), assistant("c\n\nd")]
    assert [part["type"] for part in sent[2]["content"]] == ["image_url", "text"]
    assert len(sent) == 3


def test_system_turn_keeps_its_place():
    """It is a system message if it is the first message, or if the backend takes one anywhere."""
    conversation = [{"role": "system", "content": "A"}, user("hi"), {"role": "system", "content": "B"}]

    assert messages(*conversation, backend=SEPARATE) == [
        conversation[0],
        conversation[1],
        user("<system-reminder>\nB\n</system-reminder>"),
    ]
    assert messages(*conversation, backend=SEPARATE_ANYWHERE) == conversation
    assert messages(*conversation, backend=Backend(system_anywhere=True)) == conversation
    assert messages(*conversation, system="S")[1]["role"] == "user"
    assert messages(*conversation)[1:] == [user("hi\n\n<system-reminder>\nB\n</system-reminder>")]


def test_assistant_content_is_null_only_with_tool_calls():
    """As in OpenAI's API."""
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}

    assert messages(assistant([call]))[0]["content"] is None
    assert messages(assistant(None))[0] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"a": 1.50, "b":[1e400]}', '{"a": 1.50, "b":[1e400]}'),
        ("{}", "{}"),
        ("null", "{}"),
        ('""', "{}"),
        ('"{\\"a\\":1}"', '{"a":1}'),
    ],
)
def test_tool_input_becomes_arguments_byte_for_byte(written, arguments):
    """Numbers and white space included; a string that contains the object is accepted."""
    block = f'{{"type":"tool_use","id":"a","name":"f","input":{written}}}'
    body = f'{{"model":"m","messages":[{{"role":"assistant","content":[{block}]}}]}}'

    assert outgoing(body.encode())["messages"][0]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({}, ""),
        ({"content": None}, ""),
        ({"content": "plain"}, "plain"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": [{"type": "document", "source": {"type": "text", "data": "doc"}}]}, "doc"),
        ({"content": "boom", "is_error": True}, "Error: boom"),
        ({"is_error": True}, "Error"),
        ({"content": [coding_cli.PICTURE]}, "[image, see below]"),
    ],
)
def test_tool_result_becomes_text(result, text):
    """A tool message can only hold text; an error is marked in that text."""
    block = {"type": "tool_result", "tool_use_id": "a", **result}

    assert messages(user([block]))[0] == {"role": "tool", "tool_call_id": "a", "content": text}


def test_thinking_is_sent_back_only_if_genuine_and_supported():
    """Thinking of another provider, or edited or truncated, is dropped for every backend."""
    blocks = [
        {"type": "thinking", "thinking": "ours", "signature": sign("ours")},
        {"type": "thinking", "thinking": "edited", "signature": sign("other")},
        {"type": "thinking", "thinking": "cut", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "said"},
    ]

    assert messages(assistant(blocks)) == [assistant("said")]
    [message] = messages(assistant(blocks), backend=Backend(reasoning_content=True))
    assert message == {"role": "assistant", "content": "said", "reasoning_content": "ours"}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "hello"}, "hello"),
        ({"type": "base64", "media_type": "text/markdown", "data": "aGVsbG8="}, "hello"),
        ({"type": "content", "content": "hello"}, "hello"),
        ({"type": "content", "content": [{"type": "text", "text": "hello"}]}, "hello"),
    ],
)
def test_text_document_is_sent_with_its_title(source, text):
    """In every form that the API has for a document."""
    assert messages(user([{"type": "document", "title": "T", "source": source}])) == [user(f"T\n{text}")]
