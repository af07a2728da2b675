"""Whole answers, errors and token counts in the format of Anthropic's API."""

import json

import pytest
from fakes.chat_completions import USAGE, whole

from gateway import errors
from gateway.dialects import token_estimate
from gateway.dialects.anthropic import errors as dialect_errors
from gateway.dialects.anthropic import response
from gateway.dialects.anthropic.message_object import MALFORMED_ARGUMENTS, MessagesContext
from gateway.dialects.anthropic.signature import sign
from gateway.dialects.upstream_errors import UpstreamErrorResponse

CONTEXT = MessagesContext("req-1", "lab/m", input_tokens=12, stop_sequences=("END",), answer_id="req-1")


def answer(body, context=CONTEXT):
    return json.loads(response.translate(body, context))


def tool_call(name, arguments, id_="call_1"):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_answer_has_its_blocks_in_order():
    """Thinking, text, tool calls; `input_tokens` excludes cached tokens, as in Anthropic's API."""
    chat_message = {
        "content": "Looking.",
        "reasoning_content": "Hm.",
        "tool_calls": [tool_call("read", '{"path": "/a"}')],
    }

    assert answer(whole(chat_message, "tool_calls")) == {
        "id": "msg_req-1",
        "type": "message",
        "role": "assistant",
        "model": "lab/m",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": sign("Hm.")},
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "call_1", "name": "read", "input": {"path": "/a"}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 30,
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 3},
        },
    }


@pytest.mark.parametrize(
    ("arguments", "input_"),
    [
        ("{}", {}),
        ("", {}),
        (None, {}),
        ("null", {}),
        ({"a": 1}, {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('{"a": "\\ud83d"}', {"a": "\ufffd"}),
        ('{"a": ', {MALFORMED_ARGUMENTS: '{"a": '}),
        ("[1]", {MALFORMED_ARGUMENTS: "[1]"}),
    ],
)
def test_tool_input_is_always_an_object(arguments, input_):
    """Malformed arguments stay visible, so that the client's validation rejects the call."""
    chat_message = {"content": None, "tool_calls": [tool_call("f", arguments)]}

    assert answer(whole(chat_message, "tool_calls"))["content"][0]["input"] == input_


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (whole({"content": "x"}), ("end_turn", None)),
        (whole({"content": "x"}, "length"), ("max_tokens", None)),
        (whole({"content": "x"}, stop_reason="END"), ("stop_sequence", "END")),
        (whole({"content": "x END"}), ("stop_sequence", "END")),
        (whole({"content": None, "refusal": "no"}, "content_filter"), ("refusal", None)),
        (whole({"tool_calls": [tool_call("f", "{}")]}, "stop"), ("tool_use", None)),
    ],
)
def test_stop_reason_is_translated_in_a_whole_answer(body, expected):
    """To Anthropic's names, as in streams."""
    message = answer(body)

    assert (message["stop_reason"], message["stop_sequence"]) == expected


def test_usage_is_estimated_if_the_neuron_reports_none():
    """The SDK's types require numbers."""
    usage = answer(whole({"content": "x" * 350}, usage=None))["usage"]

    assert usage["input_tokens"] == 12
    assert usage["output_tokens"] > 100


def test_blank_text_and_disabled_thinking_are_left_out():
    """Anthropic's API rejects a blank text block when a client sends it back."""
    context = MessagesContext("r", "m", show_thinking=False)

    assert answer(whole({"content": " \n", "reasoning_content": "x"}), context)["content"] == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>", errors.UpstreamMalformedResponse),
        (b"[]", errors.UpstreamMalformedResponse),
        (b'{"choices": []}', errors.UpstreamMalformedResponse),
        (whole({"tool_calls": [tool_call("", "{}")]}), errors.UpstreamMalformedResponse),
        (whole({"content": "half"}, "abort"), errors.UpstreamConnectionError),
        (b'{"error": {"message": "boom"}}', errors.UpstreamConnectionError),
    ],
)
def test_unusable_answer_is_an_upstream_error(body, error):
    """Although its status is 200."""
    with pytest.raises(error):
        response.translate(body, CONTEXT)


# Errors...


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (errors.BadRequest, "invalid_request_error"),
        (errors.RequestTimeout, "invalid_request_error"),
        (errors.InvalidApiKey, "authentication_error"),
        (errors.ModelNotFound, "not_found_error"),
        (errors.BodyTooLarge, "request_too_large"),
        (errors.Overloaded, "overloaded_error"),
        (errors.UpstreamConnectionError, "api_error"),
        (errors.DeadlineExceeded, "api_error"),
        (errors.InternalError, "api_error"),
    ],
)
def test_gateway_error_has_anthropics_type(error, type_):
    """Chosen by status, in Anthropic's error object."""
    assert json.loads(dialect_errors.body(error("what"), "req-1")) == {
        "type": "error",
        "error": {"type": type_, "message": "what"},
        "request_id": "req-1",
    }


@pytest.mark.parametrize(
    ("status", "body", "type_", "message"),
    [
        (429, b'{"error":{"message":"slow down","type":"x","code":"y"}}', "rate_limit_error", "slow down"),
        (403, b'{"error":"not yours"}', "permission_error", "not yours"),
        (422, b'{"detail":"bad field"}', "invalid_request_error", "bad field"),
        (422, b'{"detail":[{"loc":["body"]}]}', "invalid_request_error", '[{"loc":["body"]}]'),
        (500, b"Internal Server Error", "api_error", "Internal Server Error"),
        (503, b"", "overloaded_error", "the neuron answered with status 503 and no error message"),
        (529, b"", "overloaded_error", "the neuron answered with status 529 and no error message"),
        (500, b'{"error":{}}', "api_error", "the neuron answered with status 500 and no error message"),
        (400, b'{"object":"error","message":"old vLLM"}', "invalid_request_error", "old vLLM"),
        (402, b'{"type":"error","error":{"type":"billing_error","message":"pay"}}', "billing_error", "pay"),
        (
            400,
            b'{"error":{"message":"maximum context length is 8 tokens","code":"context_length_exceeded"}}',
            "invalid_request_error",
            "prompt is too long: maximum context length is 8 tokens",
        ),
    ],
)
def test_upstream_error_is_translated_from_any_form(status, body, type_, message):
    """The message is kept; a prompt that is too long is reported in the words that coding clients look for."""
    upstream = UpstreamErrorResponse(status, [], body)
    translated = json.loads(dialect_errors.upstream_error_body(upstream, "req-1"))

    assert translated == {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req-1"}


# Token counts and usage...


def test_token_count_has_the_apis_format():
    """An object with one number."""
    assert json.loads(response.token_count_body(token_estimate.estimate(350, images=1))) == {"input_tokens": 1100}


def test_invalid_usage_is_tolerated():
    """More cached tokens than prompt tokens, or not an object."""
    usage = answer(whole({"content": "x"}, usage={**USAGE, "prompt_tokens": 5}))["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (0, 5)
    assert answer(whole({"content": "x"}, usage=[1]))["usage"]["input_tokens"] == 12
