"""Reading a neuron's error response, and its form for clients of OpenAI's APIs."""

import json

import pytest

from gateway import errors
from gateway.dialects.upstream_errors import (
    UpstreamErrorResponse,
    error_response_in,
    from_stream,
    is_context_overflow,
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","type":"t"}}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"object":"error","message":"m"}', "m"),
        (b'{"detail":"m"}', "m"),
        (b'{"detail":[{"loc":["body"],"msg":"m"}]}', '[{"loc":["body"],"msg":"m"}]'),
        (b" m\n", "m"),
        (b'"m"', '"m"'),
        (b"", "the neuron answered with status 400 and no error message"),
        (b"{}", "the neuron answered with status 400 and no error message"),
        (b"null", "null"),
        (b'{"error":"\xff"}', '{"error":"\ufffd"}'),
    ],
)
def test_message_is_read_from_every_form(body, message):
    """The same text for a gateway error, whichever way the engine writes it."""
    error = UpstreamErrorResponse(400, [], body).as_error()
    assert (type(error), error.message) == (errors.BadRequest, message)


@pytest.mark.parametrize("body", [b'{"error":{"message":"m"}}', b'{"detail":"m"}', b'{ "x" : 1 }'])
def test_json_object_keeps_its_bytes_for_clients_of_openai(body):
    """An engine may put more into its error than a message."""
    response = UpstreamErrorResponse(422, [(b"content-type", b"application/problem+json")], body)
    assert response.openai_form() == (b"application/problem+json", body)


@pytest.mark.parametrize("body", [b'{"error":"m"}', b"m", b" m\n"])
def test_other_forms_become_openais_error_object(body):
    """With the type and code that belong to the status."""
    content_type, wrapped = UpstreamErrorResponse(429, [(b"content-type", b"text/plain")], body).openai_form()
    assert content_type == b"application/json"
    assert json.loads(wrapped)["error"] == {
        "message": "m",
        "type": "rate_limit_error",
        "code": "rate_limit_exceeded",
        "param": None,
    }


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"message": "m", "code": 503}, errors.ServiceUnavailable, "m"),
        ({"message": "m", "type": "overloaded_error"}, errors.ServiceUnavailable, "m"),
        ({"message": "m", "code": "context_length_exceeded"}, errors.ContextLengthExceeded, "m"),
        ("m", errors.UpstreamConnectionError, "m"),
        ({"message": "m", "type": "authentication_error"}, errors.UpstreamAuthFailed, "m"),
        ({"message": "m", "code": 400}, errors.BadRequest, "m"),
        ({}, errors.UpstreamConnectionError, "the neuron reported an error inside its stream"),
    ],
)
def test_error_in_a_stream_becomes_the_matching_error(value, kind, message):
    """By the status it stands for, which engines write in different places."""
    error = from_stream(value)
    assert (type(error), error.message) == (kind, message)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "503"}, 503),
        ({"status": 429}, 429),
        ({"status_code": 529}, 529),
        ({"http_code": "401", "type": "x"}, 401),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"type": "rate_limit_error"}, 429),
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, 429),
        ({"type": "overloaded_error"}, 503),
        ({"type": "BadRequestError"}, 400),
        ({"type": "invalid_request_error"}, 400),
        ({"code": None, "type": "server_error"}, 502),
        ({"code": True}, 502),
        ({"code": 7}, 502),
        ("text", 502),
    ],
)
def test_error_in_a_stream_has_the_status_that_it_stands_for(value, status):
    """So that it counts like the same error under its own status."""
    assert error_response_in(value).status == status


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "9"}, 9),
        ({"retry-after": "1.5"}, 2),
        ({"retry-after": "0"}, 0),
        ({"retry-after-ms": "8500"}, 9),
        ({"retry-after": "3", "retry-after-ms": "8500"}, 3),
        ({"retry-after": "soon", "retry-after-ms": "8500"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "9" * 30}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0),
        ({}, None),
    ],
)
def test_when_to_come_back_counts_for_routing_in_every_form(headers, seconds):
    """Whole seconds, fractions, milliseconds, dates."""
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert UpstreamErrorResponse(429, encoded, b"").retry_after_s == seconds


TOO_LONG = {
    "SGLang": "Input length (9000 tokens) exceeds the maximum allowed length (8186 tokens). Use a shorter input.",
    "vLLM": "The decoder prompt (length 9000) is longer than the maximum model length of 8192.",
    "TGI": "Input validation error: `inputs` must have less than 8191 tokens. Given: 9000",
    "Ollama": "prompt too long; exceeded max context length by 300 tokens",
    "Gemini": "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
    "Groq": "Please reduce the length of the messages or completion.",
    "Kimi": "Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)",
    "Qwen": "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8192]",
    "Bedrock": "Input is too long for requested model.",
    "TensorRT-LLM": "Prompt length (9000) exceeds maximum input length (8192)",
    "Cohere": "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    "xAI": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Mistral": "Prompt contains 9000 tokens and 0 draft tokens, too large for model with 8192 maximum context length",
    "Vertex AI": "The input token count is 9,000 but model only supports up to 8,192.",
    "Bedrock Nova": "Too many input tokens. Max input tokens: 300000, request input token count: 346112",
    "Doubao": "Input length 9000 exceeds the maximum length 8192",
    "Zhipu": "Prompt exceeds max length",
    "Zhipu, in Chinese": "Prompt \u8d85\u957f",
    "MiniMax": "invalid params, context window exceeds limit",
}


@pytest.mark.parametrize("engine", TOO_LONG)
def test_prompt_that_is_too_long_is_recognized_in_the_words_of_every_engine(engine):
    """Clients compact the conversation only if the error says so."""
    error = UpstreamErrorResponse(400, [], json.dumps({"error": {"message": TOO_LONG[engine]}}).encode()).as_error()
    assert isinstance(error, errors.ContextLengthExceeded)


@pytest.mark.parametrize(
    "text",
    ["context canceled", "image too large", "temperature must not exceed 2", "maximum number of tools exceeded",
     "the input has an unknown field", "tokens per minute exceeded", "input length is not a number"],
)  # fmt: skip
def test_other_errors_are_no_too_long_prompts(text):
    """A client would compact its conversation in vain."""
    assert not is_context_overflow(text)
