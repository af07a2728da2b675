"""Messages requests: parameters, what is left out, and what is refused."""

import json

import pytest
from fakes import coding_cli
from fakes.anthropic_requests import SEARCH, WEB_SEARCH, assistant, messages, outgoing, user

from gateway import errors
from gateway.config.engine_traits import Backend
from gateway.dialects.anthropic import request
from gateway.dialects.json_splice import ModelField

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
