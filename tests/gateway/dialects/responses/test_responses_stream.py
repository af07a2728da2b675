"""The stream translator: the client gets a valid stream with the same content, whatever the engine sends."""

import json
import time

import pytest
from fakes.chat_completions import USAGE, answers, call, chunk
from fakes.patience import best_of, measured
from fakes.responses_streams import CONTEXT, REQUEST_FIELDS, translated, translated_answer
from hypothesis import given, settings
from hypothesis import strategies as st
from responses_grammar import events, read_stream

from gateway import errors
from gateway.dialects.responses.stream import ResponsesStream
from gateway.http import sse

BROKE_OFF = errors.UpstreamConnectionError("the neuron broke off")


def squeezed(text):
    return "".join(text.split())


# Any answer...


@settings(deadline=None)  # the machine is shared, and building an answer takes milliseconds
@given(answers())
def test_stream_of_any_answer_is_valid_and_complete(answer):
    """Text, reasoning, calls and usage are complete and in order, however their chunks are mixed."""
    read_back = read_stream(translated(*answer.datas))

    assert read_back.completed
    assert read_back.joined("reasoning_text") == answer.thought
    # White space that would have been a message of its own is all that may be missing.
    assert squeezed(read_back.joined("output_text")) == squeezed(answer.text)
    assert [(name, json.loads(text)) for name, text in read_back.calls] == [
        (name, json.loads(text)) for name, text in answer.calls
    ]
    cut = answer.finish_reason == "length"
    assert read_back.types[-1] == ("response.incomplete" if cut else "response.completed")
    assert [item["status"] for item in read_back.items[:-1]] == ["completed"] * (len(read_back.items) - 1)
    if answer.usage is not None:
        assert read_back.response["usage"] == {
            "input_tokens": 40,
            "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 47,
        }


@settings(deadline=None)
@given(answers(), st.data())
def test_stream_cut_at_any_byte_never_looks_complete(answer, data):
    """Only a stream that the upstream has ended gets an end; any other gets one error."""
    raw = b"".join(map(sse.write, answer.datas))
    cut = data.draw(st.integers(0, len(raw)))
    translator, reader = ResponsesStream(CONTEXT), sse.Reader()
    fed = [event.data for event in reader.feed(raw[:cut])]
    stream = b"".join(map(translator.feed, fed)) + translator.fail(BROKE_OFF) + translator.finish()
    read_back = read_stream(stream)

    has_end = b"[DONE]" in fed or any(b'"finish_reason": "' in data for data in fed)
    assert read_back.ended
    assert read_back.completed == (translator.error is None)
    assert has_end or not read_back.completed


@settings(deadline=None)
@given(answers(finishes=False))
def test_stream_without_finish_reason_and_terminator_ends_in_an_error(answer):
    """The HTTP body may be complete; without finish reason or `[DONE]` the answer is not."""
    translator = ResponsesStream(CONTEXT)
    read_back = read_stream(b"".join(map(translator.feed, answer.datas)) + translator.finish())

    assert read_back.completed == (answer.finish_reason is not None)
    assert (translator.error is None) == read_back.completed


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"{}", b"null", b"[1]", b'{"choices":[{}]}']), max_size=5))
def test_stream_of_garbage_is_still_valid(datas):
    """No method raises."""
    read_back = read_stream(translated(*datas))

    assert read_back.ended
    assert read_back.completed == (b"[DONE]" in datas and read_back.error is None)


# When events are sent...


def test_text_is_sent_with_its_chunk():
    """It is not delayed."""
    translator = ResponsesStream(CONTEXT)
    first = list(events(translator.feed(chunk({"role": "assistant", "content": ""}))))
    second, third = (list(events(translator.feed(chunk({"content": text})))) for text in ("Tbi", "lisi"))

    assert [event["type"] for event in first] == ["response.created", "response.in_progress"]
    assert [event["type"].removeprefix("response.") for event in second] == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
    ]
    place = {"item_id": "msg_req-1_0", "output_index": 0, "content_index": 0}
    assert third == [
        {"type": "response.output_text.delta", "delta": "lisi", "logprobs": [], "sequence_number": 5, **place}
    ]


def test_response_object_repeats_the_request_at_start_and_end():
    """As in the API: parameters, ids, the upstream's time and its name for the model."""
    stream = list(events(translated(chunk({"content": "hi"}, "stop"))))

    for event in (stream[0], stream[1], stream[-1]):
        assert event["response"].items() >= REQUEST_FIELDS.items()
        assert event["response"].items() >= {"id": "resp_req-1", "created_at": 1, "model": "lab/m"}.items()


def test_end_waits_for_usage_that_comes_after_the_finish():
    """The last event is the only place for the counts."""
    translator = ResponsesStream(CONTEXT)
    assert not read_stream(translator.feed(chunk({"content": "hi"}, "stop"))).ended
    assert translator.feed(chunk({})) == b""

    ending = list(events(translator.feed(chunk(choices=[], usage=USAGE))))

    assert [event["type"].removeprefix("response.") for event in ending] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert ending[-1]["response"]["usage"]["output_tokens"] == 7
    assert translator.feed(b"[DONE]") + translator.finish() + translator.fail(BROKE_OFF) == b""


@pytest.mark.parametrize("nothing", [{}, {"prompt_tokens": None}, "n/a"])
def test_usage_without_counts_does_not_end_the_stream(nothing):
    """The counts may follow."""
    read_back = read_stream(translated(chunk({"content": "a"}, "stop", usage=nothing), chunk(choices=[], usage=USAGE)))

    assert read_back.response["usage"]["output_tokens"] == 7


def test_usage_is_estimated_if_the_upstream_reports_none():
    """One token per delta, and the estimate for the request: the API's types require numbers."""
    deltas = [chunk({"reasoning_content": "x"}), chunk({"content": "a"}), chunk({"content": "b"}, "stop")]
    usage = read_stream(translated(*deltas)).response["usage"]

    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (12, 3, 15)
    assert usage["output_tokens_details"] == {"reasoning_tokens": 1}


def test_first_call_is_sent_as_it_arrives_and_the_second_after_it():
    """Items do not interleave; chunks of parallel calls may."""
    translator = ResponsesStream(CONTEXT)
    translator.feed(chunk(call(0, "a", "read", '{"x"')))
    sent = translator.feed(chunk(call(0, arguments=": 1")))
    waiting = translator.feed(chunk(call(1, "b", "write", '{"y": 2}')))

    assert next(events(sent))["delta"] == ": 1"
    assert waiting == b""
    translator.feed(chunk(call(0, arguments="}")))
    ending = list(events(translator.feed(chunk({}, "tool_calls")) + translator.finish()))
    assert [event["type"].removeprefix("response.") for event in ending] == [
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert ending[5]["item"] == {
        "id": "fc_req-1_1",
        "type": "function_call",
        "call_id": "b",
        "name": "write",
        "arguments": '{"y": 2}',
        "status": "completed",
    }


def test_text_after_a_call_follows_it():
    """As one message, before the deferred calls."""
    read_back = translated_answer(
        call(0, "a", "f", "{}"), {"content": "and "}, call(1, "b", "g", "{}"), {"content": "so on"}
    )

    assert [item["type"] for item in read_back.items] == ["function_call", "message", "function_call"]
    assert read_back.joined("output_text") == "and so on"


# Text, thoughts and refusals...


def test_reasoning_is_an_item_of_its_own():
    """Its text is `content`: open models show their reasoning, and there is no summary."""
    read_back = translated_answer(
        {"reasoning_content": "Georgia's "}, {"reasoning_content": "capital"}, {"content": "Tbilisi"}
    )

    assert read_back.items[0] == {
        "id": "rs_req-1_0",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Georgia's capital"}],
        "status": "completed",
    }
    assert [item["type"] for item in read_back.items] == ["reasoning", "message"]


def test_blank_text_before_a_call_makes_no_message():
    """Qwen sends two line ends between reasoning and a call."""
    read_back = translated_answer(
        {"reasoning_content": "x"}, {"content": "\n\n"}, call(0, "a", "f", "{}"), {"content": "\n"}
    )

    assert [item["type"] for item in read_back.items] == ["reasoning", "function_call"]


def test_white_space_before_text_is_kept():
    """It becomes part of the text that follows."""
    assert translated_answer({"content": "\n"}, {"content": "  x"}).joined("output_text") == "\n  x"


def test_refusal_is_a_part_of_its_own():
    """In the same message as the text before it."""
    read_back = translated_answer({"content": "Well, "}, {"refusal": "I can"}, {"refusal": "not."})

    assert [part["type"] for part in read_back.items[0]["content"]] == ["output_text", "refusal"]
    assert read_back.joined("refusal") == "I cannot."


# Ends and errors...


@pytest.mark.parametrize(
    ("finish_reason", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_status_and_reason_are_the_apis(finish_reason, status, reason):
    """For the response and for its last item."""
    read_back = translated_answer({"content": "x"}, finish_reason=finish_reason)

    assert (read_back.response["status"], read_back.items[-1]["status"]) == (status, status)
    assert (read_back.response["incomplete_details"] or {}).get("reason") == reason


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "boom", "type": "server_error", "code": None}, "server_error"),
        ({"message": "boom", "type": "x", "code": 503}, "rate_limit_exceeded"),
        ({"message": "boom", "type": "rate_limit_error"}, "rate_limit_exceeded"),
        ({"message": "boom", "type": "invalid_request_error"}, "invalid_prompt"),
        ("boom", "server_error"),
    ],
)
def test_error_inside_the_stream_is_sent_in_both_forms_and_last(error, code):
    """The upstream's message as `error` for SDKs and as `response.failed` for agents, and nothing after it."""
    translator = ResponsesStream(CONTEXT)
    stream = translator.feed(chunk({"content": "half an"})) + translator.feed(json.dumps({"error": error}).encode())
    after = translator.feed(chunk({"content": "x"})) + translator.feed(b"[DONE]") + translator.finish()
    read_back = read_stream(stream + after + translator.fail(BROKE_OFF))

    assert read_back.types[-2:] == ["error", "response.failed"]
    assert read_back.error["message"] == translator.error.message == "boom"
    assert read_back.response["error"] == {"code": code, "message": "boom"}


def test_failed_response_has_the_finished_items():
    """An unfinished item is known from its events; in `output` it would look finished."""
    translator = ResponsesStream(CONTEXT)
    stream = translator.feed(chunk({"reasoning_content": "Hm."})) + translator.feed(chunk({"content": "half"}))
    read_back = read_stream(stream + translator.fail(BROKE_OFF))

    assert [item["type"] for item in read_back.response["output"]] == ["reasoning"]


def test_finish_reason_abort_is_an_error():
    """SGLang sends it when it gives up."""
    assert translated_answer({"content": "half"}, finish_reason="abort").error["code"] == "upstream_connection_error"


def test_malformed_chunk_fails_the_stream():
    """Its content is lost, so the rest is not the whole answer."""
    translator = ResponsesStream(CONTEXT)
    read_back = read_stream(translator.feed(chunk({"content": "a"})) + translator.feed(b'{"choices": [{"del'))

    assert read_back.error is not None
    assert isinstance(translator.error, errors.UpstreamMalformedResponse)


def test_failure_before_the_first_event_is_only_an_error_event():
    """After an early 200 with only comments there is no response that could fail."""
    assert [event["type"] for event in events(ResponsesStream(CONTEXT).fail(BROKE_OFF))] == ["error"]


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    """If the other half never comes. Engines that stream byte-level tokens split characters."""
    translator = ResponsesStream(CONTEXT)
    stream = translator.feed(rb'{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}') + translator.feed(b"[DONE]")

    assert next(e for e in events(stream) if e["type"] == "response.output_text.delta")["delta"] == "\ufffd"


@pytest.mark.parametrize(("created", "expected"), [(1.5, 1.5), (None, 0), ("soon", 0), (True, 0)])
def test_created_at_is_the_upstreams(created, expected):
    """The translator has no clock; some engines send a fraction, some nothing."""
    data = json.dumps({"created": created, "choices": []}).encode()

    assert next(events(ResponsesStream(CONTEXT).feed(data)))["response"]["created_at"] == expected


@measured
async def test_thousands_of_calls_end_in_milliseconds_each():
    """A model in a loop calls a tool over and over; 5,000 calls once blocked all requests for seconds."""
    datas = [chunk(call(number, f"c{number}", "f", "{}")) for number in range(5_000)]

    async def take():
        began = time.process_time()
        translated(*datas, chunk({}, "tool_calls"), b"[DONE]")
        return time.process_time() - began

    await best_of(take, 0.5)
