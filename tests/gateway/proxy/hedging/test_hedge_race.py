"""One request before two neurons: whoever has a token first answers, and nothing is left of the other. In memory."""

import contextlib
import random

import pytest
import structlog
import trio
from fakes.forms import CONTENT_TYPE, a_file, a_form, a_part
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, ROLE, chunked, delta, read_request, with_length
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Alias, Catalogue, Hedge, Target
from gateway.config.settings import DeadlineSettings, RetrySettings, Settings
from gateway.errors import ServiceUnavailable
from gateway.fleet.reports import ModelReport
from gateway.proxy.attempt_failures import Retriable
from gateway.proxy.hedging.hedge_race import Race
from gateway.telemetry.explain import explain_requests
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.request_log import RequestLog
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

JSON = b'{"object":"chat.completion","model":"%b","choices":[]}'
MINE = ("x-request-id: mine",)
OTHER = "Qwen/Qwen3-8B"


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Loggers made while logs are captured must not outlive the capture."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def before(nursery):
    """Makes a gateway before these neurons, the first by name being asked first; its alias hedges after a second."""

    def make(hedge=Hedge(1.0, 100.0), *, attempts=0, deadlines=DeadlineSettings(), **neurons):  # noqa: B008 - frozen
        settings = Settings(retries=RetrySettings(attempts), deadlines=deadlines)
        gateway = InMemoryGateway(nursery, neurons, settings)
        alias = Alias("helexa/small", (Target(SMALL),), hedge=hedge)
        gateway.catalogue.current = Catalogue(1, {}, {alias.name: alias})
        return gateway

    return make


class Peer:
    """A neuron that says what it is told when it is told, and knows when it was asked and when it was left."""

    def __init__(self, *script):
        self.script = script
        self.asked_at = []
        self.left_at = None

    async def __call__(self, stream):
        await read_request(stream)
        self.asked_at.append(trio.current_time())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, stream, nursery.cancel_scope)
                if not await stream.receive_some():
                    self.left_at = trio.current_time()
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            self.left_at = trio.current_time()
        await stream.aclose()

    async def _tell(self, stream, scope):
        for when, what in self.script:
            await trio.sleep_until(when)
            if what is None:
                scope.cancel()
                return
            await stream.send_all(what)


def streaming(name, at, head_at=None):
    """A whole stream whose first token comes at a given time; head and role chunk may come sooner."""
    head = chunked(ROLE, end=b"")
    rest = chunked(delta(name), delta("!"), DONE).partition(b"\r\n\r\n")[2]
    return Peer((at if head_at is None else head_at, head), (at, rest))


def whole(name, at):
    return Peer((at, with_length(JSON % name.encode())))


def refusing(at, status="503 Service Unavailable", more=""):
    return Peer((at, with_length(b'{"error":"no"}', status=status, more=more)))


def hedges(gateway):
    """Each result with its count, and what was withheld."""
    lines = [line for line in gateway.metrics.expose().decode().splitlines() if line.startswith("cortex_hedges")]
    return {line.split('"')[-2]: int(float(line.rpartition(" ")[2])) for line in lines}


async def attempts(gateway):
    await wait_all_tasks_blocked()
    [story] = explain_requests("mine", gateway.request_log, None, trio.current_time())
    return [(one["node"], one["hedge"], one["result"], one["at_ms"], one["took_ms"]) for one in story["attempts"]]


# Who answers...


@pytest.mark.parametrize("stream", [True, False])
async def test_second_answers_if_it_has_a_token_first(autojump_clock, before, stream):
    """The first is left in that moment: its connection is closed, its lease back; one request is accounted for."""
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
async def test_first_answers_if_it_still_has_a_token_first(autojump_clock, before, stream):
    """Now the second is left."""
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
async def test_second_is_not_asked_if_the_first_is_in_time(autojump_clock, before, stream):
    """That is the normal case. What comes later than the first token does not matter."""
    a, b = (streaming if stream else whole)("a", 0.9), whole("b", 0)
    gateway = before(a=a, b=b)
    await gateway.client().ask(stream=stream)

    assert b.asked_at == []
    await gateway.idle()
    assert hedges(gateway) == {}


async def test_stream_that_has_begun_is_never_hedged(autojump_clock, before):
    """After the commit point there is one answer, however slow it gets."""
    first = chunked(delta("a"), end=b"")
    a, b = Peer((0.5, first), (100, chunked(DONE).partition(b"\r\n\r\n")[2])), whole("b", 0)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(stream=True)

    assert answer.events[-1] == "[DONE]"
    assert b.asked_at == []


@pytest.mark.parametrize("stream", [True, False])
async def test_two_tokens_in_one_moment_make_one_answer(autojump_clock, before, stream):
    """Whole, and from one of them."""
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
async def test_translated_answer_is_whole_from_one_neuron(autojump_clock, nursery, before, stream):
    """Each attempt has a translation of its own; the event stream begins and ends once."""
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


async def test_early_head_names_nobody_while_it_is_open_who_answers(autojump_clock, before):
    """Comments every second from the first neuron's head on; the model is known, the neuron not."""
    a, b = streaming("a", 60, head_at=0), streaming("b", 7.5, head_at=3.5)
    gateway = before(Hedge(3.0, 100.0), a=a, b=b)
    answer = await gateway.client().ask(stream=True)

    assert [at for at, piece in answer.arrivals if piece == b": keep-alive\n\n"] == [1, 2, 3, 4, 5, 6, 7]
    assert answer.headers["x-cortex-model"] == SMALL.lower()  # this client lowers all of a header
    assert "x-cortex-node" not in answer.headers
    assert answer.body.endswith(ROLE + delta("b") + delta("!") + DONE)
    await gateway.idle()


# When one of them fails...


@pytest.mark.parametrize("status", ["503 Service Unavailable", "500 Internal Server Error", "400 Bad Request"])
@pytest.mark.parametrize("failing", ["first", "second"])
async def test_one_that_fails_leaves_the_other_running(autojump_clock, before, failing, status):
    """Whatever it says, and although the other takes its time."""
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


async def test_connection_that_breaks_leaves_the_other_running(autojump_clock, before):
    """In its preamble, after its head."""
    a, b = Peer((0, chunked(ROLE, end=b"")), (1.5, None)), streaming("b", 5)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(stream=True)

    assert answer.events[-1] == "[DONE]"
    await gateway.idle()
    assert gateway.fleet.nodes["a"].misses == 1


async def test_first_byte_deadline_of_one_is_not_the_others(autojump_clock, before):
    """The second has as long as the first had, from when it was asked."""
    a, b = whole("a", 100), whole("b", 3.5)
    gateway = before(deadlines=DeadlineSettings(first_byte_seconds=3), a=a, b=b)
    answer = await gateway.client().ask()

    assert (answer.status, answer.body) == (200, JSON % b"b")
    assert (a.left_at, trio.current_time()) == (3, 3.5)
    await gateway.idle()


async def test_failure_before_the_second_is_asked_is_an_ordinary_one(autojump_clock, before):
    """The retry goes elsewhere at once, and is not hedged again."""
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
async def test_if_both_fail_the_client_hears_what_tells_it_more(
    autojump_clock, before, one, other, status, words, order
):
    """A neuron's own words, before that one broke off; what is wrong with the request before everything else."""

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
async def test_retries_are_the_requests_and_not_the_attempts(autojump_clock, before, retries, status):
    """Two failed: that is one retry, and it goes to a third. With none left, nobody else is asked."""
    c = whole("c", 0)
    gateway = before(attempts=retries, a=refusing(1.5), b=refusing(1.6), c=c)
    answer = await gateway.client().ask(headers=MINE)

    assert answer.status == status
    assert c.asked_at == ([1.6] if retries else [])
    await gateway.idle()
    assert [result for _, _, result, _, _ in await attempts(gateway)][:2] == ["failed", "failed"]


async def test_error_of_ours_in_one_of_them_is_a_500_and_leaves_nothing(autojump_clock, before, monkeypatch):
    """A bug is not a neuron's failure: it is logged, and the other does not go on in secret."""
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


# When it must not be...


@pytest.mark.parametrize("ends", ["answers", "fails"])
async def test_second_is_not_asked_in_the_moment_in_which_the_first_ends(autojump_clock, ends):
    """Whichever of the two tasks comes first in that moment: Trio shuffles them."""
    decided = []

    async def one():
        record = RequestLog(Metrics(), log_requests=False).open("id", "/")
        first = _Attempt(record.routing.start_attempt("m", "a"), fails=ends == "fails")

        def make_second():
            decided.append(first.ended)

        race = Race(record, 1.0, first, make_second=make_second, on_win=lambda _: None)
        with contextlib.suppress(Retriable):
            await race.run()

    for _ in range(40):
        await one()

    assert 0 < len(decided) < 40
    assert not any(decided)


class _Attempt:
    """An attempt that ends after a second."""

    claim = None

    def __init__(self, attempt_record, *, fails):
        self.attempt_record = attempt_record
        self.fails = fails
        self.ended = False

    async def run(self):
        await trio.sleep(1)
        self.ended = True
        if self.fails:
            raise Retriable(ServiceUnavailable("no"))
        self.claim(self)


async def test_budget_is_never_exceeded(autojump_clock, before):
    """At 25 % every fourth request has one; the others wait for the first, and it is counted what for."""
    gateway = before(Hedge(1.0, 25.0), a=Slowly(2), b=Slowly(2))
    for _ in range(12):
        await gateway.client().ask()

    await gateway.idle()
    assert hedges(gateway) == {"lost": 3, "budget": 9}


class Slowly:
    """A neuron that answers every request after so many seconds."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.asked = 0

    async def __call__(self, stream):
        try:
            while await read_request(stream):
                self.asked += 1
                await trio.sleep(self.seconds)
                await stream.send_all(with_length(JSON % b"x"))
        except trio.BrokenResourceError:
            await stream.aclose()


@pytest.mark.parametrize("trouble", ["busier", "breaker", "retry-after", "draining", "down", "not loaded", "full"])
async def test_replica_that_is_not_well_or_busier_is_spared(autojump_clock, before, trouble):
    """And nothing is loaded, nor anybody tried, for the sake of a hedge."""
    a, b = whole("a", 3), whole("b", 0)
    gateway = before(a=a, b=b)
    fleet, node = gateway.fleet, gateway.fleet.nodes["b"]

    async def later():
        await trio.sleep(0.5)
        match trouble:
            case "busier":
                node.models[SMALL].other_requests = 2
            case "breaker":
                for _ in range(5):
                    fleet.at_fault("b", "broke")
                await trio.sleep(0.4)
            case "retry-after":
                fleet.busy("b", SMALL, 60)
            case "draining":
                fleet.drain("b", draining=True)
            case "down":
                for _ in range(3):
                    fleet.missed("b", "gone")
            case "not loaded":
                fleet.dropped("b", SMALL)
            case "full":
                node.models[SMALL].other_requests = 0

    if trouble == "full":
        gateway.admission.max_concurrent = lambda _: 1
        taken = fleet.lease("b", SMALL)
        taken.__enter__()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        answer = await gateway.client().ask()
    if trouble == "full":
        taken.__exit__(None, None, None)

    assert (answer.status, b.asked_at) == (200, [])
    await gateway.idle()
    assert hedges(gateway) == {"replica": 1}


async def test_as_busy_is_not_busier(autojump_clock, before):
    """One request each: the second neuron may have the next one."""
    a, b = whole("a", 3), whole("b", 0)
    gateway = before(a=a, b=b)
    gateway.fleet.nodes["b"].models[SMALL].other_requests = 1
    answer = await gateway.client().ask()

    assert answer.headers["x-cortex-node"] == "b"


async def test_gateway_that_drains_asks_nobody_twice(autojump_clock, before):
    """It wants to end."""
    a, b = whole("a", 3), whole("b", 0)
    gateway = before(a=a, b=b)
    client = gateway.client()
    await client.send()
    await trio.sleep(0.5)
    gateway.inference.drain()

    assert (await client.answer()).body == JSON % b"a"
    assert b.asked_at == []


async def test_alias_that_says_nothing_of_it_is_not_hedged(autojump_clock, before):
    """It is asked for by name."""
    a, b = whole("a", 30), whole("b", 0)
    gateway = before(None, a=a, b=b)
    await gateway.client().ask()

    assert b.asked_at == []


async def test_form_is_not_asked_twice(autojump_clock, before):
    """It may be going out while it comes in: there is one of it."""
    a, b = whole("a", 30), whole("b", 0)
    gateway = before(a=a, b=b)
    form = a_form(a_part(b"model", b"helexa/small"), a_file(b"RIFF"))
    kind = f"content-type: {CONTENT_TYPE.decode()}"
    answer = await gateway.client().ask(form, "/v1/audio/transcriptions", headers=(kind,))

    assert (answer.status, b.asked_at) == (200, [])


async def test_request_that_waited_for_its_model_is_not_hedged(autojump_clock, before):
    """A model just loaded is slow with its first answer; nor does that count for the p95."""
    a, b = whole("a", 30), whole("b", 0)
    gateway = before(a=a, b=b)
    fleet = gateway.fleet
    for name in "ab":
        fleet.dropped(name, SMALL)
    fleet.loading("a", SMALL)

    async def load():
        await trio.sleep(2)
        for name in "ab":
            fleet.loaded(name, ModelReport(SMALL, "loaded", url=f"http://{name}:13131"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        answer = await gateway.client().ask()

    assert (answer.status, b.asked_at) == (200, [])
    assert gateway.hedge_policy._histories == {}


async def test_p95_is_learnt_and_then_acts(autojump_clock, before):
    """From the first tokens of this alias, whoever they came from: not before there are enough."""
    a, b = Slowly(0.5), Slowly(0.5)
    gateway = before(Hedge(None, 100.0), a=a, b=b)
    for _ in range(60):
        await gateway.client().ask()
    assert (a.asked, b.asked) == (60, 0)
    a.seconds = 10
    answer = await gateway.client().ask()

    assert answer.headers["x-cortex-node"] == "b"
    assert trio.current_time() == pytest.approx(60 * 0.5 + 0.5 + 0.001 + 0.5)
    await gateway.idle()
    assert hedges(gateway) == {"won": 1}


# When the request ends in the middle of it...


async def test_total_deadline_ends_both(autojump_clock, before):
    """At once."""
    a, b = whole("a", 30), whole("b", 30)
    gateway = before(a=a, b=b)
    answer = await gateway.client().ask(headers=("x-request-deadline-ms: 2500", *MINE))

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert (a.left_at, b.left_at) == (2.5, 2.5)
    await gateway.idle()
    assert hedges(gateway) == {"cancelled": 1}
    assert [result for _, _, result, _, _ in await attempts(gateway)] == ["cancelled", "cancelled"]


async def test_nobody_is_asked_beside_a_fallback(autojump_clock, nursery):
    """Its target has failed already: what stands in for it is not asked twice."""
    gone, a, b = refusing(0.5), whole("a", 10), whole("b", 10)
    settings = Settings(retries=RetrySettings(0))
    held = {"a": OTHER, "b": OTHER}
    gateway = InMemoryGateway(nursery, {"gone": gone, "a": a, "b": b}, settings, loaded=held)
    alias = Alias("helexa/small", (Target(SMALL),), fallback=(OTHER,), hedge=Hedge(1.0, 100.0))
    gateway.catalogue.current = Catalogue(1, {}, {alias.name: alias})
    answer = await gateway.client().ask(headers=MINE)

    assert (answer.status, answer.headers["x-cortex-model"]) == (200, OTHER.lower())
    assert (len(gone.asked_at), len(a.asked_at), len(b.asked_at)) == (1, 1, 0)
    assert hedges(gateway) == {}
    await gateway.idle()


async def test_alias_deadline_counts_if_it_is_the_smaller(autojump_clock, before):
    """Of the client's and its own."""
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


async def test_client_that_leaves_frees_both(autojump_clock, before):
    """In that moment."""
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
async def test_operator_that_ends_it_ends_both(autojump_clock, before, moment):
    """Before the second is asked, in the very moment, and after."""
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


async def test_2000_random_cancels_in_the_middle_of_hedges_leave_nothing_behind(autojump_clock, before):
    """Gauges and leases are 0, no neuron works for nobody, and the pool holds no broken connection."""
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
