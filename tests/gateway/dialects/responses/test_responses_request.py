"""Responses requests: what a neuron receives."""

import base64
import json

import coding_agent
import pytest
from coding_agent import PICTURE, message
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway import errors
from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects.responses import encrypted_reasoning, request

IMAGE = {"type": "image_url", "image_url": {"url": PICTURE["image_url"]}}


KEY = bytes(32)
SEPARATE = Backend(alternating_roles=False)


def outgoing(body, backend=PLAIN):
    if isinstance(body, dict):
        body = json.dumps({"model": "m", **body}).encode()
    return json.loads(request.translate(body, secret_key=KEY).encode("lab/m", backend))


def messages(*items, backend=PLAIN, **more):
    return outgoing({"input": list(items), **more}, backend)["messages"]


def user(content):
    return {"role": "user", "content": content}


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


def data_url(content, media_type="text/plain"):
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


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


# Parameters...


def test_parameters_are_translated():
    """Parameters without a counterpart are repeated in the answer or ignored; they never reach a neuron."""
    sent = outgoing(
        {
            "input": "hi",
            "max_output_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "user": "u",
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "metadata": {"a": "b"},
            "store": True,
            "include": ["reasoning.encrypted_content"],
            "truncation": "auto",
            "background": False,
            "previous_response_id": None,
            "conversation": None,
            "service_tier": "flex",
            "safety_identifier": "s",
            "prompt_cache_key": "p",
            "text": {"format": {"type": "text"}, "verbosity": "low"},
            "stream_options": {"include_obfuscation": False},
        }
    )

    assert sent == {
        "model": "lab/m",
        "messages": [user("hi")],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
    }


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"},
            {
                "type": "json_schema",
                "json_schema": {"name": "n", "description": "d", "schema": {"type": "object"}, "strict": True},
            },
        ),
        (
            {"type": "json_schema", "schema": {"type": "object"}},
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        ),
    ],
)
def test_text_format_is_translated(format_, expected):
    """To the nested form of chat completions."""
    assert outgoing({"input": "hi", "text": {"format": format_}}).get("response_format") == expected


F = {"type": "function", "name": "f", "parameters": {"type": "object"}}
SENT_F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("tool", "sent"),
    [
        (F, SENT_F),
        ({**F, "strict": True}, {"type": "function", "function": {**SENT_F["function"], "strict": True}}),
        ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}, SENT_F),
        ({"name": "f", "parameters": {"type": "object"}}, SENT_F),
        (
            {"type": "function", "name": "f", "parameters": None},
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}},
        ),
    ],
)
def test_function_is_nested(tool, sent):
    """As in chat completions; a function that is nested already is accepted."""
    assert outgoing({"input": "hi", "tools": [tool]})["tools"] == [sent]


@pytest.mark.parametrize(
    ("choice", "expected", "offered"),
    [
        ("auto", "auto", ["f", "g", "a__f"]),
        ("none", "none", ["f", "g", "a__f"]),
        ("required", "required", ["f", "g", "a__f"]),
        (None, None, ["f", "g", "a__f"]),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}, ["f", "g", "a__f"]),
        (
            {"type": "function", "function": {"name": "f"}},
            {"type": "function", "function": {"name": "f"}},
            ["f", "g", "a__f"],
        ),
        ({"type": "custom", "name": "g"}, {"type": "function", "function": {"name": "g"}}, ["f", "g", "a__f"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "g"}, {"type": "mcp"}]},
            "required",
            ["g"],
        ),
    ],
)
def test_tool_choice_is_translated(choice, expected, offered):
    """Engines have no list of allowed tools, so the others are not offered. OpenAI's own tools never are."""
    tools = [
        F,
        {"type": "custom", "name": "g"},
        {"type": "namespace", "name": "a", "tools": [F]},
        {"type": "web_search"},
    ]
    sent = outgoing({"input": "hi", "tools": tools, "tool_choice": choice})

    assert sent.get("tool_choice") == expected
    assert [tool["function"]["name"] for tool in sent["tools"]] == offered


@pytest.mark.parametrize(
    ("effort", "switch", "expected"),
    [
        ("high", "chat_template_kwargs", {"enable_thinking": True}),
        ("minimal", "chat_template_kwargs", {"enable_thinking": False}),
        ("none", "chat_template_kwargs", {"enable_thinking": False}),
        (None, "chat_template_kwargs", None),
        ("none", "reasoning_effort", "none"),
        ("minimal", "reasoning_effort", "low"),
        ("low", "reasoning_effort", "low"),
        ("medium", "reasoning_effort", "medium"),
        ("xhigh", "reasoning_effort", "high"),
        ("high", "none", None),
    ],
)
def test_effort_sets_the_backends_switch(effort, switch, expected):
    """Whichever switch it has; none if the client did not set an effort."""
    sent = outgoing({"input": "hi", "reasoning": {"effort": effort}}, Backend(thinking_switch=switch))

    assert sent.get(switch) == expected
    assert len(sent) == 2 + (expected is not None)


def test_estimate_counts_instructions_tools_input_and_images():
    """Each of them raises it; an image counts the same whatever its size."""

    def tokens(**more):
        return (
            request.translate(json.dumps({"model": "m", "input": "hi", **more}).encode()).context("r", "m").input_tokens
        )

    picture = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    assert 1 <= tokens() <= 15
    assert tokens(instructions="x" * 350) - tokens() == pytest.approx(110, abs=12)
    assert tokens(tools=[{**F, "description": "x" * 350}]) - tokens() > 100
    assert 1000 < tokens(input=[user([picture])]) < 1050


# What is left out...


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({}, b""),
        ({"store": False, "truncation": "disabled", "service_tier": "auto", "top_logprobs": 0}, b""),
        ({"store": True, "truncation": "auto"}, b"store, truncation"),
        ({"include": ["reasoning.encrypted_content"]}, b""),
        ({"include": ["message.output_text.logprobs"]}, b"include.message.output_text.logprobs"),
        ({"metadata": {"a": "b"}, "prompt_cache_key": "k", "max_tool_calls": 3}, b"max_tool_calls"),
        ({"ignore_eos": True, "top_k": 5}, b""),
        ({"novelty": 1, "client_metadata": None}, b"novelty"),
        (
            {"tools": [F, {"type": "web_search"}, {"type": "shell", "environment": {"type": "container_auto"}}]},
            b"tools.web_search, tools.shell",
        ),
        (
            {"input": ["hi", {"type": "mcp_call"}, {"type": "web_search_call"}, {"type": "mcp_call"}]},
            b"input.mcp_call, input.web_search_call",
        ),
    ],
)
def test_what_is_left_out_is_named(fields, header):
    """Fields, tools and items without an effect, unless they ask for what happens anyway."""
    assert request.translate(json.dumps({"model": "m", "input": "hi", **fields}).encode()).ignored == header


@pytest.mark.parametrize("switch", ["none", "chat_template_kwargs", "reasoning_effort"])
def test_effort_is_named_where_the_backend_has_no_switch(switch):
    """Elsewhere it has an effect."""
    body = json.dumps({"model": "m", "input": "hi", "reasoning": {"effort": "low"}}).encode()
    ignored = request.translate(body).ignored_by(Backend(thinking_switch=switch))

    assert ignored == (b"reasoning.effort" if switch == "none" else b"")


def test_engine_parameters_survive():
    """Engines have many that the Responses API does not."""
    sent = outgoing({"input": "hi", "ignore_eos": True, "top_k": 5, "chat_template_kwargs": {"x": 1}})

    assert (sent["ignore_eos"], sent["top_k"], sent["chat_template_kwargs"]) == (True, 5, {"x": 1})


@pytest.mark.parametrize("tool", ["shell", "local_shell", "apply_patch"])
@pytest.mark.parametrize(
    "choose",
    [
        lambda tool: {"type": tool},
        lambda tool: {"type": "allowed_tools", "mode": "required", "tools": [{"type": tool}]},
    ],
)
def test_client_run_tool_is_offered_with_a_schema_and_can_be_forced(tool, choose):
    """The client runs it, so a model of any kind can call it."""
    sent = outgoing({"input": "hi", "tools": [{"type": tool}, {"type": "web_search"}], "tool_choice": choose(tool)})
    [function] = [tool["function"] for tool in sent["tools"]]

    assert function["name"] == tool
    assert function["description"]
    assert function["parameters"]["required"]
    assert sent["tool_choice"] in ("required", {"type": "function", "function": {"name": tool}})


# Invalid requests...

NO_STORE = "stores no responses"


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ({}, "input", "at least one item"),
        ({"input": []}, "input", "at least one item"),
        ({"input": [{"type": "web_search_call"}]}, "input", "at least one item"),
        ({"input": 5}, "input", ""),
        ({"input": [5]}, "input.0", ""),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "`tool`"),
        ({"input": [{"type": "message", "content": "x"}]}, "input.0.role", ""),
        ({"input": [user([5])]}, "input.0.content.0", ""),
        ({"input": [{}]}, "input.0.type", "missing"),
        ({"input": [{"content": "hi"}]}, "input.0.type", "missing"),
        ({"input": [{"type": "novelty", "content": 5}]}, "input.0.type", "`novelty`"),
        ({"input": [{"type": "computer_call"}]}, "input.0.type", "`computer_call`"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input.0.type", "`compaction`"),
        ({"input": [user([{"type": "novelty", "data": 1}])]}, "input.0.content.0.type", "`novelty`"),
        ({"input": [{"role": "assistant", "content": [PICTURE]}]}, "input.0.content.0.type", "`input_image`"),
        ({"input": [{"role": "system", "content": [PICTURE]}]}, "input.0.content.0.type", "`input_image`"),
        ({"input": [user([{"type": "input_audio"}])]}, "input.0.content.0.input_audio", "base64"),
        ({"input": [user([{"type": "input_file", "file_data": "\u00e4"}])]}, "input.0.content.0.file_data", "base64"),
        ({"input": [{"type": "shell_call", "call_id": "a"}]}, "input.0.action", ""),
        ({"input": [{"type": "apply_patch_call", "call_id": "a", "operation": []}]}, "input.0.operation", ""),
        ({"input": [{"type": "shell_call", "action": {}}]}, "input.0", "call_id"),
        ({"input": [{"type": "shell_call_output", "output": []}]}, "input.0", "call_id"),
        ({"input": "x", "tools": [F, {"type": "computer_use_preview"}]}, "tools.1.type", "cannot be offered"),
        ({"input": "x", "tools": [{"type": "shell"}, {"type": "shell"}]}, "tools.1.name", "`shell`"),
        ({"input": "x", "tools": [F], "tool_choice": {"type": "shell"}}, "tool_choice.type", "`shell`"),
        ({"input": [user("x")] * 20_001}, "input", "20000"),
        ({"input": [user(["x"] * 10_001)]}, "input.0.content", "10000"),
        ({"input": "x", "tools": [F] * 2_001}, "tools", "2000"),
        ({"input": ["a", user([{"type": "input_image"}])]}, "input.1.content.0.image_url", "data URL"),
        ({"input": [user([{"type": "input_image", "file_id": "f"}])]}, "input.0.content.0.file_id", "data URL"),
        ({"input": [user([{"type": "input_file", "file_id": "f"}])]}, "input.0.content.0.file_id", "file_data"),
        ({"input": [user([{"type": "input_file", "file_url": "f"}])]}, "input.0.content.0.file_url", "file_data"),
        ({"input": [user([{"type": "input_file"}])]}, "input.0.content.0.file_data", "file_data"),
        (
            {"input": [user([{"type": "input_file", "file_data": data_url(b"%PDF-1.7", "application/pdf")}])]},
            "input.0.content.0.file_data",
            "application/pdf",
        ),
        (
            {"input": [user([{"type": "input_file", "file_data": data_url(b"\xff\xfe\x00", "image/png")}])]},
            "input.0.content.0.file_data",
            "image/png",
        ),
        ({"input": [user([{"type": "input_file", "file_data": "no base64!"}])]}, "input.0.content.0.file_data", ""),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0", "call_id"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0", "call_id"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input.0", "name"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", NO_STORE),
        ({"input": [{"id": "msg_1"}]}, "input.0", NO_STORE),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id", NO_STORE),
        ({"input": "x", "conversation": "conv_1"}, "conversation", NO_STORE),
        ({"input": "x", "conversation": {"id": "conv_1"}}, "conversation", NO_STORE),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "whole input"),
        ({"input": "x", "background": True}, "background", "stream"),
        ({"input": "x", "max_output_tokens": "many"}, "max_output_tokens", ""),
        ({"input": "x", "text": {"format": {"type": "grammar"}}}, "text.format.type", "`grammar`"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "object"),
        ({"input": "x", "tools": [F, {"type": "function"}]}, "tools.1.name", "missing"),
        ({"input": "x", "tools": [{**F, "parameters": [1]}]}, "tools.0.parameters", "object"),
        ({"input": "x", "tools": [F, F]}, "tools.1.name", "`f`"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.type", "`web_search`"),
        (
            {"input": "x", "tools": [{"type": "namespace", "name": "a", "tools": [{"type": "mcp"}]}]},
            "tools.0.tools.0.type",
            "`mcp`",
        ),
        ({"input": "x", "tools": [F], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name", "g"),
        ({"input": "x", "tools": [F], "tool_choice": {"type": "custom", "name": "f"}}, "tool_choice.name", "f"),
        ({"input": "x", "tools": [F], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "`web_search`"),
        ({"input": "x", "tools": [F], "tool_choice": "any"}, "tool_choice", "`any`"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"input": "x", "tools": [F], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
            "at least one",
        ),
        (
            {"input": "x", "tools": [F], "tool_choice": {"type": "allowed_tools", "mode": "any"}},
            "tool_choice.mode",
            "`any`",
        ),
    ],
)
def test_invalid_request_is_rejected_with_the_fields_path(body, path, words):
    """In `param` and at the start of the message."""
    with pytest.raises(errors.BadRequest) as refused:
        request.translate(json.dumps({"model": "m", **body}).encode())

    assert refused.value.param == path
    assert refused.value.message.startswith(f"{path}: ")
    assert words in refused.value.message
