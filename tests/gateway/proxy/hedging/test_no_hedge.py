"""When a request gets no second attempt: budget, unhealthy replicas, forms, drain. In memory."""

import contextlib

import pytest
import trio
from fakes.forms import CONTENT_TYPE, a_file, a_form, a_part
from fakes.hedged_neurons import JSON, hedges, whole
from fakes.in_memory import SMALL
from fakes.scripted import read_request, with_length

from catalogue.models import Hedge
from gateway.errors import ServiceUnavailable
from gateway.fleet.reports import ModelReport
from gateway.proxy.attempt_failures import Retriable
from gateway.proxy.hedging.hedge_race import Race
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.request_log import RequestLog

pytestmark = pytest.mark.usefixtures("fresh_loggers")


# When there is no hedge...


@pytest.mark.parametrize("ends", ["answers", "fails"])
async def test_no_hedge_at_the_moment_the_first_attempt_ends(autojump_clock, ends):
    """Whichever task runs first at that moment: Trio shuffles them."""
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


async def test_hedges_stay_within_the_budget(autojump_clock, before):
    """At 25 % every fourth request is hedged; the others are counted as withheld."""
    gateway = before(Hedge(1.0, 25.0), a=Slowly(2), b=Slowly(2))
    for _ in range(12):
        await gateway.client().ask()

    await gateway.idle()
    assert hedges(gateway) == {"lost": 3, "budget": 9}


class Slowly:
    """A neuron that answers every request after this many seconds."""

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
async def test_no_hedge_to_an_unhealthy_or_busier_replica(autojump_clock, before, trouble):
    """A hedge never causes a load, nor the trial request of a circuit breaker."""
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
                    fleet.at_fault("b", SMALL, "broke")
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


async def test_replica_that_is_as_busy_can_be_hedged_to(autojump_clock, before):
    """One request each."""
    a, b = whole("a", 3), whole("b", 0)
    gateway = before(a=a, b=b)
    gateway.fleet.nodes["b"].models[SMALL].other_requests = 1
    answer = await gateway.client().ask()

    assert answer.headers["x-cortex-node"] == "b"


async def test_no_hedge_while_the_gateway_drains(autojump_clock, before):
    """It sends nothing new."""
    a, b = whole("a", 3), whole("b", 0)
    gateway = before(a=a, b=b)
    client = gateway.client()
    await client.send()
    await trio.sleep(0.5)
    gateway.inference.drain()

    assert (await client.answer()).body == JSON % b"a"
    assert b.asked_at == []


async def test_no_hedge_for_an_alias_without_hedge(autojump_clock, before):
    """Hedging is configured by alias."""
    a, b = whole("a", 30), whole("b", 0)
    gateway = before(None, a=a, b=b)
    await gateway.client().ask()

    assert b.asked_at == []


async def test_no_hedge_for_a_form(autojump_clock, before):
    """It may be sent while it arrives, so it can be sent only once."""
    a, b = whole("a", 30), whole("b", 0)
    gateway = before(a=a, b=b)
    form = a_form(a_part(b"model", b"helexa/small"), a_file(b"RIFF"))
    kind = f"content-type: {CONTENT_TYPE.decode()}"
    answer = await gateway.client().ask(form, "/v1/audio/transcriptions", headers=(kind,))

    assert (answer.status, b.asked_at) == (200, [])


async def test_no_hedge_for_a_request_that_waited_for_a_load(autojump_clock, before):
    """A model just loaded is slow with its first answer; that does not count for the p95 either."""
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


async def test_hedge_uses_the_p95_once_there_are_enough_samples(autojump_clock, before):
    """Of the first tokens of this alias, from every neuron."""
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
