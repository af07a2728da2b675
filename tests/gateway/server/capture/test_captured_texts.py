"""Texts in requests and answers of every dialect, and their redaction."""

import json

import pytest

from gateway.server.capture.captured_texts import answer_text, redacted, request_texts

EVENTS, JSON = b"text/event-stream", b"application/json"


def stream(*events):
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (
            {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]},
            ["Be brief", "Hi"],
        ),
        (
            {"system": "Be brief", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
            ["Be brief", "Hi"],
        ),
        ({"instructions": "Be brief", "input": "Hi"}, ["Be brief", "Hi"]),
        ({"prompt": "Once"}, ["Once"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
            ["[image_url]"],
        ),
        ({"messages": [7, None]}, ["", ""]),
    ],
)
def test_messages_of_a_request(body, texts):
    assert [message["text"] for message in request_texts(json.dumps(body).encode())] == texts


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"\xff", b"[" * 100_000])
def test_body_that_is_not_understood_is_kept_as_it_is(body):
    [message] = request_texts(body)
    assert message["role"] == "body"


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (JSON, json.dumps({"choices": [{"message": {"content": "Tbilisi"}}]}).encode(), "Tbilisi"),
        (JSON, json.dumps({"content": [{"type": "text", "text": "Tbilisi"}]}).encode(), "Tbilisi"),
        (JSON, json.dumps({"output": [{"type": "message", "content": [{"text": "Tbilisi"}]}]}).encode(), "Tbilisi"),
        (JSON, json.dumps({"error": {"message": "no"}}).encode(), "no"),
        (JSON, b'{"data":[1]}', '{"data":[1]}'),
        (b"text/plain", b"plain", "plain"),
        (
            EVENTS,
            stream({"choices": [{"delta": {"content": "Tbi"}}]}, {"choices": [{"delta": {"content": "lisi"}}]}),
            "Tbilisi",
        ),
        (
            EVENTS,
            stream({"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}),
            "f{}",
        ),
        (
            EVENTS,
            stream({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Tbilisi"}}),
            "Tbilisi",
        ),
        (EVENTS, stream({"type": "response.output_text.delta", "delta": "Tbilisi"}), "Tbilisi"),
        (EVENTS, stream({"choices": None}, {"usage": {}}, [], 7), ""),
    ],
)
def test_text_of_an_answer(kind, body, text):
    assert answer_text(kind, body) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("write to olga.b+x@mail.example.org today", "write to [e-mail] today"),
        ("key ctx_abc123_0123456789abcdef0123 and sk-proj-0123456789abcdef", "key [secret] and [secret]"),
        ("token 0123456789abcdef0123456789abcdef01", "token [secret]"),
        ("at 192.168.10.20 now", "at [address] now"),
        ("call +49 30 1234567 or 4111 1111 1111 1111", "call [number] or [number]"),
        ("the 27B model needs 24576 MB in 2026", "the 27B model needs 24576 MB in 2026"),
    ],
)
def test_redaction(text, shown):
    assert redacted(text) == shown
