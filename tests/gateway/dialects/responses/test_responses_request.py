"""Responses requests: parameters, what is left out, and what is refused."""

import json

import pytest
from coding_agent import PICTURE
from fakes.responses_requests import data_url, outgoing, user

from gateway import errors
from gateway.config.engine_traits import Backend
from gateway.dialects.responses import request

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
