"""Chat translated for other dialects: the same result wherever the upstream's bytes are split."""

from functools import partial

import pytest
from fakes.chat_completions import USAGE, call, chunk, whole
from fakes.framed import TranslatedStream

from gateway import errors
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic import stream as messages_stream
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.chat_translator import ChatTranslation
from gateway.dialects.responses import response as responses_response
from gateway.dialects.responses import stream as responses_stream
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.http import sse

DELTAS = [{"reasoning_content": "Hm, ü."}, {"content": "Tbilisi"}, call(0, "call_0", "now", "{}")]
DATAS = [*map(chunk, DELTAS), chunk({}, "tool_calls", usage=USAGE), b"[DONE]"]


def messages():
    context = MessagesContext("r", "m", answer_id="r")
    return ChatTranslation(
        messages_stream.MessagesStream(context), partial(messages_response.translate, context=context)
    )


def responses():
    context = ResponsesContext("r", "m")
    return ChatTranslation(
        responses_stream.ResponsesStream(context), partial(responses_response.translate, context=context)
    )


both = pytest.mark.parametrize("make", [messages, responses])


@both
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_translation_is_the_same_at_every_split(make, line_end):
    """Inside a letter, inside a line end, between events."""
    raw = b"".join(map(sse.write, DATAS)).replace(b"\n", line_end)
    expected = TranslatedStream(make()).feed(raw)

    assert expected
    for cut in range(len(raw)):
        stream = TranslatedStream(make())
        assert stream.feed(raw[:cut]) + stream.feed(raw[cut:]) + stream.finish() == expected
        assert stream.translation.error is None


@both
def test_last_event_without_its_blank_line_counts(make):
    """Some engines omit it."""
    stream = TranslatedStream(make())
    out = stream.feed(b"".join(map(sse.write, DATAS[:-1]))[:-2]) + stream.finish()

    assert out == TranslatedStream(make()).feed(b"".join(map(sse.write, DATAS[:-1])))


@both
def test_event_over_the_limit_fails_the_stream(make):
    """One error event in the client's dialect, and nothing after it."""
    stream = TranslatedStream(make())
    out = stream.feed(b"data: " + b"x" * (sse.EVENT_LIMIT_BYTES + 1))

    assert b"event: error" in out
    assert isinstance(stream.translation.error, errors.UpstreamMalformedResponse)
    assert stream.finish() + stream.translation.fail(errors.UpstreamConnectionError("late")) == b""


@both
def test_whole_answer_is_translated_whole(make):
    """By the dialect's function for whole answers."""
    assert b"Tbilisi" in make().whole(whole({"content": "Tbilisi"}))
    with pytest.raises(errors.UpstreamMalformedResponse):
        make().whole(b"<html>")
