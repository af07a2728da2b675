"""Responses requests: the input's items, turn by turn, and that each turn extends what the engine has cached."""

import base64
import json

import coding_agent
import pytest
from coding_agent import PICTURE, message
from fakes.responses_requests import KEY, data_url, outgoing, user
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects.responses import encrypted_reasoning, request

IMAGE = {"type": "image_url", "image_url": {"url": PICTURE["image_url"]}}
SEPARATE = Backend(alternating_roles=False)


def messages(*items, backend=PLAIN, **more):
    return outgoing({"input": list(items), **more}, backend)["messages"]


def function_call(call_id="c", name="f", arguments="{}", **more):
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def output(value, call_id="c"):
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def called(*calls):
    return [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in calls
    ]


# A session of a coding client...


def test_coding_agent_request_reaches_the_upstream_as_chat_completions():
    """Every field that has a counterpart is translated; the others are dropped."""
    as_chat = request.translate(coding_agent.body())
    sent = json.loads(as_chat.encode("Qwen/Qwen3-1.7B", SEPARATE))

    assert sent["stream"] is True
    assert set(sent) == {
        "model",
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "chat_template_kwargs",
        "stream",
        "stream_options",
    }
    system, *turns = sent["messages"]
    assert system["role"] == "system"
    assert system["content"].startswith("You are a coding agent.")
    assert system["content"].endswith("\n\n<permissions>ask before you write</permissions>")
    assert turns == [
        user("# Instructions of this folder\n<environment>today</environment>"),
        user("Which files are there?"),
    ]
    assert [tool["function"]["name"] for tool in sent["tools"]] == [
        "shell",
        "update_plan",
        "apply_patch",
        "mcp__docs__search",
    ]
    assert sent["tools"][0]["function"]["parameters"] == coding_agent.TOOLS[0]["parameters"]
    assert "strict" not in sent["tools"][0]["function"]
    assert "lark" in sent["tools"][2]["function"]["description"]
    assert sent["tools"][2]["function"]["parameters"]["required"] == ["input"]
    assert sent["chat_template_kwargs"] == {"enable_thinking": True}
    assert sent["stream_options"] == {"include_usage": True}
    assert as_chat.ignored == b"client_metadata, reasoning.summary, text.verbosity, tools.web_search, tools.tool_search"
    merged = json.loads(as_chat.encode("Qwen/Qwen3-1.7B"))["messages"]
    assert merged[1:] == [user("\n\n".join(turn["content"] for turn in turns))]


def test_coding_agent_second_turn_extends_the_first_byte_for_byte():
    """So that the neuron's prefix cache stays valid."""
    first, second = (request.translate(coding_agent.body(turn)).encode("m") for turn in (1, 2))
    prefix = first[: first.index(b'],"tools"')]

    assert second.startswith(prefix)


def test_coding_agent_answer_is_one_message_followed_by_its_outputs():
    """Calls of every type with the text before them; an image follows the outputs, with a label."""
    sent = outgoing(coding_agent.body(2), Backend(reasoning_content=True, alternating_roles=False))["messages"]

    assert sent[3] == {
        "role": "assistant",
        "content": "I will look.",
        "reasoning_content": "Look.",
        "tool_calls": called(
            ("call_1", "shell", '{"path": "/"}'),
            ("call_2", "apply_patch", '{"input":"*** a\\n"}'),
            ("call_3", "mcp__docs__search", "{}"),
        ),
    }
    assert sent[4:7] == [
        {"role": "tool", "tool_call_id": "call_1", "content": "a.py\n"},
        {"role": "tool", "tool_call_id": "call_2", "content": "done"},
        {"role": "tool", "tool_call_id": "call_3", "content": "none"},
    ]
    label, picture = sent[7]["content"]
    assert "call_3" in label["text"]
    assert picture == IMAGE
    assert sent[8] == user("Go on.")


# Prefix stability...

texts = st.text(max_size=10)
text_parts = st.builds(lambda text: {"type": "input_text", "text": text}, texts)
odd_parts = st.sampled_from(
    [{"type": "novelty", "text": "x"}, {"text": "bare"}, "string", None, {"type": "output_text"}]
)
contents = st.none() | texts | st.lists(text_parts | odd_parts | st.just(PICTURE), max_size=3)
developer_turns = st.builds(
    lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "developer"]), texts
)
outputs = st.builds(output, contents, st.sampled_from("ab"))
odd_items = st.sampled_from([{"type": "web_search_call", "id": "ws"}, {"type": "mcp_call", "content": 5}, None])
input_items = st.builds(lambda content: {"role": "user", "content": content}, contents) | outputs | developer_turns
answer_items = st.one_of(
    st.builds(lambda text: message("assistant", text), texts),
    st.builds(lambda text: {"role": "assistant", "content": text}, texts),
    st.builds(function_call, st.sampled_from("ab"), st.sampled_from("fg")),
    st.builds(
        lambda text: {"type": "custom_tool_call", "call_id": "a", "name": "p", "input": text},
        texts,
    ),
    st.builds(
        lambda text: {"type": "reasoning", "id": "rs", "content": [{"type": "reasoning_text", "text": text}]}, texts
    ),
)


def has_text_or_call(item):
    return item is not None and (item.get("role") == "assistant" or "call_id" in item)


exchanges = st.tuples(
    st.lists(input_items | odd_items, max_size=3),
    st.builds(lambda content: {"role": "user", "content": content}, contents) | outputs,  # what the model replies to
    st.lists(answer_items | odd_items, max_size=4),
)


@given(
    st.lists(exchanges, min_size=2, max_size=4),
    st.data(),
    st.none() | texts,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_longer_conversation_extends_the_shorter_byte_for_byte(
    exchanges, data, instructions, thoughts, anywhere, merged
):
    """At every length that a client would send: an item is translated without regard to the items after its answer."""
    count = data.draw(st.integers(1, len(exchanges) - 1))
    whole = [item for inputs, last, answer in exchanges for item in (*inputs, last, *answer)]
    answered = exchanges[count - 1][2]
    length = sum(len(inputs) + 1 + len(answer) for inputs, _, answer in exchanges[:count]) - len(answered)
    # A client does not send a request in the middle of a run of outputs.
    assume("output" not in exchanges[count - 1][1] or any(map(has_text_or_call, answered)))
    # With merged roles only an answer keeps the next turn from being merged into this one.
    assume(not merged or any(map(has_text_or_call, answered)))
    backend = Backend(reasoning_content=thoughts, system_anywhere=anywhere, alternating_roles=None if merged else False)
    first, second = (
        request.translate(json.dumps({"model": "m", "instructions": instructions, "input": items}).encode()).encode(
            "m", backend
        )
        for items in (whole[:length], whole)
    )

    assert first.endswith(b"]}")
    assert second.startswith(first.removesuffix(b"]}"))


@given(st.lists(texts, max_size=3))
def test_string_and_text_parts_give_the_same_bytes(texts):
    """Versions of a client differ in which one they write."""
    parts = [{"type": "input_text", "text": text} for text in texts]

    assert messages(user(parts)) == messages(user("\n".join(texts)))


# Forms of items...


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hi", [user("hi")]),
        ([user("hi")], [user("hi")]),
        ([{"type": "message", **user("hi")}], [user("hi")]),
        (["hi", user("there")], [user("hi"), user("there")]),
        ([None, {"type": "mcp_call", "content": {"x": 1}, "role": 5}, user("hi")], [user("hi")]),
        ([{"type": "web_search_call", "output": 1, "arguments": [1]}, user("hi")], [user("hi")]),
    ],
)
def test_input_is_accepted_in_every_form(value, expected):
    """An item that records the work of OpenAI's servers does not make the request fail."""
    assert outgoing({"input": value}, SEPARATE)["messages"] == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ""),
        ([], ""),
        (["hi", {"type": "input_text", "text": "there"}], "hi\nthere"),
        ({"type": "input_text", "text": "bare part"}, "bare part"),
        ([{"type": "text", "text": "chat's own"}], "chat's own"),
        ([{"type": "refusal", "refusal": "no"}, {"type": "input_text", "text": "known"}], "no\nknown"),
        ([{"type": "novelty", "text": "says something"}], "says something"),
        ([None, {"type": "input_text"}], ""),
        ([{"type": "input_text", "text": "half \ud83d pair"}], "half \ufffd pair"),
        ([PICTURE], [IMAGE]),
        ([{"type": "image_url", "image_url": {"url": PICTURE["image_url"]}}], [IMAGE]),
        ([{**PICTURE, "detail": "auto"}], [IMAGE]),
        (
            [{**PICTURE, "detail": "high"}],
            [{"type": "image_url", "image_url": {"url": PICTURE["image_url"], "detail": "high"}}],
        ),
    ],
)
def test_user_parts_are_accepted_in_every_form(content, expected):
    """Parts of this API, of chat completions, and unknown ones."""
    assert messages(user(content)) == [user(expected)]


def test_messages_of_one_role_are_merged_unless_the_backend_takes_them():
    """Many chat templates refuse them."""
    conversation = [user("a"), user("b"), {"role": "assistant", "content": "c"}, {"role": "assistant", "content": "d"}]

    assert messages(*conversation, backend=SEPARATE) == conversation
    assert messages(*conversation) == [user("a\n\nb"), {"role": "assistant", "content": "c\n\nd"}]


def test_client_run_tools_of_the_history_are_calls_and_outputs():
    """In the items of their own; the output of a local shell may name the item of its call."""
    exit_0, timeout = {"type": "exit", "exit_code": 0}, {"type": "timeout"}
    conversation = [
        user("hi"),
        {"type": "shell_call", "call_id": "a", "action": {"commands": ["ls", "pwd"], "timeout_ms": None}},
        {"type": "apply_patch_call", "call_id": "b", "operation": {"type": "delete_file", "path": "x"}},
        {"type": "local_shell_call", "id": "lsh_1", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}},
        {
            "type": "shell_call_output",
            "call_id": "a",
            "output": [
                {"stdout": "f\n", "stderr": "", "outcome": exit_0},
                {"stdout": "", "stderr": "slow\n", "outcome": timeout},
            ],
        },
        {"type": "apply_patch_call_output", "call_id": "b", "status": "failed", "output": "no such file"},
        {"type": "local_shell_call_output", "id": "lsh_1", "output": '{"output":"f"}'},
        {"type": "apply_patch_call_output", "call_id": "b", "status": "completed"},
    ]

    assert messages(*conversation)[1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": called(
                ("a", "shell", '{"commands":["ls","pwd"]}'),
                ("b", "apply_patch", '{"type":"delete_file","path":"x"}'),
                ("c", "local_shell", '{"command":["ls"]}'),
            ),
        },
        {"role": "tool", "tool_call_id": "a", "content": "f\n[exit code 0]\n[stderr]\nslow\n[timed out]"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no such file"},
        {"role": "tool", "tool_call_id": "c", "content": '{"output":"f"}'},
        {"role": "tool", "tool_call_id": "b", "content": "completed"},
    ]


def test_encrypted_reasoning_is_sent_back_if_it_is_ours():
    """Alone, as Codex sends it; that of another provider, of another key or altered is ignored."""
    ours = encrypted_reasoning.encode("Hm.", KEY)
    thinker = Backend(reasoning_content=True)

    def sent(encrypted, **more):
        item = {"type": "reasoning", "summary": [], "encrypted_content": encrypted, **more}
        return messages(user("hi"), item, message("assistant", "a"), backend=thinker)[1].get("reasoning_content")

    assert sent(ours) == "Hm."
    assert sent(ours, content=[{"type": "reasoning_text", "text": "other"}]) == "Hm."
    for foreign in (
        encrypted_reasoning.encode("Hm.", b"k" * 32),
        ours[:-4] + "AAAA",
        ours[:-1],
        "gAAAAABk",
        "",
        None,
        5,
    ):
        assert sent(foreign) is None
    assert sent("gAAAAABk", content=[{"type": "reasoning_text", "text": "read"}]) == "read"


def test_audio_is_passed_on():
    """In the same part as in chat completions."""
    audio = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}

    assert messages(user([audio])) == [user([audio])]


def test_developer_messages_keep_their_place():
    """Before the first turn they are one system message; later only if the backend takes one anywhere."""
    conversation = [
        {"role": "developer", "content": "A"},
        {"role": "system", "content": [{"type": "input_text", "text": "B"}]},
        user("hi"),
        {"role": "developer", "content": "C"},
    ]

    assert messages(*conversation, instructions="S", backend=SEPARATE) == [
        {"role": "system", "content": "S\n\nA\n\nB"},
        user("hi"),
        user("<system-reminder>\nC\n</system-reminder>"),
    ]
    anywhere = messages(*conversation, instructions="S", backend=Backend(system_anywhere=True))
    assert [(m["role"], m["content"]) for m in anywhere] == [
        ("system", "S"),
        ("system", "A"),
        ("system", "B"),
        ("user", "hi"),
        ("system", "C"),
    ]


def test_text_before_and_after_a_call_stays_in_order():
    """It belongs to one answer, and all of it is kept."""
    conversation = [user("hi"), message("assistant", "First "), function_call("a"), message("assistant", "then this.")]

    assert messages(*conversation)[1:] == [
        {"role": "assistant", "content": "First then this.", "tool_calls": called(("a", "f", "{}"))}
    ]


def test_text_and_calls_of_one_answer_are_one_message():
    """In any order; after their outputs a new message begins."""
    conversation = [
        user("hi"),
        function_call("a"),
        message("assistant", "Meanwhile"),
        function_call("b"),
        output("1", "a"),
        output("2", "b"),
        function_call("c"),
        output("3", "c"),
        message("assistant", "Done", "."),
    ]

    assert messages(*conversation)[1:] == [
        {"role": "assistant", "content": "Meanwhile", "tool_calls": called(("a", "f", "{}"), ("b", "f", "{}"))},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "assistant", "content": None, "tool_calls": called(("c", "f", "{}"))},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
        {"role": "assistant", "content": "Done."},
    ]


def test_reasoning_is_sent_back_only_if_supported():
    """With its answer. Another provider's encrypted reasoning or summaries are dropped."""
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    foreign = {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "no"}]}
    conversation = [user("hi"), thought, foreign, message("assistant", "a"), thought, function_call(), output("x")]

    assert messages(*conversation)[1] == {"role": "assistant", "content": "a", "tool_calls": called(("c", "f", "{}"))}
    sent = messages(*conversation, backend=Backend(reasoning_content=True))
    assert sent[1]["reasoning_content"] == "Hm.Hm."


def test_reasoning_without_an_answer_is_dropped():
    """The token limit had ended the answer before any text."""
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    conversation = [user("a"), thought, user("b"), message("assistant", "c")]

    assert messages(*conversation, backend=Backend(reasoning_content=True, alternating_roles=False)) == [
        user("a"),
        user("b"),
        {"role": "assistant", "content": "c"},
    ]


def test_refusal_is_sent_back_as_text():
    """Text and refusal parts of a message become one text."""
    content = [{"type": "output_text", "text": "Well, "}, {"type": "refusal", "refusal": "no."}]

    assert messages({"role": "assistant", "content": content}) == [{"role": "assistant", "content": "Well, no."}]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('"{\\"a\\": 1.50, \\"b\\":[1e400]}"', '{"a": 1.50, "b":[1e400]}'),
        ('""', "{}"),
        ("null", "{}"),
        ('{"a": 1.50}', '{"a": 1.50}'),
        ('"cut: {"', "cut: {"),
    ],
)
def test_arguments_are_sent_byte_for_byte(written, arguments):
    """Numbers and white space included; an object that is not encoded as a string is accepted."""
    item = f'{{"type":"function_call","call_id":"a","name":"f","arguments":{written}}}'
    [sent] = outgoing(f'{{"model":"m","input":[{item}]}}'.encode())["messages"]

    assert sent["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "a\nb"),
        ([PICTURE], "[image, see below]"),
        ({"temp": 20}, '{"temp": 20}'),
        (20, "20"),
    ],
)
def test_tool_output_becomes_text(value, text):
    """A tool message can only hold text; JSON that is no content becomes a text of that JSON."""
    assert messages(function_call(), output(value))[1] == {"role": "tool", "tool_call_id": "c", "content": text}


def test_images_of_parallel_outputs_follow_the_last():
    """Chat completions wants all outputs right after the calls."""
    items = (function_call("a"), function_call("b"), output([PICTURE], "a"), output("x", "b"), user("hi"))
    sent = messages(*items, backend=SEPARATE)

    assert [m["role"] for m in sent] == ["assistant", "tool", "tool", "user", "user"]
    assert sent[3]["content"][1] == IMAGE


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ({"file_data": data_url("grüß".encode()), "filename": "a.txt"}, "a.txt\ngrüß"),
        ({"file_data": data_url(b"{}", "application/json")}, "{}"),
        ({"file_data": base64.b64encode(b"bare").decode(), "filename": ""}, "bare"),
        ({"file_data": data_url(b"")}, ""),
    ],
)
def test_text_file_is_sent_with_its_name(file, text):
    """With any media type: a file is text if it is UTF-8."""
    assert messages(user([{"type": "input_file", **file}])) == [user(text)]
