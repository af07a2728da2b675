"""Shadower: a candidate gets the same request while its neuron is idle, and the client never notices."""

import json

import pytest
import trio
from fakes.in_memory import BODY, SMALL, InMemoryGateway
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Alias, Shadow, Target
from gateway.proxy.shadow.shadower import ShadowComparison, ShadowReport
from gateway.proxy.shadow.summary import summary
from gateway.proxy.shadow.transcript import AnswerSummary
from neuron.simulated.faults import Drop, Hang, HttpError
from neuron.simulated.fleet import neuron

LARGE = "Qwen/Qwen3.6-27B"
ALIAS = Alias("helexa/small", (Target(SMALL),), shadow=Shadow(LARGE, 100))


@pytest.fixture
async def gateway(nursery):
    """The small model on one neuron, the candidate on another; every request is shadowed."""
    neurons = {
        "benjy": neuron("benjy", [24576], [SMALL]),
        "beast": neuron("beast", [24576], [LARGE]),
    }
    made = InMemoryGateway(nursery, neurons, alias=ALIAS, loaded={"benjy": SMALL, "beast": LARGE})
    await nursery.start(made.shadows.run)
    return made


def results(gateway):
    return dict(gateway.shadows.report("helexa/small").results)


async def seconds_for(gateway, model):
    began = trio.current_time()
    assert (await gateway.client().ask(model=model)).status == 200
    return trio.current_time() - began


async def wait_for_result(gateway, result, times=1):
    while results(gateway).get(result, 0) < times:
        await trio.sleep(0.1)


async def wait_for_requests(neuron, times):
    while len(neuron.requests) < times:
        await trio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
async def test_candidate_gets_the_same_request_and_is_compared(gateway, stream, autojump_clock):
    """After the client has its answer, at no cost to it; both answers are measured, and are equal."""
    beast = gateway.neurons["beast"]
    asked_at = trio.current_time()
    answer = await gateway.client().ask(stream=stream)
    took_s = trio.current_time() - asked_at
    assert not beast.requests
    await wait_for_result(gateway, "compared")

    assert answer.status == 200
    assert took_s == pytest.approx(2.5, abs=0.2)
    sent = json.loads(beast.requests[0].body)
    assert sent == {**BODY, "stream": stream, "model": LARGE}
    figures = summary(gateway.shadows.report("helexa/small"))
    assert (figures["compared"], figures["same_answer"], figures["same_finish_reason"]) == (1, 1.0, 1.0)
    assert figures["shadow"]["duration_ms"]["median"] > 2 * figures["target"]["duration_ms"]["median"]
    assert figures["target"]["models"] == [SMALL]
    assert figures["verdict"].startswith(f"only 1 compared; {LARGE} takes 2.")
    await gateway.idle()


async def test_shadow_gives_way_to_a_request(gateway, autojump_clock):
    """A request to its neuron cancels the shadow at once, and is as fast as without one."""
    beast = gateway.neurons["beast"]
    alone_s = await seconds_for(gateway, LARGE)
    await gateway.client().ask()
    await wait_for_requests(beast, 2)

    assert await seconds_for(gateway, LARGE) == pytest.approx(alone_s, abs=0.01)
    assert results(gateway) == {"cancelled": 1}
    assert beast.counters["cancelled"] == 1
    await gateway.idle()


async def test_shadow_gives_way_to_a_load(gateway, autojump_clock):
    """A load at its neuron cancels the shadow; before that the fleet counts it as ours."""
    beast = gateway.neurons["beast"]
    await gateway.client().ask()
    await wait_for_requests(beast, 1)
    replica = gateway.fleet.nodes["beast"].models[LARGE]
    assert (replica.shadows, replica.leases) == (1, 0)

    gateway.fleet.loading("beast", "another/model")
    await wait_all_tasks_blocked()

    assert (replica.shadows, results(gateway)) == (0, {"cancelled": 1})
    assert beast.counters["cancelled"] == 1


async def test_shadow_is_not_sent_to_a_neuron_with_an_open_circuit_breaker(gateway, autojump_clock):
    """The breaker's probe is for a request; the shadow waits until it is closed, or gives up."""
    beast = gateway.neurons["beast"]
    for _ in range(20):
        gateway.fleet.nodes["beast"].breaker.failed(gateway.fleet.now(), "it breaks off")
    assert not gateway.fleet.nodes["beast"].breaker.closed
    await gateway.client().ask()
    await trio.sleep(120)

    assert not beast.requests
    assert "compared" not in results(gateway)


async def test_shadow_waits_until_its_neuron_is_idle(gateway, autojump_clock):
    """It is not started beside a request."""
    beast = gateway.neurons["beast"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gateway.client().ask(model=LARGE))
        await wait_for_requests(beast, 1)
        await gateway.client().ask()
        await wait_all_tasks_blocked()
        assert len(beast.requests) == 1
    await wait_for_result(gateway, "compared")

    assert len(beast.requests) == 2


async def test_shadow_that_never_finds_the_neuron_idle_gives_up(gateway, autojump_clock):
    """After a minute, without sending anything."""
    beast = gateway.neurons["beast"]
    beast.faults.add(Hang(times=1))
    with trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: gateway.client().ask(model=LARGE))
            await wait_for_requests(beast, 1)
            await gateway.client().ask()
            await wait_for_result(gateway, "busy")
            nursery.cancel_scope.cancel()

    assert results(gateway) == {"busy": 1}
    assert len(beast.requests) == 1


@pytest.mark.parametrize("fault", [HttpError(), Drop(after=2)])
async def test_candidate_that_fails_costs_the_client_nothing(gateway, fault, autojump_clock):
    """The failure is counted; it neither marks the neuron nor opens its breaker."""
    beast = gateway.neurons["beast"]
    beast.faults.add(fault)
    for _ in range(8):
        answer = await gateway.client().ask(stream=True)
        assert (answer.status, answer.events[-1]) == (200, "[DONE]")
    await wait_for_result(gateway, "failed", 8)

    assert gateway.fleet.nodes["beast"].misses == 0
    assert gateway.fleet.nodes["beast"].breaker.closed
    await gateway.idle()


async def test_candidate_that_is_loaded_nowhere_is_not_loaded_for_a_shadow(gateway, autojump_clock):
    """A shadow never causes a load."""
    gateway.fleet.dropped("beast", LARGE)
    await gateway.client().ask()
    await wait_all_tasks_blocked()

    assert results(gateway) == {"not_loaded": 1}


async def test_request_that_failed_gets_no_shadow(gateway, autojump_clock):
    """There is nothing to compare with."""
    gateway.neurons["benjy"].faults.add(HttpError(status=400))
    assert (await gateway.client().ask()).status == 400
    await wait_all_tasks_blocked()

    assert results(gateway) == {}
    assert not gateway.neurons["beast"].requests


async def test_request_of_a_client_that_disconnects_gets_no_shadow(gateway, autojump_clock):
    """Half an answer cannot be compared."""
    client = gateway.client()
    await client.send(stream=True)
    await client.head()
    await client.leave()
    await trio.sleep(20)

    assert results(gateway) == {}
    assert not gateway.neurons["beast"].requests


async def test_burst_is_shadowed_one_by_one_within_a_limit(gateway, autojump_clock):
    """At most sixteen wait; the others are dropped."""
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(lambda: gateway.client().ask())
    assert gateway.shadows._waiting == 16
    await trio.sleep(200)

    counted = results(gateway)
    assert sum(counted.values()) == 40
    assert counted["busy"] >= 40 - 16 - 1
    assert counted["compared"] >= 8
    assert gateway.neurons["beast"].counters["cancelled"] == 0
    await gateway.idle()


async def test_drain_ends_shadows_first(gateway, autojump_clock):
    """A drain does not wait for them."""
    await gateway.client().ask()
    await wait_for_requests(gateway.neurons["beast"], 1)
    gateway.shadows.stop()
    await wait_all_tasks_blocked()

    assert gateway.neurons["beast"].counters["cancelled"] == 1
    await gateway.client().ask()
    await gateway.idle()


async def test_share_of_requests_is_shadowed(nursery, autojump_clock):
    """By the percentage of the alias; a large body is not kept for a shadow."""
    draws = iter([0.04, 0.06, 0.049, 0.99, 0.0])
    alias = Alias("helexa/small", (Target(SMALL),), shadow=Shadow(LARGE, 5))
    gateway = InMemoryGateway(nursery, {"benjy": neuron("benjy", [24576], [SMALL])}, alias=alias)
    gateway.shadows._draw = lambda: next(draws)
    await nursery.start(gateway.shadows.run)
    for _ in range(4):
        await gateway.client().ask()
    await gateway.client().ask(padding="x" * 2**20)
    await wait_all_tasks_blocked()

    assert results(gateway) == {"not_loaded": 2, "too_large": 1}


def test_summary_counts_equal_answers_and_equal_finish_reasons():
    """Each is a share of its own."""

    def answer(digest, finish_reason, duration_ms=100.0):
        return AnswerSummary("m", "n", ok=True, first_token_ms=10.0, duration_ms=duration_ms, completion_tokens=9,
                    finish_reason=finish_reason, content_digest=digest, calls=0, calls_valid=None)  # fmt: skip

    pairs = [
        ShadowComparison("1", answer(b"a", "stop"), answer(b"a", "stop", 200.0)),
        ShadowComparison("2", answer(b"a", "stop"), answer(b"b", "stop", 200.0)),
        ShadowComparison("3", answer(b"a", "stop"), answer(b"b", "length", 200.0)),
        ShadowComparison("4", answer(b"a", "stop"), answer(b"c", "length", 200.0)),
    ]
    figures = summary(ShadowReport("x", LARGE, tuple(pairs), {"compared": 4, "failed": 2}))

    assert (figures["same_answer"], figures["same_finish_reason"]) == (0.25, 0.5)
    assert figures["shadow"]["finish_reasons"] == {"stop": 2, "length": 2}
    assert figures["verdict"] == (
        f"only 4 compared; {LARGE} takes 2.00 times as long (median), gives the same answer in 25%, failed 2 times"
    )
