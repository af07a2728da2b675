"""Reading a neuron's error response, and its form for clients of OpenAI's APIs."""

import json

import pytest

from gateway import errors
from gateway.dialects.upstream_errors import UpstreamErrorResponse, from_stream


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
        ({}, errors.UpstreamConnectionError, "the neuron reported an error inside its stream"),
    ],
)
def test_error_in_a_stream_becomes_the_matching_error(value, kind, message):
    """By the status it stands for, which engines write in different places."""
    error = from_stream(value)
    assert (type(error), error.message) == (kind, message)
