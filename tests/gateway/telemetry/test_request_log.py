"""One record per request, taken once however the request ends."""

import pytest
import structlog
import trio
from fakes.framed import MeteredStream
from fakes.recorded import recorded
from structlog.testing import capture_logs

from gateway.dialects.usage_fields import Usage
from gateway.errors import InternalError, ModelNotFound, UpstreamConnectionError
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.request_log import RequestLog
from gateway.telemetry.target_metrics import GENERATIONS_KEPT

DELTA = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":40,'
    b'"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
)
ROUTE = '{model="m",node="n"}'


@pytest.fixture
def request_log():
    yield RequestLog(Metrics(), log_requests=True)
    structlog.reset_defaults()


def sample(request_log, name):
    """The value of one series, None if it does not exist."""
    for line in request_log.metrics.expose().decode().splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return None


@pytest.mark.parametrize("leave", [ValueError, trio.TooSlowError, KeyboardInterrupt])
async def test_record_is_written_once_however_the_request_is_left(request_log, leave):
    """An exception passes through; the request counts as cancelled."""
    with capture_logs() as logs, pytest.raises(leave), recorded(request_log, "id", "/v1/x"):
        assert len(request_log.live) == 1
        raise leave

    assert request_log.live == {}
    assert [(entry["event"], entry["outcome"], entry["status"]) for entry in logs] == [("request", "cancelled", 0)]


async def test_two_requests_may_have_the_same_id(request_log):
    """Clients choose the ids."""
    with recorded(request_log, "same", "/"), recorded(request_log, "same", "/"):
        assert len(request_log.live) == 2

    assert request_log.live == {}
    assert request_log.served == 2


async def test_log_can_be_turned_off_and_metrics_stay(request_log):
    """`access_log = false`."""
    quiet = RequestLog(request_log.metrics, log_requests=False)
    with capture_logs() as logs, recorded(quiet) as record, record.routing.start_attempt("m", "n"):
        record.outcome = "ok"

    assert logs == []
    assert sample(quiet, f"cortex_request_duration_seconds_count{ROUTE}") == 1


async def test_inflight_goes_up_and_down_with_each_attempt(request_log):
    """Also if the attempt ends with an exception."""
    with recorded(request_log) as record:
        with pytest.raises(ValueError, match="x"), record.routing.start_attempt("m", "n"):
            assert sample(request_log, f"cortex_inflight_requests{ROUTE}") == 1
            raise ValueError("x")
        record.routing.retried()

    assert sample(request_log, f"cortex_inflight_requests{ROUTE}") == 0
    assert sample(request_log, f"cortex_requests_total{ROUTE}") == 1
    assert sample(request_log, f"cortex_retries_total{ROUTE}") == 1


async def test_speed_is_tokens_from_first_to_last_token(request_log, autojump_clock):
    """The time to the first token counts from the start of the request."""
    with recorded(request_log) as record, record.routing.start_attempt("m", "n"):
        record.answer.meter = (metered := MeteredStream()).meter
        await trio.sleep(3)
        metered.feed(DELTA, trio.current_time())
        await trio.sleep(2)
        metered.feed(DELTA + USAGE, trio.current_time())
        await trio.sleep(10)
        record.outcome = "ok"

    assert sample(request_log, f"cortex_time_to_first_token_seconds_sum{ROUTE}") == 3
    assert sample(request_log, f"cortex_tokens_per_second_sum{ROUTE}") == 20
    assert sample(request_log, f"cortex_inter_token_seconds_sum{ROUTE}") == 2
    assert sample(request_log, f"cortex_inter_token_seconds_count{ROUTE}") == 39
    assert sample(request_log, f"cortex_request_duration_seconds_sum{ROUTE}") == 15
    assert sample(request_log, f"cortex_prompt_tokens_total{ROUTE}") == 5
    assert sample(request_log, f"cortex_completion_tokens_total{ROUTE}") == 40
    assert sample(request_log, f"cortex_cached_prompt_tokens_total{ROUTE}") == 0


async def test_missing_token_counts_are_estimated_and_marked(request_log):
    """One per delta; marked in the log, and a metric of its own."""
    with capture_logs() as logs, recorded(request_log) as record, record.routing.start_attempt("m", "n"):
        record.answer.meter = (metered := MeteredStream()).meter
        metered.feed(DELTA * 3, 1.0)

    assert (logs[0]["completion_tokens"], logs[0]["tokens_estimated"]) == (3, True)
    assert sample(request_log, f"cortex_completion_tokens_total{ROUTE}") is None
    assert sample(request_log, f"cortex_estimated_completion_tokens_total{ROUTE}") == 3


async def test_partial_usage_is_completed_by_an_estimate(request_log):
    """Stated numbers are used. Anthropic states the prompt's at the start of a stream, and 1 for the answer."""
    start = b'data: {"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
    delta = b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n'
    end = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}\n\n'
    for stream in (start + delta * 4, start + delta * 4 + end):
        with recorded(request_log) as record, record.routing.start_attempt("m", "n"):
            record.answer.meter = (metered := MeteredStream()).meter
            metered.feed(stream, 1.0)

    assert sample(request_log, f"cortex_prompt_tokens_total{ROUTE}") == 14
    assert sample(request_log, f"cortex_estimated_completion_tokens_total{ROUTE}") == 4
    assert sample(request_log, f"cortex_completion_tokens_total{ROUTE}") == 9


async def test_reasoning_tokens_are_counted(request_log):
    """As part of the completion tokens."""
    with capture_logs() as logs, recorded(request_log) as record, record.routing.start_attempt("m", "n"):
        record.answer.usage = Usage(3, 10, None, 6)

    assert sample(request_log, f"cortex_reasoning_tokens_total{ROUTE}") == 6
    assert sample(request_log, f"cortex_completion_tokens_total{ROUTE}") == 10
    assert logs[0]["reasoning_tokens"] == 6


async def test_one_delta_has_no_speed(request_log):
    """There is no time between first and last token."""
    with recorded(request_log) as record, record.routing.start_attempt("m", "n"):
        record.answer.meter = (metered := MeteredStream()).meter
        metered.feed(DELTA + USAGE, 1.0)

    assert sample(request_log, f"cortex_tokens_per_second_count{ROUTE}") is None


async def test_usage_of_an_answer_without_stream_is_counted(request_log):
    """There are no deltas to measure."""
    with recorded(request_log) as record, record.routing.start_attempt("m", "n"):
        record.answer.usage = Usage(prompt_tokens=3, completion_tokens=0)

    assert sample(request_log, f"cortex_prompt_tokens_total{ROUTE}") == 3
    assert sample(request_log, f"cortex_completion_tokens_total{ROUTE}") == 0
    assert sample(request_log, f"cortex_cached_prompt_tokens_total{ROUTE}") is None


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InternalError("x"), None, "internal_error"),
        (UpstreamConnectionError("x"), None, "upstream_connection_error"),
        (None, 503, "upstream_5xx"),
        (None, 404, "upstream_4xx"),
    ],
)
async def test_errors_are_counted_by_a_closed_list_of_codes(request_log, error, status, code):
    """The gateway's codes, or the class of the neuron's status."""
    with recorded(request_log) as record, record.routing.start_attempt("m", "n"):
        if error is not None:
            record.failed(error)
        else:
            record.outcome, record.upstream_status = "upstream_error", status

    assert sample(request_log, f'cortex_request_errors_total{{code="{code}",model="m",node="n"}}') == 1


async def test_unknown_model_is_logged_but_is_no_label(request_log):
    """Labels are kept for ever, and clients can make up any number of names."""
    with capture_logs() as logs, recorded(request_log) as record:
        record.routing.model, record.routing.is_unknown_model = "made/up", True
        record.failed(ModelNotFound("x"))

    assert logs[0]["model"] == "made/up"
    assert "made/up" not in request_log.metrics.expose().decode()


async def test_disconnect_is_not_an_error(request_log):
    """It has a counter of its own."""
    with recorded(request_log) as record, record.routing.start_attempt("m", "n"):
        record.outcome = "client_disconnected"

    assert sample(request_log, f"cortex_client_disconnects_total{ROUTE}") == 1
    assert "cortex_request_errors_total" not in request_log.metrics.expose().decode()


async def test_request_of_a_removed_generation_is_counted_as_older(request_log):
    """A stream may take hours, while the catalogue changes again and again."""
    generations = (1, 1, *range(2, GENERATIONS_KEPT + 2), 1, 1)
    for generation in generations:
        with recorded(request_log) as record:
            record.routing.alias, record.routing.model, record.routing.generation = "a", "m", generation

    series = 'cortex_alias_target_requests_total{{alias="a",generation="{}",target="m"}}'
    assert sample(request_log, series.format(1)) is None
    assert sample(request_log, series.format("older")) == 2
    assert sample(request_log, 'cortex_alias_requests_total{alias="a",model="m"}') == len(generations)
