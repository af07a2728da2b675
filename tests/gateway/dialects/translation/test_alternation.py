"""Merging of consecutive messages of one role."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.engine_traits import Backend
from gateway.dialects import ClientRequest
from gateway.dialects.anthropic import request as messages_request
from gateway.dialects.json_splice import locate
from gateway.dialects.openai import PassThroughRequest
from gateway.dialects.responses import request as responses_request
from gateway.dialects.translation.alternation import merge_roles

texts = st.text(max_size=5)
parts = st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), max_size=2)
calls = st.lists(st.builds(lambda text: {"id": text}, texts), max_size=2)
users = st.builds(lambda content: {"role": "user", "content": content}, texts | parts)
assistants = st.builds(
    lambda content, thought, made: {
        "role": "assistant",
        "content": content,
        **({"reasoning_content": thought} if thought else {}),
        **({"tool_calls": made} if made else {}),
    },
    st.none() | texts,
    texts,
    calls,
)
others = st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "tool"]), texts)
conversations = st.lists(users | assistants | others, max_size=8)


def words(messages):
    """Everything that the messages say, in order."""
    return [
        part["text"] if isinstance(part, dict) else part
        for message in messages
        for part in (message["content"] if isinstance(message["content"], list) else [message["content"] or ""])
    ]


@given(conversations)
def test_roles_alternate_and_nothing_is_lost(conversation):
    """Text, calls and reasoning; messages of tools and the system stay as they are."""
    before = json.dumps(conversation)
    merged = merge_roles(conversation)

    assert json.dumps(conversation) == before
    roles = [message["role"] for message in merged]
    assert not any(a == b in {"user", "assistant"} for a, b in pairwise(roles))
    assert "".join(words(merged)).replace("\n\n", "") == "".join(words(conversation)).replace("\n\n", "")
    for key in ("tool_calls", "reasoning_content"):
        assert [m.get(key) for m in merged if m["role"] != "assistant"] == [None] * sum(r != "assistant" for r in roles)
    made, kept = ([call for m in some for call in m.get("tool_calls", ())] for some in (conversation, merged))
    assert made == kept
    assert merge_roles(merged) == merged


@given(conversations)
def test_strictly_no_user_follows_a_tool(conversation):
    """As Mistral's chat templates demand: user and assistant alternate if the calls and results are left out."""
    merged = merge_roles(conversation, strictly=True)
    roles = [message["role"] for message in merged]

    assert ("tool", "user") not in pairwise(roles)
    assert [message for message in merged if message != ACKNOWLEDGED] == [
        message for message in merge_roles(conversation) if message != ACKNOWLEDGED
    ]
    assert merge_roles(merged, strictly=True) == merged


ACKNOWLEDGED = {"role": "assistant", "content": "OK."}


@pytest.mark.parametrize("strictly", [False, True])
@given(conversations, conversations)
def test_longer_conversation_extends_the_shorter(strictly, conversation, more):
    """Byte for byte, if a message of another role comes next, as it does after every answer."""
    merged = merge_roles(conversation, strictly=strictly)
    longer = merge_roles([*conversation, *more], strictly=strictly)
    goes_on = conversation and more and conversation[-1]["role"] == more[0]["role"] in {"user", "assistant"}

    assert longer[: len(merged) - bool(goes_on)] == merged[: len(merged) - bool(goes_on)]


def test_texts_of_one_role_are_extended_at_their_end():
    """So the neuron's cache still holds the beginning of the message."""
    [shorter] = merge_roles([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    [longer] = merge_roles([{"role": "user", "content": text} for text in "abc"])

    assert longer["content"].startswith(shorter["content"])
    assert longer["content"] == "a\n\nb\n\nc"


# Chat completions that pass through...


def outgoing(body, path=b"/v1/chat/completions", **traits):
    request = ClientRequest(path, body, locate(body), "r")
    return PassThroughRequest(request).outgoing("lab/m", Backend(**traits)).body


@pytest.mark.parametrize(
    ("messages", "merged"),
    [
        (
            b'[{"role":"system","content":"s" }, {"role":"user","content":"a"},{"role":"user","content":[{"t":"x"}]}]',
            b'[{"role":"system","content":"s" },{"role":"user","content":[{"type":"text","text":"a"},{"t":"x"}]}]',
        ),
        (
            b'[{"role":"assistant","tool_calls":[{"id":"1"}]},{"role":"assistant","tool_calls":[{"id":"2"}]}]',
            b'[{"role":"assistant","tool_calls":[{"id":"1"},{"id":"2"}],"content":null}]',
        ),
        (
            b'[{"role":"tool","content":"a"}, {"role":"user","content":"b"},{"role":"user","content":"c"}]',
            b'[{"role":"tool","content":"a"},{"role":"assistant","content":"OK."},{"role":"user","content":"b\\n\\nc"}]',
        ),
        (
            b'[{"role":"tool","content":"a"},{"role":"user","content":"b" }]',
            b'[{"role":"tool","content":"a"},{"role":"assistant","content":"OK."},{"role":"user","content":"b" }]',
        ),
        (b'[{"role":"tool","content":"a"},{"role":"assistant","content":"b"}]', None),
        (b'[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]', None),
        (b'[{"role":"tool","content":"a"},{"role":"tool","content":"b"}]', None),
        (b'[{"role":"user","content":"a","name":"x"},{"role":"user","content":"b","name":"y"}]', None),
        (b'[{"role":"user","content":"a"},{"role":"user","content":5}]', None),
        (b'[{"role":"user"},"x"]', None),
        (b'"text"', None),
    ],
)
def test_pass_through_is_merged_only_where_the_neuron_asks_for_it(messages, merged):
    """The other bytes stay; so does all of a body that needs no merging or is not understood."""
    body = b'{"temperature": 1.50, "model":"m", "messages": %b , "x":1}' % messages
    renamed = body.replace(b'"m"', b'"lab/m"', 1)

    assert outgoing(body) == outgoing(body, alternating_roles=False) == renamed
    assert outgoing(body, alternating_roles=True) == (renamed if merged is None else renamed.replace(messages, merged))
    assert outgoing(body, b"/v1/completions", alternating_roles=True) == renamed


def test_merging_goes_with_a_request_for_usage():
    """Both change the same body."""
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    body = json.dumps({"model": "m", "stream": True, "messages": two}).encode()

    assert json.loads(outgoing(body, alternating_roles=True, ask_usage=True)) == {
        "model": "lab/m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "a\n\nb"}],
    }


RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "5"}


@pytest.mark.parametrize(
    ("alternating_roles", "roles"),
    [
        (None, ["user", "assistant", "tool", "user"]),
        (False, ["user", "assistant", "tool", "user"]),
        (True, ["user", "assistant", "tool", "assistant", "user"]),
    ],
)
@pytest.mark.parametrize("api", ["messages", "responses"])
def test_text_after_a_tools_result_follows_an_answer_where_roles_must_alternate(api, alternating_roles, roles):
    """In one turn of Messages, or in the items of Responses."""
    if api == "messages":
        call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        turns = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [RESULT, {"type": "text", "text": "so?"}]},
        ]
        as_chat = messages_request.translate(json.dumps({"model": "m", "messages": turns}).encode())
    else:
        items = [
            {"role": "user", "content": "hi"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "5"},
            {"role": "user", "content": "so?"},
        ]
        as_chat = responses_request.translate(json.dumps({"model": "m", "input": items}).encode())
    sent = json.loads(as_chat.encode("m", Backend(alternating_roles=alternating_roles)))

    assert [message["role"] for message in sent["messages"]] == roles
