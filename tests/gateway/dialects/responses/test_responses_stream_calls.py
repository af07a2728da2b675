"""The stream translator: tool calls of unusual engines, calls that the client runs, and reasoning for the way back."""

import json

import pytest
from fakes.chat_completions import USAGE, call
from fakes.responses_streams import translated_answer

from gateway.dialects.responses import encrypted_reasoning, response
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.tools import ClientTool

PATCHING = ResponsesContext(
    "req-1", "lab/m", client_tools={"patch": ClientTool("patch", kind="custom"), "a__f": ClientTool("f", "a")}
)


# Tool calls of unusual engines...


@pytest.mark.parametrize("arguments", ["", None, "null", '""', "{}", " "])
def test_call_without_arguments_has_an_empty_object(arguments):
    """In every way in which engines send none."""
    assert translated_answer(call(0, "a", "now", arguments)).calls == [("now", "{}")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('"{\\"a\\": 1}"', '{"a":1}'), ("x: 1", "x: 1"), ("[1]", "[1]"), (' {"a": 1.50}', ' {"a": 1.50}')],
)
def test_arguments_are_what_the_model_wrote(arguments, expected):
    """Only an object encoded twice is decoded once; anything else is for the client's parser."""
    assert translated_answer(call(0, "a", "f", arguments)).calls == [("f", expected)]


def test_arguments_cut_by_the_token_limit_stay_cut():
    """Their item, the last one, is incomplete."""
    read_back = translated_answer(call(0, "a", "f", '{"a": 1}'), call(1, "b", "g", '{"b": '), finish_reason="length")

    assert read_back.calls[1] == ("g", '{"b": ')
    assert [item["status"] for item in read_back.items] == ["completed", "incomplete"]
    assert read_back.response["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    "deltas",
    [
        [call(0, "a", "f", "{}"), call(0, "b", "g", "{}")],
        [{"tool_calls": [{"id": i, "function": {"name": n, "arguments": "{}"}}]} for i, n in (("a", "f"), ("b", "g"))],
        [call(0, "a", "f", {}), call(1, "b", "g", {})],
        [call(0, "a", "f", "{"), call(0, "other", arguments="}"), call(1, "b", "g", "{}")],
        [{"tool_calls": call(0, "a", "f", "{}")["tool_calls"] + call(1, "b", "g", "{}")["tool_calls"]}],
    ],
    ids=["all numbered 0", "no index", "objects", "an id per chunk", "one chunk"],
)
def test_two_calls_stay_two_calls(deltas):
    """Each case is what some engine sends for two calls."""
    assert translated_answer(*deltas).calls == [("f", "{}"), ("g", "{}")]


def test_call_without_an_id_gets_a_unique_one():
    """The client sends each result with the call's id."""
    read_back = translated_answer(call(0, None, "f", "{}"), call(1, None, "g", "{}"))

    assert [item["call_id"] for item in read_back.items] == ["call_req-1_0", "call_req-1_1"]


def test_call_without_a_name_is_an_error():
    """No client can run it, and without it the answer would look complete."""
    assert translated_answer(call(0, "a", None, "{}")).error["code"] == "upstream_malformed_response"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input": "*** a\\n"}', "*** a\n"), ("*** a", "*** a"), ('{"patch": 1}', '{"patch": 1}'), ('{"input": ""}', "")],
)
def test_custom_tool_is_called_with_plain_text(arguments, text):
    """Whether or not the model put it into the `input` member."""
    [item] = translated_answer(
        call(0, "a", "patch", arguments[:5]), call(0, arguments=arguments[5:]), context=PATCHING
    ).items

    assert (item["type"], item["call_id"], item["input"]) == ("custom_tool_call", "a", text)


def test_call_into_a_namespace_has_the_clients_own_names():
    """The model gets one name for namespace and tool."""
    [item] = translated_answer(call(0, "a", "a__f", "{}"), context=PATCHING).items

    assert (item["type"], item["name"], item["namespace"]) == ("function_call", "f", "a")


# Tools that the client runs, and reasoning for the way back...

KEY = b"k" * 32
RUNNING = ResponsesContext(
    "req-1",
    "lab/m",
    client_tools={name: ClientTool(name, kind=name) for name in ("shell", "local_shell", "apply_patch")},
    secret_key=KEY,
)


def whole_answer(**message):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    body = json.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}).encode()
    return json.loads(response.translate(body, RUNNING))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "shell",
            '{"commands":["ls"],"timeout_ms":5}',
            {"type": "shell_call", "action": {"commands": ["ls"], "timeout_ms": 5, "max_output_length": None}},
        ),
        (
            "shell",
            '{"commands":"ls"}',
            {"type": "shell_call", "action": {"commands": ["ls"], "timeout_ms": None, "max_output_length": None}},
        ),
        (
            "local_shell",
            '{"command":["ls"],"working_directory":"/","env":{"A":"b","C":1}}',
            {
                "type": "local_shell_call",
                "action": {
                    "type": "exec",
                    "command": ["ls"],
                    "env": {"A": "b"},
                    "timeout_ms": None,
                    "user": None,
                    "working_directory": "/",
                },
            },
        ),
        (
            "apply_patch",
            '{"type":"update_file","path":"a","diff":"@@"}',
            {"type": "apply_patch_call", "operation": {"type": "update_file", "path": "a", "diff": "@@"}},
        ),
        (
            "apply_patch",
            '{"type":"delete_file","path":"a","diff":""}',
            {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a"}},
        ),
    ],
)
def test_call_of_a_client_run_tool_is_an_item_of_its_own(name, arguments, expected):
    """In a stream, at once complete, and in a whole answer; beside calls of functions."""
    half = len(arguments) // 2
    streamed = translated_answer(
        call(0, "a", name, arguments[:half]),
        call(1, "b", "f", "{}"),
        {"tool_calls": [{"index": 0, "function": {"arguments": arguments[half:]}}]},
        context=RUNNING,
    )
    calls = [{"id": "a", "type": "function", "function": {"name": name, "arguments": arguments}}]
    [item] = whole_answer(content=None, tool_calls=calls)["output"]

    assert item == streamed.items[0]
    assert item.pop("id")
    assert item == {**expected, "call_id": "a", "status": "completed"}
    assert streamed.calls == [("f", "{}")]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shell", "ls"),
        ("shell", '{"commands":[]}'),
        ("shell", '{"commands":[1]}'),
        ("local_shell", "{}"),
        ("local_shell", '{"command":["ls'),
        ("apply_patch", '{"type":"update_file","path":"a"}'),
        ("apply_patch", '{"type":"move_file","path":"a","diff":""}'),
        ("apply_patch", '{"type":"delete_file","path":""}'),
        ("apply_patch", "[1]"),
    ],
)
def test_malformed_call_of_a_client_run_tool_stays_a_function_call(name, arguments):
    """The client rejects it, and the model sees why. Nothing runs that the model did not mean."""
    streamed = translated_answer(call(0, "a", name, arguments), context=RUNNING)
    calls = [{"id": "a", "type": "function", "function": {"name": name, "arguments": arguments}}]
    [item] = whole_answer(content=None, tool_calls=calls)["output"]

    assert streamed.calls == [(name, arguments)]
    assert item == streamed.items[0]


def test_reasoning_has_an_encrypted_content():
    """In the finished item of a stream, in its last event, and in a whole answer."""
    streamed = translated_answer({"reasoning": "Hm"}, {"reasoning": "."}, {"content": "4"}, context=RUNNING)
    [whole, _] = whole_answer(content="4", reasoning_content="Hm.")["output"]

    for item in (streamed.items[0], streamed.response["output"][0], whole):
        assert encrypted_reasoning.decode(item["encrypted_content"], KEY) == "Hm."
        assert "Hm" not in item["encrypted_content"]
    assert "encrypted_content" not in translated_answer({"reasoning": "Hm"}, {"content": "4"}).items[0]
