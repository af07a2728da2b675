"""Bytes to events to another dialect's bytes: wherever the neuron's bytes are cut, the client reads the same."""

from functools import partial

import pytest
from fakes.chat_completions import USAGE, call, chunk, whole

from gateway import errors
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic import stream as messages_stream
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.chat_translator import FromChat
from gateway.dialects.responses import response as responses_response
from gateway.dialects.responses import stream as responses_stream
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.http import sse

DELTAS = [{"reasoning_content": "Hm, ü."}, {"content": "Tbilisi"}, call(0, "call_0", "now", "{}")]
DATAS = [*map(chunk, DELTAS), chunk({}, "tool_calls", usage=USAGE), b"[DONE]"]


def messages():
    context = MessagesContext("r", "m")
    return FromChat(messages_stream.MessagesStream(context), partial(messages_response.translate, context=context))


def responses():
    context = ResponsesContext("r", "m")
    return FromChat(responses_stream.ResponsesStream(context), partial(responses_response.translate, context=context))


both = pytest.mark.parametrize("make", [messages, responses])


@both
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_stream_cut_at_every_byte_says_the_same(make, line_end):
    """Inside a letter, inside a line end, between events: all the same."""
    raw = b"".join(map(sse.write, DATAS)).replace(b"\n", line_end)
    expected = make().feed(raw)

    assert expected
    for cut in range(len(raw)):
        translation = make()
        assert translation.feed(raw[:cut]) + translation.feed(raw[cut:]) + translation.finish() == expected
        assert translation.error is None


@both
def test_last_event_without_its_blank_line_counts(make):
    """Some engines save it."""
    translation = make()
    told = translation.feed(b"".join(map(sse.write, DATAS[:-1]))[:-2]) + translation.finish()

    assert told == make().feed(b"".join(map(sse.write, DATAS[:-1])))


@both
def test_event_that_fills_memory_fails_the_stream(make):
    """Told once, in the client's own form, and nothing after it."""
    translation = make()
    told = translation.feed(b"data: " + b"x" * (sse.EVENT_LIMIT_BYTES + 1))

    assert b"event: error" in told
    assert isinstance(translation.error, errors.UpstreamMalformedResponse)
    assert translation.finish() + translation.fail(errors.UpstreamConnectionError("late")) == b""


@both
def test_whole_answer_is_translated_whole(make):
    """By the dialect's other half."""
    assert b"Tbilisi" in make().whole(whole({"content": "Tbilisi"}))
    with pytest.raises(errors.UpstreamMalformedResponse):
        make().whole(b"<html>")
