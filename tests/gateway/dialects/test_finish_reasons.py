"""A finish reason ends an answer as whole, cut, filtered or failed, in each dialect; an empty one ends nothing."""

import json

import msgspec
import pytest
from fakes.chat_completions import USAGE, chunk

from gateway import errors
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.anthropic.stream import MessagesStream
from gateway.dialects.chat import finish_reasons
from gateway.dialects.responses import response as responses_response
from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.stream import ResponsesStream
from gateway.http import sse

MESSAGES, RESPONSES = MessagesContext("r", "m"), ResponsesContext("r", "m")
TRANSLATORS = {"messages": lambda: MessagesStream(MESSAGES), "responses": lambda: ResponsesStream(RESPONSES)}
NO_REASONS = [None, "", " ", "null", "None", False, {}, {"type": None}]


def streamed(name, *datas):
    """The data of the client's events, and the translator."""
    translator = TRANSLATORS[name]()
    raw = b"".join(translator.feed(data) for data in datas) + translator.finish()
    return [json.loads(event.data) for event in sse.Reader().feed(raw)], translator


def text_in(events):
    return "".join(
        event["delta"] if isinstance(event["delta"], str) else event["delta"].get("text", "")
        for event in events
        if event["type"] in {"response.output_text.delta", "content_block_delta"}
    )


def ended(events):
    return any(event["type"] in {"message_stop", "response.completed", "response.incomplete"} for event in events)


@pytest.mark.parametrize("reason", NO_REASONS, ids=repr)
@pytest.mark.parametrize("usage", [None, USAGE], ids=["no usage", "usage on every chunk"])
@pytest.mark.parametrize("name", TRANSLATORS)
def test_empty_reason_is_no_reason(name, usage, reason):
    """All text arrives, and the answer ends with its real reason."""
    datas = [chunk({"content": text}, reason, usage=usage) for text in ("", "One ", "two.")]

    events, _ = streamed(name, *datas, chunk({}, "stop", usage=usage))

    assert text_in(events) == "One two."
    assert ended(events)


@pytest.mark.parametrize("reason", NO_REASONS, ids=repr)
@pytest.mark.parametrize("name", TRANSLATORS)
def test_stream_that_stops_without_a_reason_is_an_error(name, reason):
    """An end is never made up."""
    events, translator = streamed(name, chunk({"content": "One "}, reason))

    assert not ended(events)
    assert isinstance(translator.error, errors.UpstreamConnectionError)


FAILED, OVERLOADED = errors.UpstreamConnectionError, errors.ServiceUnavailable
FAILURES = [
    ("abort", FAILED),
    ("error", FAILED),
    ("cancelled", FAILED),
    ("network_error", FAILED),
    ("NETWORK-ERROR", FAILED),
    ("engine_error", FAILED),
    ("MALFORMED_FUNCTION_CALL", FAILED),
    ({"type": "abort", "message": "x"}, FAILED),
    ("malformed_response", FAILED),
    ("insufficient_system_resource", OVERLOADED),
    ("rate_limit", OVERLOADED),
    ("Rate-Limit Exceeded", OVERLOADED),
    ("quota", OVERLOADED),
    ("user_quota_reached", OVERLOADED),
    ("unavailable", OVERLOADED),
    ("MODEL_TEMPORARILY_UNAVAILABLE", OVERLOADED),
    ("server_overload", OVERLOADED),
]


@pytest.mark.parametrize(("reason", "error"), FAILURES, ids=str)
@pytest.mark.parametrize("name", TRANSLATORS)
def test_reason_that_names_a_failure_is_an_error(name, reason, error):
    """Streamed, what came before stays, and an error event ends it; whole, it is an error response."""
    events, translator = streamed(name, chunk({"content": "One "}), chunk({}, reason, usage=USAGE), b"[DONE]")

    assert not ended(events)
    assert isinstance(translator.error, error)
    assert "error" in {event["type"] for event in events}
    body = msgspec.json.encode({"choices": [{"message": {"content": "One "}, "finish_reason": reason}]})
    with pytest.raises(error):
        messages_response.translate(body, MESSAGES)
    with pytest.raises(error):
        responses_response.translate(body, RESPONSES)


@pytest.mark.parametrize(
    ("reason", "stop_reason", "incomplete"),
    [
        ("length", "max_tokens", "max_output_tokens"),
        ("max_tokens", "max_tokens", "max_output_tokens"),
        ("MAX_TOKENS", "max_tokens", "max_output_tokens"),
        ("model_length", "max_tokens", "max_output_tokens"),
        ("model_context_window_exceeded", "max_tokens", "max_output_tokens"),
        ("token_limit_reached", "max_tokens", "max_output_tokens"),
        ("content_filter", "refusal", "content_filter"),
        ("sensitive", "refusal", "content_filter"),
        ("SAFETY", "refusal", "content_filter"),
        ("stop", "end_turn", None),
        ("eos", "end_turn", None),
    ],
)
def test_reason_of_an_incomplete_answer_is_translated(reason, stop_reason, incomplete):
    """Cut at a limit, or filtered; any other reason is a complete answer."""
    datas = chunk({"content": "One "}), chunk({}, reason, usage=USAGE), b"[DONE]"
    body = msgspec.json.encode({"choices": [{"message": {"content": "One "}, "finish_reason": reason}]})

    events, _ = streamed("messages", *datas)
    assert next(event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta") == stop_reason
    assert json.loads(messages_response.translate(body, MESSAGES))["stop_reason"] == stop_reason

    events, _ = streamed("responses", *datas)
    details = None if incomplete is None else {"reason": incomplete}
    assert events[-1]["type"] == ("response.completed" if incomplete is None else "response.incomplete")
    assert events[-1]["response"]["incomplete_details"] == details
    assert json.loads(responses_response.translate(body, RESPONSES))["incomplete_details"] == details


def test_every_row_of_the_table_is_spelt_as_it_is_looked_up():
    """In lower case, with underscores."""
    assert all(finish_reasons.kind_of(reason.upper()) == kind for reason, kind in finish_reasons._KINDS.items())


@pytest.mark.parametrize("reason", ["abort", "network_error", "insufficient_system_resource"])
def test_failing_reason_counts_like_an_error_that_the_neuron_reports(reason):
    """The request may be its cause, so it must not take the model away from other clients at once."""
    failure = finish_reasons.failure_of(reason)
    assert failure is not None
    assert failure.is_neurons_text
