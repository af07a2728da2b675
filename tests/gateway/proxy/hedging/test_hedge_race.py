"""One request, two neurons: the first token wins, and nothing is left of the other attempt. In memory."""

import random

import pytest
import trio
from fakes.hedged_neurons import JSON, Peer, attempts, hedges, whole
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, ROLE, chunked, delta, with_length
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Alias, Catalogue, Hedge, Target
from gateway.config.settings import DeadlineSettings, RetrySettings, Settings
from gateway.errors import ServiceUnavailable
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

pytestmark = pytest.mark.usefixtures("fresh_loggers")
MINE = ("x-request-id: mine",)
OTHER = "Qwen/Qwen3-8B"


def streaming(name, at, head_at=None):
    """A complete stream with its first token at a given time; head and role chunk may come sooner."""
    head = chunked(ROLE, end=b"")
    rest = chunked(delta(name), delta("!"), DONE).partition(b"\r\n\r\n")[2]
    return Peer((at if head_at is None else head_at, head), (at, rest))


def refusing(at, status="503 Service Unavailable", more=""):
    return Peer((at, with_length(b'{"error":"no"}', status=status, more=more)))


# Which attempt answers...


@pytest.mark.parametrize("stream", [True, False])
async def test_second_attempt_wins_with_the_earlier_token(autojump_clock, before, stream):
    """The first is cancelled at that moment: connection closed, lease returned, one request in the log."""
    kind = streaming if stream else whole
    a, b = kind("a", 10), kind("b", 1.5)
    gateway = before(a=a, b=b)
    with capture_logs() as logs:
        answer = await gateway.client().ask(stream=stream, headers=MINE)
        await gateway.idle()

    assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
    assert answer.arrivals[0][0] == 1.5
    assert answer.body == (ROLE + delta("b") + delta("!") + DONE if stream else JSON % b"b")
    assert (a.asked_at, a.left_at) == ([0], 1.5)
    assert (b.asked_at, b.left_at) == ([1], None)
    assert hedges(gateway) == {"won": 1}
    assert await attempts(gateway) == [("a", False, "lost", 0, 1500), ("b", True, "answered", 1000, 500)]
    [event] = [entry for entry in logs if entry["event"] == "request"]
    assert (event["node"], event["outcome"], event["hedge"]) == ("b", "ok", "won")
    assert event["phases_ms"] == {"connect": 0, "first_byte": 1500, "idle": 0}
    assert "retries" not in event
    assert gateway.upstream.statistics()["idle"] == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_first_attempt_wins_with_the_earlier_token(autojump_clock, before, stream):
    """The second is cancelled."""
    kind = streaming if stream else whole
    a, b = kind("a", 1.5), kind("b", 10)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(stream=stream, headers=MINE)

    assert answer.headers["x-cortex-node"] == "a"
    assert answer.body == (ROLE + delta("a") + delta("!") + DONE if stream else JSON % b"a")
    assert (a.left_at, b.asked_at, b.left_at) == (None, [1], 1.5)
    await gateway.idle()
    assert hedges(gateway) == {"lost": 1}
    assert await attempts(gateway) == [("a", False, "answered", 0, 1500), ("b", True, "lost", 1000, 500)]


@pytest.mark.parametrize("stream", [True, False])
async def test_no_hedge_if_the_first_token_is_in_time(autojump_clock, before, stream):
    """The normal case; later tokens may take their time."""
    a, b = (streaming if stream else whole)("a", 0.9), whole("b", 0)
    gateway = before(a=a, b=b)
    await gateway.client().ask(stream=stream)

    assert b.asked_at == []
    await gateway.idle()
    assert hedges(gateway) == {}


async def test_stream_that_has_begun_is_never_hedged(autojump_clock, before):
    """After the commit point there is one answer, however slow."""
    first = chunked(delta("a"), end=b"")
    a, b = Peer((0.5, first), (100, chunked(DONE).partition(b"\r\n\r\n")[2])), whole("b", 0)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(stream=True)

    assert answer.events[-1] == "[DONE]"
    assert b.asked_at == []


@pytest.mark.parametrize("stream", [True, False])
async def test_two_tokens_at_the_same_moment_make_one_answer(autojump_clock, before, stream):
    """A complete one, from one neuron."""
    kind = streaming if stream else whole
    a, b = kind("a", 2), kind("b", 2)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(stream=stream)
    node = answer.headers["x-cortex-node"].encode()

    assert answer.body == (ROLE + delta(node.decode()) + delta("!") + DONE if stream else JSON % node)
    assert (a.left_at, b.left_at) != (2, 2)  # a whole answer may have come from both: then no connection is lost
    await gateway.idle()
    assert sum(hedges(gateway).values()) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_translated_answer_comes_complete_from_one_neuron(autojump_clock, nursery, before, stream):
    """Each attempt has its own translation; the stream begins and ends once."""
    neurons = {"a": neuron("a", [24576], [SMALL]), "b": neuron("b", [24576], [SMALL])}
    neurons["a"].faults.add(faults.SilentPrefill(seconds=60))
    gateway = before(Hedge(0.5, 100.0), **neurons)
    answer = await gateway.client().ask(path="/v1/messages", stream=stream, max_tokens=200)

    if not stream:
        assert b"Tbilisi" in answer.body
    else:
        assert answer.body.count(b"event: message_start\n") == answer.body.count(b"event: message_stop\n") == 1
    await gateway.idle()
    assert hedges(gateway) == {"won": 1}
    assert [gone.phase for gone in neurons["a"].cancelled] == ["prefill"]


async def test_early_head_names_no_neuron_during_the_race(autojump_clock, before):
    """Keep-alives every second from the first neuron's head on; the model is named, the neuron is not."""
    a, b = streaming("a", 60, head_at=0), streaming("b", 7.5, head_at=3.5)
    gateway = before(Hedge(3.0, 100.0), a=a, b=b)
    answer = await gateway.client().ask(stream=True)

    assert [at for at, piece in answer.arrivals if piece == b": keep-alive\n\n"] == [1, 2, 3, 4, 5, 6, 7]
    assert answer.headers["x-cortex-model"] == SMALL.lower()  # this client lowers all of a header
    assert "x-cortex-node" not in answer.headers
    assert answer.body.endswith(ROLE + delta("b") + delta("!") + DONE)
    await gateway.idle()


# When an attempt fails...


@pytest.mark.parametrize("status", ["503 Service Unavailable", "500 Internal Server Error", "400 Bad Request"])
@pytest.mark.parametrize("failing", ["first", "second"])
async def test_failure_of_one_attempt_leaves_the_other_running(autojump_clock, before, failing, status):
    """For every error status, even if the other takes longer."""
    bad, good = refusing(1.5, status), whole("good", 5)
    a, b = (bad, good) if failing == "first" else (good, bad)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(headers=MINE)

    assert (answer.status, answer.body) == (200, JSON % b"good")
    assert answer.headers["x-cortex-node"] == ("b" if failing == "first" else "a")
    await gateway.idle()
    assert hedges(gateway) == {"won" if failing == "first" else "failed": 1}
    results = [result for _, _, result, _, _ in await attempts(gateway)]
    assert results.count("answered") == 1
    assert sorted(results)[1] == ("refused" if status.startswith("400") else "failed")


async def test_broken_connection_of_one_attempt_leaves_the_other_running(autojump_clock, before):
    """After its head, in its preamble."""
    a, b = Peer((0, chunked(ROLE, end=b"")), (1.5, None)), streaming("b", 5)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(stream=True)

    assert answer.events[-1] == "[DONE]"
    await gateway.idle()
    assert gateway.fleet.nodes["a"].misses == 0, "the neuron accepted the connection: only the model failed there"
    assert gateway.fleet.nodes["a"].failing_models == {SMALL}


async def test_each_attempt_has_its_own_first_byte_deadline(autojump_clock, before):
    """The second attempt has as long as the first, counted from its own start."""
    a, b = whole("a", 100), whole("b", 3.5)
    gateway = before(deadlines=DeadlineSettings(first_byte_seconds=3), a=a, b=b)
    answer = await gateway.client().ask()

    assert (answer.status, answer.body) == (200, JSON % b"b")
    assert (a.left_at, trio.current_time()) == (3, 3.5)
    await gateway.idle()


async def test_failure_before_the_hedge_is_retried_normally(autojump_clock, before):
    """The retry goes to another replica at once, and is not hedged."""
    a, b = refusing(0.5), whole("b", 5)
    gateway = before(attempts=1, a=a, b=b, c=whole("c", 0))
    answer = await gateway.client().ask()

    assert answer.headers["x-cortex-node"] == "b"
    assert b.asked_at == [0.5]
    await gateway.idle()
    assert hedges(gateway) == {}


@pytest.mark.parametrize("order", ["first fails first", "second fails first"])
@pytest.mark.parametrize(
    ("one", "other", "status", "words"),
    [
        (None, "503 Service Unavailable", 503, "no"),
        ("429 Too Many Requests", None, 429, "no"),
        (None, "400 Bad Request", 400, "no"),
        ("503 Service Unavailable", "400 Bad Request", 400, "no"),
        ("404 Not Found", "500 Internal Server Error", 500, "no"),
        (None, None, 502, "without sending a response"),
    ],
)
async def test_if_both_fail_the_client_gets_the_more_useful_error(
    autojump_clock, before, one, other, status, words, order
):
    """A neuron's error response before a broken connection; a rejected request before everything else."""

    def failing(what, at):
        if what is None:
            return Peer((at, None))
        body = b'{"error":"model \'x\' not loaded"}' if what.startswith("404") else b'{"error":"no"}'
        return Peer((at, with_length(body, status=what, more="retry-after: 7\r\n")))

    times = (1.5, 2) if order == "first fails first" else (2, 1.5)
    gateway = before(a=failing(one, times[0]), b=failing(other, times[1]))
    answer = await gateway.client().ask()

    assert answer.status == status
    assert words in answer.error["message"]
    assert trio.current_time() == 2
    await gateway.idle()
    assert hedges(gateway) == {"failed": 1}


@pytest.mark.parametrize(("retries", "status"), [(1, 200), (0, 503)])
async def test_two_failed_attempts_of_a_race_are_one_retry(autojump_clock, before, retries, status):
    """It goes to a third replica; without retries left, no other replica is asked."""
    c = whole("c", 0)
    gateway = before(attempts=retries, a=refusing(1.5), b=refusing(1.6), c=c)
    answer = await gateway.client().ask(headers=MINE)

    assert answer.status == status
    assert c.asked_at == ([1.6] if retries else [])
    await gateway.idle()
    assert [result for _, _, result, _, _ in await attempts(gateway)][:2] == ["failed", "failed"]


async def test_internal_error_in_one_attempt_is_a_500_and_ends_both(autojump_clock, before, monkeypatch):
    """A bug is not a neuron's failure: it is logged."""
    a, b = whole("a", 10), whole("b", 10)
    gateway = before(a=a, b=b)
    exchange = gateway.upstream.exchange

    def broken(origin, *more):
        if origin.host == "b":
            raise RuntimeError("a bug")
        return exchange(origin, *more)

    monkeypatch.setattr(gateway.upstream, "exchange", broken)
    with capture_logs() as logs:
        answer = await gateway.client().ask()
        await gateway.idle()

    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert (a.left_at, trio.current_time()) == (1, 1)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["internal_error"]


# When the request ends during the race...


async def test_total_deadline_ends_both_attempts(autojump_clock, before):
    """At once."""
    a, b = whole("a", 30), whole("b", 30)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(headers=("x-request-deadline-ms: 2500", *MINE))

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert (a.left_at, b.left_at) == (2.5, 2.5)
    await gateway.idle()
    assert hedges(gateway) == {"cancelled": 1}
    assert [result for _, _, result, _, _ in await attempts(gateway)] == ["cancelled", "cancelled"]


async def test_no_hedge_for_a_fallback(autojump_clock, nursery):
    """The target has failed already."""
    gone, a, b = refusing(0.5), whole("a", 10), whole("b", 10)
    settings = Settings(retries=RetrySettings(0))
    models = {"a": OTHER, "b": OTHER}
    gateway = InMemoryGateway(nursery, {"gone": gone, "a": a, "b": b}, settings, loaded=models)
    alias = Alias("helexa/small", (Target(SMALL),), fallback=(OTHER,), hedge=Hedge(1.0, 100.0))
    gateway.catalogue.current = Catalogue(1, {}, {alias.name: alias})
    answer = await gateway.client().ask(headers=MINE)

    assert (answer.status, answer.headers["x-cortex-model"]) == (200, OTHER.lower())
    assert (len(gone.asked_at), len(a.asked_at), len(b.asked_at)) == (1, 1, 0)
    assert hedges(gateway) == {}
    await gateway.idle()


async def test_shorter_of_client_and_alias_deadline_counts(autojump_clock, before):
    """Whichever is shorter."""
    a = whole("a", 30)
    gateway = before(None, a=a)
    alias = Alias("helexa/small", (Target(SMALL),), deadline_seconds=2)
    gateway.catalogue.current = Catalogue(1, {}, {alias.name: alias})
    for asked, began in ((("x-request-deadline-ms: 2500",), 0), ((), 2)):
        answer = await gateway.client().ask(headers=asked)
        assert "the 2 s that the alias helexa/small allows in total" in answer.error["message"]
        assert trio.current_time() == began + 2
    answer = await gateway.client().ask(headers=("x-request-deadline-ms: 1500",))
    assert "the 1.5 s that x-request-deadline-ms allows" in answer.error["message"]
    assert trio.current_time() == 5.5


async def test_disconnect_ends_both_attempts(autojump_clock, before):
    """At that moment."""
    a, b = streaming("a", 30), streaming("b", 30)
    gateway = before(a=a, b=b)
    client = gateway.client()
    await client.send(stream=True)
    await trio.sleep(2)
    await client.leave()
    await wait_all_tasks_blocked()

    assert (a.left_at, b.left_at) == (2, 2)
    await gateway.idle()


@pytest.mark.parametrize("moment", [0.5, 1.0, 1.5])
async def test_operators_cancel_ends_both_attempts(autojump_clock, before, moment):
    """Before the second starts, at that very moment, and after."""
    a, b = whole("a", 30), whole("b", 30)
    gateway = before(a=a, b=b)
    client = gateway.client()
    await client.send()
    await trio.sleep(moment)
    gateway.inference.cut(ServiceUnavailable("cancelled by an operator"))
    answer = await client.answer()

    assert (answer.status, answer.error["message"]) == (503, "cancelled by an operator")
    assert trio.current_time() == moment
    await wait_all_tasks_blocked()
    assert a.left_at == moment
    assert b.left_at == (moment if b.asked_at else None)
    await gateway.idle()


async def test_2000_random_disconnects_during_hedges_leave_nothing_behind(autojump_clock, before):
    """Gauges and leases are 0, no neuron still works, and the pool holds no broken connection."""
    moments = random.Random(20261126)  # noqa: S311 - replayable, not secret
    neurons = {name: neuron(name, [24576], [SMALL]) for name in "abc"}
    for each in neurons.values():
        each.faults.add(faults.HttpError(status=503, times=40))
    neurons["a"].faults.add(faults.Slow(factor=3))
    gateway = before(Hedge(0.4, 100.0), attempts=1, **neurons)
    gateway.request_log.log_requests = False
    left = finished = 0

    async def one(stream, begin_s, patience_s):
        nonlocal left, finished
        await trio.sleep(begin_s)
        client = gateway.client()
        with trio.move_on_after(patience_s):
            await client.ask(stream=stream, max_tokens=moments.randint(1, 8))
            finished += 1
            return
        left += 1
        await client.leave()

    for _ in range(100):
        async with trio.open_nursery() as clients:
            for _ in range(20):
                begin_s, patience_s = moments.uniform(0, 20), moments.uniform(0, 6)
                clients.start_soon(one, moments.random() < 0.6, begin_s, patience_s)
    await wait_all_tasks_blocked()

    assert left + finished == 2000
    assert min(left, finished) > 200
    ended = hedges(gateway)
    assert ended["won"] > 20
    assert ended["lost"] > 20
    assert ended["cancelled"] > 200
    await gateway.idle()
    assert [each.violations for each in neurons.values()] == [[], [], []]
    assert all(connection.is_quiet() for resting in gateway.upstream._idle.values() for connection in resting)
    await trio.sleep(60)
    for each in neurons.values():
        assert each.counters["requests"] == each.counters["completed"] + each.counters["cancelled"] + 40
    assert (await gateway.client().ask()).status == 200
