"""The stream translator: whatever an engine sends, a client hears a grammatical stream that says the same."""

import json
import time

import pytest
from anthropic_grammar import events, listen
from fakes.chat_completions import USAGE, answers, call, chunk
from fakes.patience import best_of, measured
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.dialects.anthropic.message_object import MALFORMED_ARGUMENTS, MessagesContext
from gateway.dialects.anthropic.signature import is_genuine
from gateway.dialects.anthropic.stream import MessagesStream
from gateway.http import sse

CONTEXT = MessagesContext("req-1", "lab/m", input_tokens=12)
BROKE_OFF = errors.UpstreamConnectionError("the neuron broke off")


def translated(*datas, context=CONTEXT, finish=True):
    translator = MessagesStream(context)
    stream = b"".join(translator.feed(data) for data in datas)
    return stream + (translator.finish() if finish else b"")


def said(*deltas, finish_reason="stop", **more):
    """What a client hears of some deltas that end well."""
    return listen(translated(*map(chunk, deltas), chunk({}, finish_reason, usage=USAGE), b"[DONE]", **more))


def squeezed(text):
    return "".join(text.split())


# Any answer...


@settings(deadline=None)  # the machine is shared, and building an answer takes milliseconds
@given(answers())
def test_stream_of_any_answer_is_grammatical_and_complete(answer):
    """Text, thoughts, calls and usage arrive whole, in order, however their chunks were mixed."""
    heard = listen(translated(*answer.datas))

    assert heard.stopped
    assert heard.joined("thinking", "thinking") == answer.thought
    # White space that would have been a block of its own is all that may be missing.
    assert squeezed(heard.joined("text", "text")) == squeezed(answer.text)
    assert [(name, json.loads(text or "{}")) for name, text in heard.calls] == [
        (name, json.loads(text)) for name, text in answer.calls
    ]
    expected = {"length": "max_tokens"}.get(answer.finish_reason, "tool_use" if answer.calls else "end_turn")
    assert heard.stop["stop_reason"] == expected
    if answer.usage is not None:
        assert (heard.usage["input_tokens"], heard.usage["cache_read_input_tokens"]) == (10, 30)
        assert heard.usage["output_tokens"] == 7
    assert all(is_genuine(b["thinking"], b["signature"]) for b in heard.blocks if b["type"] == "thinking")


@settings(deadline=None)
@given(answers(), st.data())
def test_stream_cut_at_any_byte_never_looks_complete(answer, data):
    """Only a neuron that said it was done gets a `message_stop`; everything else ends in one error event."""
    raw = b"".join(map(sse.write, answer.datas))
    cut = data.draw(st.integers(0, len(raw)))
    translator, reader = MessagesStream(CONTEXT), sse.Reader()
    fed = [event.data for event in reader.feed(raw[:cut])]
    stream = b"".join(map(translator.feed, fed)) + translator.fail(BROKE_OFF) + translator.finish()
    heard = listen(stream)

    said_its_end = b"[DONE]" in fed or any(b'"finish_reason": "' in data for data in fed)
    assert heard.stopped == (heard.error is None)
    assert said_its_end or not heard.stopped


@settings(deadline=None)
@given(answers(finishes=False))
def test_stream_without_an_end_of_its_own_ends_in_an_error(answer):
    """HTTP may have ended in good order; without finish reason or `[DONE]` the answer has not."""
    translator = MessagesStream(CONTEXT)
    heard = listen(b"".join(map(translator.feed, answer.datas)) + translator.finish())

    assert heard.stopped == (answer.finish_reason is not None)
    assert (translator.error is None) == heard.stopped


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"{}", b"null", b"[1]", b'{"choices":[{}]}']), max_size=5))
def test_stream_of_garbage_is_still_grammatical(datas):
    """No method raises, whatever comes."""
    heard = listen(translated(*datas))

    assert heard.stopped == (b"[DONE]" in datas and heard.error is None)


# When things leave...


def test_text_leaves_with_its_chunk():
    """Nothing is held back that could be told."""
    translator = MessagesStream(CONTEXT)
    translator.feed(chunk({"role": "assistant", "content": ""}))

    first, second = (list(events(translator.feed(chunk({"content": text})))) for text in ("Tbi", "lisi"))

    assert [event["type"] for event in first] == ["content_block_start", "content_block_delta"]
    assert second == [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lisi"}},
    ]


def test_message_start_carries_the_estimate_and_full_usage():
    """The SDKs read `usage` from it without asking whether it is there."""
    start = listen(translated(chunk({"role": "assistant"}), finish=False)).start

    assert start["id"] == "msg_req-1"
    assert start["model"] == "lab/m"
    assert start["usage"] == {
        "input_tokens": 12,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }


def test_end_waits_for_usage_that_comes_after_the_finish():
    """`message_delta` is the only place for the true numbers."""
    translator = MessagesStream(CONTEXT)
    assert not listen(translator.feed(chunk({"content": "hi"}, "stop"))).stopped
    assert list(events(translator.feed(chunk({})))) == []

    ending = list(events(translator.feed(chunk(choices=[], usage=USAGE))))

    assert [event["type"] for event in ending] == ["content_block_stop", "message_delta", "message_stop"]
    assert ending[1]["usage"]["output_tokens"] == 7
    assert ending[1]["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    assert translator.feed(b"[DONE]") + translator.finish() + translator.ping() == b""


@pytest.mark.parametrize("nothing", [{}, {"prompt_tokens": None}, "n/a"])
def test_usage_that_says_nothing_does_not_end_the_stream(nothing):
    """The true one may still come."""
    heard = listen(translated(chunk({"content": "a"}, "stop", usage=nothing), chunk(choices=[], usage=USAGE)))

    assert heard.usage["output_tokens"] == 7


def test_usage_is_estimated_where_the_neuron_counts_nothing():
    """One token per delta, and the request's own estimate."""
    heard = listen(translated(chunk({"content": "a"}), chunk({"content": "b"}, "stop")))

    assert (heard.usage["input_tokens"], heard.usage["output_tokens"]) == (12, 2)


def test_first_call_streams_live_and_the_second_waits_for_its_end():
    """Blocks do not interleave; chunks of parallel calls do."""
    translator = MessagesStream(CONTEXT)
    translator.feed(chunk(call(0, "a", "read", '{"x"')))
    live = translator.feed(chunk(call(0, arguments=": 1")))
    waiting = translator.feed(chunk(call(1, "b", "write", '{"y": 2}')))

    assert next(events(live))["delta"] == {"type": "input_json_delta", "partial_json": ": 1"}
    assert waiting == b""
    translator.feed(chunk(call(0, arguments="}")))
    ending = list(events(translator.feed(chunk({}, "tool_calls")) + translator.finish()))
    assert [event["type"] for event in ending[:4]] == [
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
    ]
    assert ending[1]["content_block"] == {"type": "tool_use", "id": "b", "name": "write", "input": {}}


# Thoughts...


def test_thinking_block_is_signed_before_it_closes():
    """The signature lets us know the thought again when the client sends it back."""
    heard = said({"reasoning_content": "Georgia's "}, {"reasoning_content": "capital"}, {"content": "Tbilisi"})

    assert [block["type"] for block in heard.blocks] == ["thinking", "text"]
    assert is_genuine("Georgia's capital", heard.blocks[0]["signature"])


def test_thoughts_are_left_out_when_the_client_wants_none():
    """`thinking: disabled`, and a model that thinks all the same."""
    heard = said({"reasoning": "hm"}, {"content": "4"}, context=MessagesContext("r", "m", show_thinking=False))

    assert [block["type"] for block in heard.blocks] == ["text"]


def test_blank_text_before_a_call_is_no_block():
    """Qwen says two line ends between its thoughts and a call; Anthropic's API refuses blank text blocks."""
    heard = said({"reasoning_content": "x"}, {"content": "\n\n"}, call(0, "a", "f", "{}"), {"content": "\n"})

    assert [block["type"] for block in heard.blocks] == ["thinking", "tool_use"]


def test_white_space_before_text_is_kept():
    """It is part of the text once there is one."""
    assert said({"content": "\n"}, {"content": "  x"}).joined("text", "text") == "\n  x"


# Tool calls of odd engines...


@pytest.mark.parametrize("arguments", ["", None, "null", '""', "{}", " "])
def test_call_without_arguments_has_an_empty_object(arguments):
    """In whatever way an engine says nothing."""
    assert said(call(0, "a", "now", arguments)).calls == [("now", "{}")]


def test_broken_arguments_are_no_empty_object():
    """An empty object might be a valid call; what the model wrote reaches the client where it fails visibly."""
    [(_, text)] = said(call(0, "a", "f", "x: 1")).calls

    assert json.loads(text) == {MALFORMED_ARGUMENTS: "x: 1"}


def test_arguments_cut_by_the_token_limit_stay_cut():
    """As Anthropic's API has it with `max_tokens`."""
    heard = said(call(0, "a", "f", '{"a": 1}'), call(1, "b", "g", '{"b": '), finish_reason="length")

    assert heard.calls[1] == ("g", '{"b": ')
    assert heard.stop["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    "deltas",
    [
        [call(0, "a", "f", "{}"), call(0, "b", "g", "{}")],
        [{"tool_calls": [{"id": i, "function": {"name": n, "arguments": "{}"}}]} for i, n in (("a", "f"), ("b", "g"))],
        [call(0, "a", "f", {}), call(1, "b", "g", {})],
        [call(0, "a", "f", "{"), call(0, "other", arguments="}"), call(1, "b", "g", "{}")],
        [call(0, "a", "f", "{"), call(0, "a", "f", "}"), call(1, "b", "g", "{}")],
        [{"tool_calls": call(0, "a", "f", "{}")["tool_calls"] + call(1, "b", "g", "{}")["tool_calls"]}],
    ],
    ids=["all numbered 0", "no index", "objects", "an id per chunk", "all repeated", "one chunk"],
)
def test_calls_are_told_apart_for_odd_engines(deltas):
    """Each of these is what some engine sends for two calls."""
    assert said(*deltas).calls == [("f", "{}"), ("g", "{}")]


def test_call_without_an_id_gets_one_of_its_own():
    """The client has to answer each by its id."""
    heard = said(call(0, None, "f", "{}"), call(1, None, "g", "{}"))

    assert [block["id"] for block in heard.blocks] == ["toolu_req-1_0", "toolu_req-1_1"]


def test_call_without_a_name_is_an_error():
    """Nobody could run it, and leaving it out would look like an answer."""
    assert said(call(0, "a", None, "{}")).error["type"] == "api_error"


# Stop reasons...


@pytest.mark.parametrize(
    ("choice", "text", "expected"),
    [
        ({"finish_reason": "stop"}, "done", ("end_turn", None)),
        ({"finish_reason": "length"}, "don", ("max_tokens", None)),
        ({"finish_reason": "content_filter"}, "", ("refusal", None)),
        ({"finish_reason": "tool_calls"}, "no call at all", ("end_turn", None)),
        ({"finish_reason": "stop", "stop_reason": "END"}, "x", ("stop_sequence", "END")),
        ({"finish_reason": "stop", "matched_stop": "END"}, "x", ("stop_sequence", "END")),
        ({"finish_reason": "stop", "stop_reason": 151645}, "x", ("end_turn", None)),
        ({"finish_reason": "stop", "stop_reason": "not asked for"}, "x", ("end_turn", None)),
        ({"finish_reason": "stop"}, "left in END", ("stop_sequence", "END")),
    ],
)
def test_stop_reason_is_told_in_anthropics_words(choice, text, expected):
    """The matched sequence, too, where the engine lets it be known."""
    context = MessagesContext("r", "m", stop_sequences=("\n\nHuman:", "END"))
    finish = chunk(choices=[{"index": 0, "delta": {}, **choice}])
    heard = listen(translated(*(chunk({"content": letter}) for letter in text), finish, context=context))

    assert (heard.stop["stop_reason"], heard.stop["stop_sequence"]) == expected


# Errors...


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        ({"message": "boom", "type": "server_error", "code": None}, "api_error"),
        ({"message": "boom", "type": "x", "code": 503}, "overloaded_error"),
        ({"message": "boom", "type": "rate_limit_error"}, "overloaded_error"),
        ({"message": "boom", "type": "invalid_request_error"}, "invalid_request_error"),
        ("boom", "api_error"),
    ],
)
def test_error_inside_the_stream_is_translated_and_last(error, type_):
    """The neuron's words in Anthropic's form, and nothing after them."""
    translator = MessagesStream(CONTEXT)
    stream = translator.feed(chunk({"content": "half an"})) + translator.feed(json.dumps({"error": error}).encode())
    after = translator.feed(chunk({"content": "x"})) + translator.feed(b"[DONE]") + translator.finish()
    heard = listen(stream + after + translator.fail(BROKE_OFF) + translator.ping())

    assert heard.error == {"type": type_, "message": "boom"}
    assert translator.error.message == "boom"


def test_finish_reason_of_an_engine_that_gave_up_is_an_error():
    """SGLang's `abort` would otherwise pass for an end."""
    assert said({"content": "half"}, finish_reason="abort").error["type"] == "api_error"


def test_malformed_chunk_fails_the_stream():
    """What it would have said is lost, and a client must not take the rest for the whole."""
    translator = MessagesStream(CONTEXT)
    heard = listen(translator.feed(chunk({"content": "a"})) + translator.feed(b'{"choices": [{"del'))

    assert heard.error is not None
    assert isinstance(translator.error, errors.UpstreamMalformedResponse)


def test_failure_before_anything_was_said_is_an_error_event_alone():
    """After an early 200 with nothing but pings."""
    translator = MessagesStream(CONTEXT)

    assert [event["type"] for event in events(translator.ping() + translator.fail(BROKE_OFF))] == ["ping", "error"]


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    """Engines that stream byte-level tokens cut characters in two."""
    translator = MessagesStream(CONTEXT)
    stream = translator.feed(rb'{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}')

    assert listen(stream).joined("text", "text") == "\ufffd"


@measured
async def test_thousands_of_calls_end_in_milliseconds_each():
    """A model in a loop calls a tool over and over; 5,000 calls held everybody up for seconds once."""
    datas = [chunk(call(number, f"c{number}", "f", "{}")) for number in range(5_000)]

    async def take():
        began = time.process_time()
        translated(*datas, chunk({}, "tool_calls"), b"[DONE]")
        return time.process_time() - began

    await best_of(take, 0.5)
