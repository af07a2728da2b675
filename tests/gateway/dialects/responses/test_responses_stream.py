"""The stream translator: whatever an engine sends, a client hears a grammatical stream that says the same."""

import json
import time

import pytest
from fakes.chat_completions import USAGE, answers, call, chunk
from fakes.patience import best_of, measured
from hypothesis import given, settings
from hypothesis import strategies as st
from responses_grammar import events, listen

from gateway import errors
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.stream import ResponsesStream
from gateway.dialects.responses.tools import ClientTool
from gateway.http import sse

REQUEST_FIELDS = {"instructions": "be nice", "tools": [], "metadata": {}}
CONTEXT = ResponsesContext("req-1", "lab/m", input_tokens=12, request_fields=REQUEST_FIELDS)
PATCHING = ResponsesContext(
    "req-1", "lab/m", client_tools={"patch": ClientTool("patch", is_custom=True), "a__f": ClientTool("f", "a")}
)
BROKE_OFF = errors.UpstreamConnectionError("the neuron broke off")


def translated(*datas, context=CONTEXT, finish=True):
    translator = ResponsesStream(context)
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

    assert heard.completed
    assert heard.joined("reasoning_text") == answer.thought
    # White space that would have been a message of its own is all that may be missing.
    assert squeezed(heard.joined("output_text")) == squeezed(answer.text)
    assert [(name, json.loads(text)) for name, text in heard.calls] == [
        (name, json.loads(text)) for name, text in answer.calls
    ]
    cut = answer.finish_reason == "length"
    assert heard.types[-1] == ("response.incomplete" if cut else "response.completed")
    assert [item["status"] for item in heard.items[:-1]] == ["completed"] * (len(heard.items) - 1)
    if answer.usage is not None:
        assert heard.response["usage"] == {
            "input_tokens": 40,
            "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 47,
        }


@settings(deadline=None)
@given(answers(), st.data())
def test_stream_cut_at_any_byte_never_looks_complete(answer, data):
    """Only a neuron that said it was done gets an end; everything else ends in an error, told once."""
    raw = b"".join(map(sse.write, answer.datas))
    cut = data.draw(st.integers(0, len(raw)))
    translator, reader = ResponsesStream(CONTEXT), sse.Reader()
    fed = [event.data for event in reader.feed(raw[:cut])]
    stream = b"".join(map(translator.feed, fed)) + translator.fail(BROKE_OFF) + translator.finish()
    heard = listen(stream)

    said_its_end = b"[DONE]" in fed or any(b'"finish_reason": "' in data for data in fed)
    assert heard.ended
    assert heard.completed == (translator.error is None)
    assert said_its_end or not heard.completed


@settings(deadline=None)
@given(answers(finishes=False))
def test_stream_without_an_end_of_its_own_ends_in_an_error(answer):
    """HTTP may have ended in good order; without finish reason or `[DONE]` the answer has not."""
    translator = ResponsesStream(CONTEXT)
    heard = listen(b"".join(map(translator.feed, answer.datas)) + translator.finish())

    assert heard.completed == (answer.finish_reason is not None)
    assert (translator.error is None) == heard.completed


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"{}", b"null", b"[1]", b'{"choices":[{}]}']), max_size=5))
def test_stream_of_garbage_is_still_grammatical(datas):
    """No method raises, whatever comes."""
    heard = listen(translated(*datas))

    assert heard.ended
    assert heard.completed == (b"[DONE]" in datas and heard.error is None)


# When things leave...


def test_text_leaves_with_its_chunk():
    """Nothing is held back that could be told."""
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


def test_response_tells_the_request_again_at_both_ends():
    """As the API does: parameters, ids, the neuron's time and its name for the model."""
    stream = list(events(translated(chunk({"content": "hi"}, "stop"))))

    for event in (stream[0], stream[1], stream[-1]):
        assert event["response"].items() >= REQUEST_FIELDS.items()
        assert event["response"].items() >= {"id": "resp_req-1", "created_at": 1, "model": "lab/m"}.items()


def test_end_waits_for_usage_that_comes_after_the_finish():
    """The last event is the only place for it."""
    translator = ResponsesStream(CONTEXT)
    assert not listen(translator.feed(chunk({"content": "hi"}, "stop"))).ended
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
def test_usage_that_says_nothing_does_not_end_the_stream(nothing):
    """The true one may still come."""
    heard = listen(translated(chunk({"content": "a"}, "stop", usage=nothing), chunk(choices=[], usage=USAGE)))

    assert heard.response["usage"]["output_tokens"] == 7


def test_usage_is_estimated_where_the_neuron_counts_nothing():
    """One token per delta, and the request's own estimate: the API's types want numbers."""
    deltas = [chunk({"reasoning_content": "x"}), chunk({"content": "a"}), chunk({"content": "b"}, "stop")]
    usage = listen(translated(*deltas)).response["usage"]

    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (12, 3, 15)
    assert usage["output_tokens_details"] == {"reasoning_tokens": 1}


def test_first_call_streams_live_and_the_second_waits_for_its_end():
    """Items do not interleave; chunks of parallel calls do."""
    translator = ResponsesStream(CONTEXT)
    translator.feed(chunk(call(0, "a", "read", '{"x"')))
    live = translator.feed(chunk(call(0, arguments=": 1")))
    waiting = translator.feed(chunk(call(1, "b", "write", '{"y": 2}')))

    assert next(events(live))["delta"] == ": 1"
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
    """And stands before the calls that waited, once, as one message."""
    heard = said(call(0, "a", "f", "{}"), {"content": "and "}, call(1, "b", "g", "{}"), {"content": "so on"})

    assert [item["type"] for item in heard.items] == ["function_call", "message", "function_call"]
    assert heard.joined("output_text") == "and so on"


# Text, thoughts and refusals...


def test_thoughts_are_items_of_their_own():
    """Their text is content: open models show their thoughts, and nobody made a summary."""
    heard = said({"reasoning_content": "Georgia's "}, {"reasoning_content": "capital"}, {"content": "Tbilisi"})

    assert heard.items[0] == {
        "id": "rs_req-1_0",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Georgia's capital"}],
        "status": "completed",
    }
    assert [item["type"] for item in heard.items] == ["reasoning", "message"]


def test_blank_text_before_a_call_is_no_message():
    """Qwen says two line ends between its thoughts and a call."""
    heard = said({"reasoning_content": "x"}, {"content": "\n\n"}, call(0, "a", "f", "{}"), {"content": "\n"})

    assert [item["type"] for item in heard.items] == ["reasoning", "function_call"]


def test_white_space_before_text_is_kept():
    """It is part of the text once there is one."""
    assert said({"content": "\n"}, {"content": "  x"}).joined("output_text") == "\n  x"


def test_refusal_is_a_part_of_its_own():
    """In the message that the text before it is in."""
    heard = said({"content": "Well, "}, {"refusal": "I can"}, {"refusal": "not."})

    assert [part["type"] for part in heard.items[0]["content"]] == ["output_text", "refusal"]
    assert heard.joined("refusal") == "I cannot."


# Tool calls of odd engines...


@pytest.mark.parametrize("arguments", ["", None, "null", '""', "{}", " "])
def test_call_without_arguments_has_an_empty_object(arguments):
    """In whatever way an engine says nothing."""
    assert said(call(0, "a", "now", arguments)).calls == [("now", "{}")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [('"{\\"a\\": 1}"', '{"a":1}'), ("x: 1", "x: 1"), ("[1]", "[1]"), (' {"a": 1.50}', ' {"a": 1.50}')],
)
def test_arguments_are_what_the_model_wrote(arguments, told):
    """Only an object encoded twice is put right; what is none reaches the parser of the client."""
    assert said(call(0, "a", "f", arguments)).calls == [("f", told)]


def test_arguments_cut_by_the_token_limit_stay_cut():
    """And their item, as the last one, is incomplete."""
    heard = said(call(0, "a", "f", '{"a": 1}'), call(1, "b", "g", '{"b": '), finish_reason="length")

    assert heard.calls[1] == ("g", '{"b": ')
    assert [item["status"] for item in heard.items] == ["completed", "incomplete"]
    assert heard.response["incomplete_details"] == {"reason": "max_output_tokens"}


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
def test_calls_are_told_apart_for_odd_engines(deltas):
    """Each of these is what some engine sends for two calls."""
    assert said(*deltas).calls == [("f", "{}"), ("g", "{}")]


def test_call_without_an_id_gets_one_of_its_own():
    """The client has to answer each by its id."""
    heard = said(call(0, None, "f", "{}"), call(1, None, "g", "{}"))

    assert [item["call_id"] for item in heard.items] == ["call_req-1_0", "call_req-1_1"]


def test_call_without_a_name_is_an_error():
    """Nobody could run it, and leaving it out would look like an answer."""
    assert said(call(0, "a", None, "{}")).error["code"] == "upstream_malformed_response"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input": "*** a\\n"}', "*** a\n"), ("*** a", "*** a"), ('{"patch": 1}', '{"patch": 1}'), ('{"input": ""}', "")],
)
def test_custom_tool_is_called_with_plain_text(arguments, text):
    """Whether the model put it where it was context to or not."""
    [item] = said(call(0, "a", "patch", arguments[:5]), call(0, arguments=arguments[5:]), context=PATCHING).items

    assert (item["type"], item["call_id"], item["input"]) == ("custom_tool_call", "a", text)


def test_call_into_a_namespace_has_the_clients_own_names():
    """The model knows one name for both."""
    [item] = said(call(0, "a", "a__f", "{}"), context=PATCHING).items

    assert (item["type"], item["name"], item["namespace"]) == ("function_call", "f", "a")


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
def test_end_is_told_in_the_apis_words(finish_reason, status, reason):
    """For the response and for the item it ended in."""
    heard = said({"content": "x"}, finish_reason=finish_reason)

    assert (heard.response["status"], heard.items[-1]["status"]) == (status, status)
    assert (heard.response["incomplete_details"] or {}).get("reason") == reason


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
def test_error_inside_the_stream_is_told_in_both_ways_and_last(error, code):
    """The neuron's words where SDKs raise them and where agents read them, and nothing after."""
    translator = ResponsesStream(CONTEXT)
    stream = translator.feed(chunk({"content": "half an"})) + translator.feed(json.dumps({"error": error}).encode())
    after = translator.feed(chunk({"content": "x"})) + translator.feed(b"[DONE]") + translator.finish()
    heard = listen(stream + after + translator.fail(BROKE_OFF))

    assert heard.types[-2:] == ["error", "response.failed"]
    assert heard.error["message"] == translator.error.message == "boom"
    assert heard.response["error"] == {"code": code, "message": "boom"}


def test_failed_response_has_what_was_whole():
    """An item that broke off is known from its events; as an item it would pass for one."""
    translator = ResponsesStream(CONTEXT)
    stream = translator.feed(chunk({"reasoning_content": "Hm."})) + translator.feed(chunk({"content": "half"}))
    heard = listen(stream + translator.fail(BROKE_OFF))

    assert [item["type"] for item in heard.response["output"]] == ["reasoning"]


def test_finish_reason_of_an_engine_that_gave_up_is_an_error():
    """SGLang's `abort` would otherwise pass for an end."""
    assert said({"content": "half"}, finish_reason="abort").error["code"] == "upstream_connection_error"


def test_malformed_chunk_fails_the_stream():
    """What it would have said is lost, and a client must not take the rest for the whole."""
    translator = ResponsesStream(CONTEXT)
    heard = listen(translator.feed(chunk({"content": "a"})) + translator.feed(b'{"choices": [{"del'))

    assert heard.error is not None
    assert isinstance(translator.error, errors.UpstreamMalformedResponse)


def test_failure_before_anything_was_said_is_an_error_event_alone():
    """After an early 200 with nothing but comments there is no response that could fail."""
    assert [event["type"] for event in events(ResponsesStream(CONTEXT).fail(BROKE_OFF))] == ["error"]


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    """Engines that stream byte-level tokens cut characters in two."""
    translator = ResponsesStream(CONTEXT)
    stream = translator.feed(rb'{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}') + translator.finish()

    assert next(e for e in events(stream) if e["type"] == "response.output_text.delta")["delta"] == "\ufffd"


@pytest.mark.parametrize(("created", "told"), [(1.5, 1.5), (None, 0), ("soon", 0), (True, 0)])
def test_time_is_the_neurons(created, told):
    """We have no clock; some engines send a fraction, some nothing."""
    data = json.dumps({"created": created, "choices": []}).encode()

    assert next(events(ResponsesStream(CONTEXT).feed(data)))["response"]["created_at"] == told


@measured
async def test_thousands_of_calls_end_in_milliseconds_each():
    """A model in a loop calls a tool over and over; 5,000 calls held everybody up for seconds once."""
    datas = [chunk(call(number, f"c{number}", "f", "{}")) for number in range(5_000)]

    async def take():
        began = time.process_time()
        translated(*datas, chunk({}, "tool_calls"), b"[DONE]")
        return time.process_time() - began

    await best_of(take, 0.5)
