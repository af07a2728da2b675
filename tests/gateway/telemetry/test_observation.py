"""What observers learn of an alias's requests, and that other requests are not observed."""

import pytest
import structlog
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.recorded import recorded
from fakes.scripted import DONE, ROLE, answering, chunked, delta, with_length
from structlog.testing import capture_logs

from catalogue.models import Resolution
from gateway.errors import (
    BadRequest,
    DeadlineExceeded,
    ModelNotFound,
    NoRoom,
    Overloaded,
    ShuttingDown,
    UpstreamConnectionError,
)
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.observation import Observation
from gateway.telemetry.request_log import OBSERVERS_LIMIT, RequestLog

END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":21}}\n\n'
REFUSED = with_length(b'{"error":"no"}', status="422 Unprocessable")


@pytest.fixture
def request_log():
    yield RequestLog(Metrics(), log_requests=False)
    structlog.reset_defaults()


def finish(request_log, *, alias="a", headers=(), **outcome):
    """One request for the alias, resolved to `new`, that ends like this."""
    with recorded(request_log) as record:
        request_log.resolved(record, Resolution("new", alias), 1, list(headers))
        for name, value in outcome.items():
            setattr(record.routing if name == "model" else record, name, value)


async def test_stream_is_observed_at_its_end(nursery, autojump_clock):
    """First token, speed and finish reason as the client had them."""
    seen = []

    async def neuron(stream):
        await stream.receive_some(65536)
        await trio.sleep(2)
        await stream.send_all(chunked(ROLE, delta("a"), end=b""))
        await trio.sleep(4)
        body = delta("b") + END + DONE
        await stream.send_all(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        await trio.sleep_forever()

    gateway = InMemoryGateway(nursery, {"n": neuron})
    gateway.request_log.watch("helexa/small", seen.append)

    await gateway.client().ask(stream=True)
    await gateway.idle()

    assert seen == [
        Observation(
            "helexa/small",
            SMALL,
            failed=False,
            first_token_s=2.0,
            tokens_per_s=pytest.approx(21 / 4),
            finish_reason="stop",
        )
    ]
    nursery.cancel_scope.cancel()


async def test_refusal_of_the_neuron_is_a_failure_of_the_target(nursery, autojump_clock):
    """Another model might have accepted the request."""
    seen = []
    gateway = InMemoryGateway(nursery, {"n": answering(REFUSED, REFUSED)})
    gateway.request_log.watch("helexa/small", seen.append)

    await gateway.client().ask()

    assert [(each.failed, each.error) for each in seen] == [(True, "upstream 422")]
    nursery.cancel_scope.cancel()


async def test_only_the_watched_alias_is_observed(nursery, autojump_clock):
    """By the alias; a request for the model's own name does not count."""
    seen = []
    gateway = InMemoryGateway(nursery, {"n": answering(REFUSED, REFUSED, REFUSED)})
    gateway.request_log.watch("helexa/large", seen.append)

    await gateway.client().ask()
    await gateway.client().ask(model=SMALL)

    assert seen == []
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("outcome", "failed", "error"),
    [
        ({"outcome": "ok"}, False, None),
        ({"outcome": "ok", "model": "fallback"}, True, "fell back"),
        ({"outcome": "upstream_error", "upstream_status": 500}, True, "upstream 500"),
        ({"outcome": "error", "error": UpstreamConnectionError("x")}, True, "upstream_connection_error"),
        ({"outcome": "error", "error": DeadlineExceeded("x")}, True, "deadline_exceeded"),
        ({"outcome": "error", "error": NoRoom("x")}, True, "no_room"),
        ({"outcome": "error", "error": ModelNotFound("x")}, True, "model_not_found"),
        ({"outcome": "client_disconnected"}, None, None),
    ],
)
async def test_failures_that_count_against_the_target(request_log, outcome, failed, error):
    """Everything that another target might have done better."""
    seen = []
    request_log.watch("a", seen.append)

    finish(request_log, **outcome)

    assert [(each.target, each.failed, each.error) for each in seen] == [("new", failed, error)]


@pytest.mark.parametrize(
    "outcome",
    [
        {"outcome": "error", "error": BadRequest("x")},
        {"outcome": "error", "error": ShuttingDown("x")},
        {"outcome": "error", "error": Overloaded("x")},
        {"outcome": "cancelled"},
        {"outcome": "ok", "alias": None},
        {"outcome": "ok", "headers": [(b"x-stainless-retry-count", b"1")]},
    ],
)
async def test_requests_that_say_nothing_of_the_target(request_log, outcome):
    """A client's mistake, the gateway's own limits, and an SDK's retry, which goes to the same target."""
    seen = []
    request_log.watch("a", seen.append)

    finish(request_log, **outcome)

    assert seen == []


async def test_first_try_of_an_sdk_counts(request_log):
    """SDKs number every try, the first one as 0."""
    seen = []
    request_log.watch("a", seen.append)

    finish(request_log, outcome="ok", headers=[(b"x-stainless-retry-count", b"0")])

    assert len(seen) == 1


async def test_client_that_left_before_the_first_token_counts_as_waiting(request_log, autojump_clock):
    """The first token would have taken at least that long."""
    seen = []
    request_log.watch("a", seen.append)

    with recorded(request_log) as record:
        request_log.resolved(record, Resolution("new", "a"), 1, [])
        await trio.sleep(7)
        record.outcome = "client_disconnected"

    assert (seen[0].waited_s, seen[0].first_token_s) == (7, None)


async def test_unwatch_leaves_nothing_behind(request_log):
    """The alias is not observed any more."""
    seen = []
    request_log.watch("a", seen.append)
    request_log.unwatch("a", seen.append)
    request_log.unwatch("a", seen.append)

    finish(request_log, outcome="ok")

    assert seen == []
    assert not request_log.is_watched("a")


async def test_observer_that_raises_affects_nothing_else(request_log):
    """The request has its record, and the other observers are called."""
    seen = []
    request_log.watch("a", lambda _: 1 / 0)
    request_log.watch("a", seen.append)

    with capture_logs() as logs:
        finish(request_log, outcome="ok")

    assert [entry["event"] for entry in logs] == ["observer_failed"]
    assert len(seen) == 1
    assert request_log.live == {}


async def test_observers_are_bounded(request_log):
    """Each one costs every request of the alias a call."""
    for _ in range(OBSERVERS_LIMIT):
        request_log.watch("a", lambda _: None)

    with pytest.raises(RuntimeError, match="has 8 observers already"):
        request_log.watch("a", lambda _: None)
