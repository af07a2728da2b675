"""Messages requests: what a neuron receives."""

import json
from itertools import pairwise

import pytest
from fakes import coding_cli
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects.anthropic import request
from gateway.dialects.anthropic.signature import sign
from gateway.dialects.json_splice import ModelField

SEPARATE = Backend(alternating_roles=False)
SEPARATE_ANYWHERE = Backend(alternating_roles=False, system_anywhere=True)


def outgoing(body, backend=PLAIN):
    if isinstance(body, dict):
        body = json.dumps({"model": "m", **body}).encode()
    return json.loads(request.translate(body).encode("lab/m", backend))


def messages(*turns, backend=PLAIN, **more):
    return outgoing({"messages": list(turns), **more}, backend)["messages"]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


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


# Deferred tools...


def deferred(name):
    return {"name": name, "description": f"does {name}", "input_schema": {"type": "object"}, "defer_loading": True}


def found(*names):
    """A tool result of a client's own search, with references to these tools."""
    references = [{"type": "tool_reference", "tool_name": name} for name in names]
    return user([{"type": "tool_result", "tool_use_id": "a", "content": references}])


def changed(kind, **tool):
    return {"role": "system", "content": [{"type": kind, "tool": tool}]}


def by_name(kind, name):
    return changed(kind, type="tool_reference", name=name)


SEARCH = {"name": "Search", "input_schema": {"type": "object"}}
NOVELTY = {"name": "Novelty", "description": "new", "input_schema": {"type": "object", "properties": {"z": {}}}}


@pytest.mark.parametrize(
    ("turns", "offered"),
    [
        ([], ["Search"]),
        ([found("C")], ["Search", "C"]),
        ([found("C"), user("and"), found("A", "C")], ["Search", "C", "A"]),
        ([found("nowhere")], ["Search"]),
        ([by_name("tool_addition", "B")], ["Search", "B"]),
        ([by_name("tool_addition", "B"), by_name("tool_removal", "B")], ["Search"]),
        ([by_name("tool_removal", "Search")], []),
        ([by_name("tool_removal", "Search"), by_name("tool_addition", "Search")], ["Search"]),
        ([changed("tool_addition", type="tool_definition", definition=NOVELTY)], ["Search", "Novelty"]),
        ([{"role": "system", "content": [{"type": "tool_addition"}]}], ["Search"]),
    ],
)
def test_deferred_tool_is_offered_once_the_conversation_loads_it(turns, offered):
    """Appended in the order of loading, so that the earlier tools keep their place in the prompt."""
    body = {"messages": [user("hi"), *turns], "tools": [deferred("A"), SEARCH, deferred("B"), deferred("C")]}

    assert [tool["function"]["name"] for tool in outgoing(body).get("tools", [])] == offered


def test_tool_defined_in_a_turn_is_offered():
    """With its definition, although `tools` does not have it."""
    turn = changed("tool_addition", type="tool_definition", definition=NOVELTY)
    [tool] = outgoing({"messages": [user("hi"), turn]})["tools"]

    assert tool["function"] == {"name": "Novelty", "description": "new", "parameters": NOVELTY["input_schema"]}


def test_tool_changes_are_written_into_the_turn():
    """At their place in the conversation, after the turn's own text."""
    turn = {
        "role": "system",
        "content": [
            {"type": "text", "text": "Listen."},
            {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "A"}},
            {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "B"}},
        ],
    }
    text = "Listen.\n[tool A is available]\n[tool B is no longer available]"

    sent = messages(user("hi"), turn, backend=SEPARATE)
    assert sent[1] == user(f"<system-reminder>\n{text}\n</system-reminder>")


def test_tools_for_anthropics_own_search_are_all_offered():
    """Only Anthropic's servers can run that search, and without tools the model could do nothing."""
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    sent = outgoing({"messages": [user("hi")], "tools": [search, deferred("A"), deferred("B")]})

    assert [tool["function"]["name"] for tool in sent["tools"]] == ["A", "B"]


def test_deferred_tool_can_be_chosen():
    """`tool_choice` loads the tool that it names."""
    sent = outgoing({"messages": [user("hi")], "tools": [deferred("A")], "tool_choice": {"type": "tool", "name": "A"}})

    assert [tool["function"]["name"] for tool in sent["tools"]] == ["A"]


WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize(
    ("tool", "name", "required", "some_fields"),
    [
        ({"type": "bash_20250124", "name": "bash"}, "bash", [], {"command", "restart"}),
        ({"type": "bash_20991231"}, "bash", [], {"command"}),
        (
            {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 1000},
            "str_replace_based_edit_tool",
            ["command", "path"],
            {"insert_text", "view_range"},
        ),
        (
            {"type": "text_editor_20250124", "name": "str_replace_editor"},
            "str_replace_editor",
            ["command", "path"],
            {"new_str"},
        ),
        ({"type": "memory_20250818", "name": "memory"}, "memory", ["command"], {"old_path", "insert_text"}),
        (
            {"type": "computer_20250124", "name": "computer", "display_width_px": 800, "display_height_px": 600},
            "computer",
            ["action"],
            {"coordinate", "scroll_direction"},
        ),
        (
            {"type": "computer_20251124", "name": "computer", "enable_zoom": True},
            "computer",
            ["action"],
            {"region"},
        ),
    ],
)
def test_client_run_tool_is_offered_with_a_schema(tool, name, required, some_fields):
    """The client runs it, so a model of any kind can call it; a choice that forces it is kept."""
    choice = {"type": "tool", "name": name}
    sent = outgoing({"messages": [user("hi")], "tools": [tool, WEB_SEARCH], "tool_choice": choice})
    [function] = [tool["function"] for tool in sent["tools"]]

    assert function["name"] == name
    assert function["description"]
    assert function["parameters"]["required"] == required
    assert some_fields <= function["parameters"]["properties"].keys()
    assert sent["tool_choice"] == {"type": "function", "function": {"name": name}}


def test_client_run_tools_describe_their_version():
    """Older text editors can undo; a screen's size is part of what the model must know."""

    def function(**tool):
        return outgoing({"messages": [user("hi")], "tools": [tool]})["tools"][0]["function"]

    def commands(type_):
        return function(type=type_, name="e")["parameters"]["properties"]["command"]["enum"]

    assert "undo_edit" in commands("text_editor_20250124")
    assert "undo_edit" not in commands("text_editor_20250728")
    computer = function(type="computer_20241022", name="c", display_width_px=800, display_height_px=600)
    assert "800 pixels wide and 600 pixels high" in computer["description"]
    assert "scroll" not in computer["parameters"]["properties"]["action"]["enum"]


def test_examples_of_a_tools_input_are_described():
    """Chat completions has no field for them, and the model would have seen them."""
    tool = {**SEARCH, "description": "Finds.", "input_examples": [{"q": "a"}, {"q": "b"}]}
    [sent] = outgoing({"messages": [user("hi")], "tools": [tool]})["tools"]

    assert sent["function"]["description"] == 'Finds.\n\nExamples of input:\n{"q":"a"}\n{"q":"b"}'


def test_tools_without_a_name_may_stand_beside_others():
    """`mcp_toolset` has none; Anthropic's servers run it."""
    tools = [SEARCH, {"type": "mcp_toolset", "mcp_server_name": "x"}]

    assert len(outgoing({"messages": [user("hi")], "tools": tools})["tools"]) == 1


# What is left out...


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({}, b""),
        ({"context_management": {}, "novelty": 1, "cache_control": None}, b"context_management, novelty"),
        ({"service_tier": "auto"}, b""),
        ({"service_tier": "priority", "mcp_servers": [], "container": "c"}, b"container, mcp_servers, service_tier"),
        ({"tools": [SEARCH, WEB_SEARCH, {"type": "mcp_toolset"}]}, b"tools.web_search_20250305, tools.mcp_toolset"),
        ({"ignore_eos": True, "min_p": 0.1, "top_k": 3}, b""),
        ({"metadata": {"user_id": "u", "team": "t"}}, b"metadata.team"),
        (
            {"output_config": {"effort": "high", "task_budget": {"total": 1}}},
            b"output_config.effort, output_config.task_budget",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, b"thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}, "z": 1}, b"z, thinking.display"),
        (
            {"messages": [assistant([{"type": "server_tool_use"}, {"type": "web_search_tool_result"}]), user("hi")]},
            b"messages.server_tool_use, messages.web_search_tool_result",
        ),
        ({"a,b\r\n\u00fc": 1}, b"a%2Cb%0D%0A%C3%BC"),
        ({f"field_{i}": 1 for i in range(1000)}, None),
        ({"x" * 100_000: 1}, b"x" * 80 + b"..."),
    ],
)
def test_what_is_left_out_is_named(fields, header):
    """Fields, tools and blocks without an effect; never more than a header may hold."""
    body = json.dumps({"model": "m", "messages": [user("hi")], **fields}).encode()
    ignored = request.translate(body).ignored

    assert len(ignored) < 600
    assert ignored == header or (header is None and ignored.endswith(b" more"))


@pytest.mark.parametrize(
    ("switch", "thinking", "effort", "header"),
    [
        ("none", {"type": "adaptive"}, "low", b"thinking, output_config.effort"),
        ("none", {"type": "disabled"}, None, b"thinking"),
        ("none", None, None, b""),
        ("chat_template_kwargs", {"type": "adaptive"}, "low", b"output_config.effort"),
        ("chat_template_kwargs", {"type": "enabled", "budget_tokens": 9}, None, b"thinking.budget_tokens"),
        ("reasoning_effort", {"type": "adaptive"}, "low", b""),
        ("reasoning_effort", {"type": "enabled", "budget_tokens": 9}, None, b""),
        ("reasoning_effort", {"type": "enabled", "budget_tokens": 9}, "low", b"thinking.budget_tokens"),
        ("reasoning_effort", {"type": "disabled"}, "low", b"output_config.effort"),
        ("reasoning_effort", None, "low", b"output_config.effort"),
    ],
)
def test_wishes_that_a_backend_cannot_follow_are_named(switch, thinking, effort, header):
    """Each kind of backend has its own switch for thinking."""
    fields = {"thinking": thinking, "output_config": {"effort": effort}}
    body = json.dumps({"model": "m", "messages": [user("hi")], **fields}).encode()

    assert request.translate(body).ignored_by(Backend(thinking_switch=switch)) == header


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"min_p": 0.1, "seed": 7}, {"min_p": 0.1, "seed": 7}),
        (
            {"chat_template_kwargs": {"x": 1}},
            {"chat_template_kwargs": {"enable_thinking": False, "x": 1}},
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ),
        ({"n": 3, "stream_options": {}}, {}),
    ],
)
def test_engine_parameters_survive(fields, sent):
    """Those that engines are known to have; other fields could change what the translation relies on."""
    without = outgoing({"messages": [user("hi")]})

    assert outgoing({"messages": [user("hi")], **fields}) == without | sent


def test_audio_is_passed_in_chat_completions_form():
    """Anthropic's API has none, but clients of engines that hear send it."""
    audio = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}

    assert messages(user([audio])) == [user([audio])]
    result = {"type": "tool_result", "tool_use_id": "a", "content": [audio]}
    tool, heard = messages(user([result]))
    assert tool["content"] == "[audio, see below]"
    assert heard["content"][1] == audio


def test_output_format_is_the_older_spelling():
    """The beta header `structured-outputs-2025-11-13` has it at the top."""
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    newer = outgoing({"messages": [user("hi")], "output_config": {"format": schema}})

    assert outgoing({"messages": [user("hi")], "output_format": schema}) == newer
    assert newer["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize("text", ["{},", '"a",', "1,", '{"type":"text","text":","},'])
def test_too_many_values_are_rejected_before_they_are_decoded(text):
    """Whatever they are; commas inside strings are not values."""
    many = "[" + text * 400_000 + "0]"
    with pytest.raises(errors.BadRequest, match="200000 JSON values"):
        request.translate(b'{"messages":' + many.encode() + b',"model":"m"}', ModelField("m", 0, 0, stream=False))

    prose = json.dumps({"model": "m", "messages": [user('a, b\\", "c", ' * 400_000)]}).encode()
    assert request.translate(prose).ignored == b""


def test_thinking_is_shown_only_to_clients_that_ask():
    """A client that does not ask may take the first block for the text. Without a switch there is no way to ask."""

    def shown(fields, switch):
        body = json.dumps({"model": "m", "messages": [user("hi")], **fields}).encode()
        return request.translate(body).context("r", "m", Backend(thinking_switch=switch)).show_thinking

    assert shown({"thinking": {"type": "adaptive"}}, "none")
    assert not shown({}, "chat_template_kwargs")
    assert not shown({}, "reasoning_effort")
    assert shown({}, "none")
    assert not shown({"thinking": {"type": "disabled"}}, "none")


# Parameters...


def test_zero_max_tokens_become_one():
    """Anthropic's API takes 0 to warm its cache; engines reject it."""
    assert outgoing({"messages": [user("hi")], "max_tokens": 0})["max_tokens"] == 1


def test_parameters_are_translated():
    """Each parameter that has a counterpart; the others are dropped."""
    sent = outgoing(
        {
            "messages": [user("hi")],
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "stop_sequences": ["END", ""],
            "metadata": {"user_id": {"id": 1}},
            "tools": [],
            "tool_choice": {"type": "auto"},
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            "service_tier": "auto",
        }
    )

    assert sent == {
        "model": "lab/m",
        "messages": [user("hi")],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["END"],
        "user": '{"id":1}',
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ("auto", {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        (None, {}),
    ],
)
def test_tool_choice_is_translated(choice, expected):
    """All four types, and the switch for parallel calls."""
    tools = [{"name": "f", "input_schema": {"type": "object"}}, {"type": "web_search_20250305", "name": "web_search"}]
    sent = outgoing({"messages": [user("hi")], "tools": tools, "tool_choice": choice})

    assert {key: sent[key] for key in sent if key in {"tool_choice", "parallel_tool_calls"}} == expected
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["f"]


@pytest.mark.parametrize(
    ("fields", "switch", "expected"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "chat_template_kwargs", {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, "chat_template_kwargs", {"enable_thinking": False}),
        ({}, "chat_template_kwargs", {"enable_thinking": False}),
        ({}, "reasoning_effort", "none"),
        ({}, "none", None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "reasoning_effort", "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8000}}, "reasoning_effort", "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 32000}}, "reasoning_effort", "high"),
        ({"thinking": {"type": "adaptive"}}, "reasoning_effort", "medium"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "reasoning_effort", "low"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "reasoning_effort", "high"),
        ({"thinking": {"type": "disabled"}}, "reasoning_effort", "none"),
        ({"thinking": {"type": "adaptive"}}, "none", None),
    ],
)
def test_thinking_sets_the_backends_switch(fields, switch, expected):
    """Whichever switch it has; off if the client does not ask for thinking."""
    sent = outgoing({"messages": [user("hi")], **fields}, Backend(thinking_switch=switch))

    assert sent.get(switch) == expected
    assert len(sent) == 2 + (expected is not None)


def test_estimate_counts_system_tools_messages_and_images():
    """Each of them raises it; an image counts the same whatever its size."""

    def tokens(**more):
        return request.translate(json.dumps({"model": "m", "messages": [user("hi")], **more}).encode()).input_tokens

    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
    assert 1 <= tokens() <= 15
    assert tokens(system="x" * 350) - tokens() == pytest.approx(110, abs=12)
    assert tokens(tools=[{"name": "f", "description": "x" * 350, "input_schema": {}}]) - tokens() > 100
    assert 1000 < tokens(messages=[user([picture])]) < 1050


# Invalid requests...


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages.0"),
        ({"messages": [{"content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [user([{"type": 5}])]}, "messages.0.content.0.type"),
        ({"messages": [user("a"), user([{"type": "image"}])]}, "messages.1.content.0.source"),
        (
            {"messages": [user([{"type": "image", "source": {"type": "file", "file_id": "f"}}])]},
            "messages.0.content.0.source",
        ),
        ({"messages": [user([{"type": "image", "source": {"type": "url"}}])]}, "messages.0.content.0.source"),
        ({"messages": [user([{"type": "image", "source": {"url": 4}}])]}, "messages.0.content.0.source.url"),
        (
            {"messages": [user([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}}])]},
            "messages.0.content.0.source",
        ),
        ({"messages": [user([{"type": "tool_result", "content": "x"}])]}, "messages.0.content.0"),
        (
            {"messages": [user([{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}])]},
            "messages.0.content.0.content.0.source",
        ),
        ({"messages": [assistant([{"type": "tool_use", "name": "f", "input": {}}])]}, "messages.0.content.0"),
        (
            {"messages": [assistant([{"type": "tool_use", "id": "a", "name": "f", "input": [1]}])]},
            "messages.0.content.0.input",
        ),
        ({"messages": [user("x")], "max_tokens": "many"}, "max_tokens"),
        ({"messages": [user("x")], "tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"messages": [user([{"type": "novelty", "data": {"x": 1}}])]}, "messages.0.content.0.type"),
        ({"messages": [user([{"type": "container_upload", "file_id": "f"}])]}, "messages.0.content.0.type"),
        ({"messages": [assistant([{"type": "container_upload", "file_id": "f"}])]}, "messages.0.content.0.type"),
        ({"messages": [user([{"type": "tool_use", "id": "a", "name": "f"}])]}, "messages.0.content.0.type"),
        ({"messages": [assistant([coding_cli.PICTURE])]}, "messages.0.content.0.type"),
        ({"messages": [user("x")], "system": [coding_cli.PICTURE]}, "system.0.type"),
        (
            {"messages": [user([{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "novelty"}]}])]},
            "messages.0.content.0.content.0.type",
        ),
        ({"messages": [user([{"type": "input_audio", "input_audio": {}}])]}, "messages.0.content.0.input_audio"),
        ({"messages": [user("x")], "tools": [WEB_SEARCH]}, "tools.0.type"),
        ({"messages": [user("x")], "tools": [WEB_SEARCH], "tool_choice": {"type": "any"}}, "tools.0.type"),
        (
            {
                "messages": [user("x")],
                "tools": [WEB_SEARCH, SEARCH],
                "tool_choice": {"type": "tool", "name": "web_search"},
            },
            "tool_choice.name",
        ),
        ({"messages": [user("x")], "tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"messages": [user("x")], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"messages": [user("x")], "output_format": {"type": "grammar"}}, "output_format.type"),
        (
            {"messages": [user("x")], "output_config": {"format": {"type": "json_schema"}}},
            "output_config.format.schema",
        ),
        ({"messages": [user("x")] * 20_001}, "messages"),
        ({"messages": [user(["x"] * 10_001)]}, "messages.0.content"),
        ({"messages": [user("x")], "tools": [SEARCH] * 2_001}, "tools"),
        (
            {"messages": [user("x")], "tools": [{"name": "f"}], "tool_choice": {"type": "tool", "name": "g"}},
            "tool_choice.name",
        ),
    ],
)
def test_invalid_request_is_rejected_with_the_fields_path(body, path):
    """In `param` and in the message."""
    with pytest.raises(errors.BadRequest) as refused:
        request.translate(json.dumps({"model": "m", **body}).encode())

    assert refused.value.param == path or (path == "messages" and refused.value.param is None)
    assert path in refused.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages":[]}', b'{"model":"a","model":"b","messages":[]}'])
def test_body_without_exactly_one_model_is_rejected(body):
    """With the same errors as every other endpoint."""
    with pytest.raises((errors.MalformedJson, errors.MissingModelField)):
        request.translate(body)


def test_deep_nesting_is_rejected_without_a_crash():
    """A client must not be able to exhaust Python's stack."""
    deep = b'{"type":"tool_result","tool_use_id":"a","content":[' * 3000 + b"]}" * 3000
    with pytest.raises(errors.BadRequest):
        request.translate(b'{"model":"m","messages":[{"role":"user","content":[' + deep + b"]}]}")
