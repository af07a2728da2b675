"""The stream translator: the client gets a valid stream with the same content, whatever the engine sends."""

import json
import time

import pytest
from anthropic_grammar import events, read_stream
from fakes.chat_completions import USAGE, answers, call, chunk
from fakes.patience import best_of, measured
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.dialects.anthropic.message_object import MALFORMED_ARGUMENTS, MessagesContext
from gateway.dialects.anthropic.signature import is_genuine
from gateway.dialects.anthropic.stream import PING, MessagesStream
from gateway.http import sse

CONTEXT = MessagesContext("req-1", "lab/m", input_tokens=12, answer_id="req-1")
BROKE_OFF = errors.UpstreamConnectionError("the neuron broke off")


def translated(*datas, context=CONTEXT, finish=True):
    translator = MessagesStream(context)
    stream = b"".join(translator.feed(data) for data in datas)
    return stream + (translator.finish() if finish else b"")


def translated_answer(*deltas, finish_reason="stop", **more):
    """What a client reads of these deltas and a good end."""
    return read_stream(translated(*map(chunk, deltas), chunk({}, finish_reason, usage=USAGE), b"[DONE]", **more))


def squeezed(text):
    return "".join(text.split())


# Any answer...


@settings(deadline=None)  # the machine is shared, and building an answer takes milliseconds
@given(answers())
def test_stream_of_any_answer_is_valid_and_complete(answer):
    """Text, reasoning, calls and usage are complete and in order, however their chunks are mixed."""
    read_back = read_stream(translated(*answer.datas))

    assert read_back.stopped
    assert read_back.joined("thinking", "thinking") == answer.thought
    # Only white space that would have been a block of its own may be missing.
    assert squeezed(read_back.joined("text", "text")) == squeezed(answer.text)
    assert [(name, json.loads(text or "{}")) for name, text in read_back.calls] == [
        (name, json.loads(text)) for name, text in answer.calls
    ]
    expected = {"length": "max_tokens"}.get(answer.finish_reason, "tool_use" if answer.calls else "end_turn")
    assert read_back.stop["stop_reason"] == expected
    if answer.usage is not None:
        assert (read_back.usage["input_tokens"], read_back.usage["cache_read_input_tokens"]) == (10, 30)
        assert read_back.usage["output_tokens"] == 7
    assert all(is_genuine(b["thinking"], b["signature"]) for b in read_back.blocks if b["type"] == "thinking")


@settings(deadline=None)
@given(answers(), st.data())
def test_stream_cut_at_any_byte_never_looks_complete(answer, data):
    """Only a stream that the upstream has ended gets a `message_stop`; any other gets one error event."""
    raw = b"".join(map(sse.write, answer.datas))
    cut = data.draw(st.integers(0, len(raw)))
    translator, reader = MessagesStream(CONTEXT), sse.Reader()
    fed = [event.data for event in reader.feed(raw[:cut])]
    stream = b"".join(map(translator.feed, fed)) + translator.fail(BROKE_OFF) + translator.finish()
    read_back = read_stream(stream)

    has_end = b"[DONE]" in fed or any(b'"finish_reason": "' in data for data in fed)
    assert read_back.stopped == (read_back.error is None)
    assert has_end or not read_back.stopped


@settings(deadline=None)
@given(answers(finishes=False))
def test_stream_without_finish_reason_and_terminator_ends_in_an_error(answer):
    """The HTTP body may be complete; without finish reason or `[DONE]` the answer is not."""
    translator = MessagesStream(CONTEXT)
    read_back = read_stream(b"".join(map(translator.feed, answer.datas)) + translator.finish())

    assert read_back.stopped == (answer.finish_reason is not None)
    assert (translator.error is None) == read_back.stopped


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"{}", b"null", b"[1]", b'{"choices":[{}]}']), max_size=5))
def test_stream_of_garbage_is_still_valid(datas):
    """No method raises."""
    read_back = read_stream(translated(*datas))

    assert read_back.stopped == (b"[DONE]" in datas and read_back.error is None)


# When events are sent...


def test_text_is_sent_with_its_chunk():
    """It is not delayed."""
    translator = MessagesStream(CONTEXT)
    translator.feed(chunk({"role": "assistant", "content": ""}))

    first, second = (list(events(translator.feed(chunk({"content": text})))) for text in ("Tbi", "lisi"))

    assert [event["type"] for event in first] == ["content_block_start", "content_block_delta"]
    assert second == [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lisi"}},
    ]


def test_message_start_carries_the_estimate_and_full_usage():
    """The SDKs require its `usage`."""
    start = read_stream(translated(chunk({"role": "assistant"}), finish=False)).start

    assert start["id"] == "msg_req-1"
    assert start["model"] == "lab/m"
    assert start["usage"] == {
        "input_tokens": 12,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }


def test_end_waits_for_usage_that_comes_after_the_finish():
    """`message_delta` is the only place for the counts."""
    translator = MessagesStream(CONTEXT)
    assert not read_stream(translator.feed(chunk({"content": "hi"}, "stop"))).stopped
    assert list(events(translator.feed(chunk({})))) == []

    ending = list(events(translator.feed(chunk(choices=[], usage=USAGE))))

    assert [event["type"] for event in ending] == ["content_block_stop", "message_delta", "message_stop"]
    assert ending[1]["usage"]["output_tokens"] == 7
    assert ending[1]["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    assert translator.feed(b"[DONE]") + translator.finish() == b""


@pytest.mark.parametrize("nothing", [{}, {"prompt_tokens": None}, "n/a"])
def test_usage_without_counts_does_not_end_the_stream(nothing):
    """The counts may follow."""
    read_back = read_stream(translated(chunk({"content": "a"}, "stop", usage=nothing), chunk(choices=[], usage=USAGE)))

    assert read_back.usage["output_tokens"] == 7


def test_usage_is_estimated_if_the_upstream_reports_none():
    """One token per delta, and the estimate for the request."""
    read_back = read_stream(translated(chunk({"content": "a"}), chunk({"content": "b"}, "stop")))

    assert (read_back.usage["input_tokens"], read_back.usage["output_tokens"]) == (12, 2)


def test_first_call_is_sent_as_it_arrives_and_the_second_after_it():
    """Blocks do not interleave; chunks of parallel calls may."""
    translator = MessagesStream(CONTEXT)
    translator.feed(chunk(call(0, "a", "read", '{"x"')))
    sent = translator.feed(chunk(call(0, arguments=": 1")))
    waiting = translator.feed(chunk(call(1, "b", "write", '{"y": 2}')))

    assert next(events(sent))["delta"] == {"type": "input_json_delta", "partial_json": ": 1"}
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


# Reasoning...


def test_thinking_block_is_signed_before_it_closes():
    """The signature proves that a thinking block is ours when the client sends it back."""
    read_back = translated_answer(
        {"reasoning_content": "Georgia's "}, {"reasoning_content": "capital"}, {"content": "Tbilisi"}
    )

    assert [block["type"] for block in read_back.blocks] == ["thinking", "text"]
    assert is_genuine("Georgia's capital", read_back.blocks[0]["signature"])


def test_thinking_is_omitted_if_the_client_disabled_it():
    """`thinking: disabled`, and a model that reasons anyway."""
    read_back = translated_answer(
        {"reasoning": "hm"}, {"content": "4"}, context=MessagesContext("r", "m", show_thinking=False)
    )

    assert [block["type"] for block in read_back.blocks] == ["text"]


def test_blank_text_before_a_call_makes_no_block():
    """Qwen sends two line ends between reasoning and a call; Anthropic's API rejects blank text blocks."""
    read_back = translated_answer(
        {"reasoning_content": "x"}, {"content": "\n\n"}, call(0, "a", "f", "{}"), {"content": "\n"}
    )

    assert [block["type"] for block in read_back.blocks] == ["thinking", "tool_use"]


def test_white_space_before_text_is_kept():
    """It becomes part of the text that follows."""
    assert translated_answer({"content": "\n"}, {"content": "  x"}).joined("text", "text") == "\n  x"


# Tool calls of unusual engines...


@pytest.mark.parametrize("arguments", ["", None, "null", '""', "{}", " "])
def test_call_without_arguments_has_an_empty_object(arguments):
    """In every way in which engines send none."""
    assert translated_answer(call(0, "a", "now", arguments)).calls == [("now", "{}")]


def test_malformed_arguments_are_not_replaced_by_an_empty_object():
    """An empty object might be a valid call; the client's check of the input must fail."""
    [(_, text)] = translated_answer(call(0, "a", "f", "x: 1")).calls

    assert json.loads(text) == {MALFORMED_ARGUMENTS: "x: 1"}


def test_arguments_cut_by_the_token_limit_stay_cut():
    """As in Anthropic's API with `max_tokens`."""
    read_back = translated_answer(call(0, "a", "f", '{"a": 1}'), call(1, "b", "g", '{"b": '), finish_reason="length")

    assert read_back.calls[1] == ("g", '{"b": ')
    assert read_back.stop["stop_reason"] == "max_tokens"


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
def test_two_calls_stay_two_calls(deltas):
    """Each case is what some engine sends for two calls."""
    assert translated_answer(*deltas).calls == [("f", "{}"), ("g", "{}")]


def test_call_without_an_id_gets_a_unique_one():
    """The client sends each result with the call's id."""
    read_back = translated_answer(call(0, None, "f", "{}"), call(1, None, "g", "{}"))

    assert [block["id"] for block in read_back.blocks] == ["toolu_req-1_0", "toolu_req-1_1"]


def test_call_without_a_name_is_an_error():
    """No client can run it, and without it the answer would look complete."""
    assert translated_answer(call(0, "a", None, "{}")).error["type"] == "api_error"


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
def test_stop_reason_is_anthropics(choice, text, expected):
    """With the matched sequence, if the engine reports it or leaves it in the text."""
    context = MessagesContext("r", "m", stop_sequences=("\n\nHuman:", "END"))
    finish = chunk(choices=[{"index": 0, "delta": {}, **choice}])
    read_back = read_stream(translated(*(chunk({"content": letter}) for letter in text), finish, context=context))

    assert (read_back.stop["stop_reason"], read_back.stop["stop_sequence"]) == expected


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
    """The upstream's message in Anthropic's form, and nothing after it."""
    translator = MessagesStream(CONTEXT)
    stream = translator.feed(chunk({"content": "half an"})) + translator.feed(json.dumps({"error": error}).encode())
    after = translator.feed(chunk({"content": "x"})) + translator.feed(b"[DONE]") + translator.finish()
    read_back = read_stream(stream + after + translator.fail(BROKE_OFF))

    assert read_back.error == {"type": type_, "message": "boom"}
    assert translator.error.message == "boom"


def test_finish_reason_abort_is_an_error():
    """SGLang sends it when it gives up."""
    assert translated_answer({"content": "half"}, finish_reason="abort").error["type"] == "api_error"


def test_malformed_chunk_fails_the_stream():
    """Its content is lost, so the rest is not the whole answer."""
    translator = MessagesStream(CONTEXT)
    read_back = read_stream(translator.feed(chunk({"content": "a"})) + translator.feed(b'{"choices": [{"del'))

    assert read_back.error is not None
    assert isinstance(translator.error, errors.UpstreamMalformedResponse)


def test_failure_before_the_first_event_is_only_an_error_event():
    """After an early 200 with only pings."""
    translator = MessagesStream(CONTEXT)

    assert [event["type"] for event in events(PING + translator.fail(BROKE_OFF))] == ["ping", "error"]


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    """If the other half never comes. Engines that stream byte-level tokens split characters."""
    translator = MessagesStream(CONTEXT)
    stream = translator.feed(rb'{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}') + translator.feed(b"[DONE]")

    assert read_stream(stream).joined("text", "text") == "\ufffd"


@measured
async def test_thousands_of_calls_end_in_milliseconds_each():
    """A model in a loop calls a tool over and over; 5,000 calls once blocked all requests for seconds."""
    datas = [chunk(call(number, f"c{number}", "f", "{}")) for number in range(5_000)]

    async def take():
        began = time.process_time()
        translated(*datas, chunk({}, "tool_calls"), b"[DONE]")
        return time.process_time() - began

    await best_of(take, 0.5)
