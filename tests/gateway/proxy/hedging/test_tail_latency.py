"""The purpose of hedging: the slowest hundredth of first tokens with one slow replica of two. In memory, exact."""

import random
from dataclasses import dataclass

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.world import a_sim, a_sim_model
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Alias, Catalogue, Hedge, Target
from neuron.simulated import faults

REQUESTS = 1000
BUDGET_PERCENT = 5.0


@dataclass
class Run:
    """One day of an alias."""

    first_tokens_s: list[float]
    upstream_requests: int
    orphans: int

    def quantile(self, share):
        return sorted(self.first_tokens_s)[round(share * len(self.first_tokens_s)) - 1]


async def a_day(nursery, hedge, *, stream):
    """The same clients at the same times; `b` takes twenty times as long as `a` for everything."""
    model = a_sim_model(SMALL, overhead_s=0.05, prefill_tok_s=1000.0, decode_tok_s=200.0)
    neurons = {name: a_sim(name, model, loaded=(SMALL,)) for name in "ab"}
    neurons["b"].faults.add(faults.Slow(factor=20))
    gateway = InMemoryGateway(nursery, neurons)
    gateway.request_log.log_requests = False
    alias = Alias("helexa/small", (Target(SMALL),), hedge=hedge)
    gateway.catalogue.current = Catalogue(1, {}, {alias.name: alias})
    drawn = random.Random(20261125)  # noqa: S311 - replayable, not secret
    first_tokens_s = []

    async def one(words, tokens):
        began = trio.current_time()
        question = [{"role": "user", "content": "word " * words}]
        answer = await gateway.client().ask(stream=stream, messages=question, max_tokens=tokens)
        assert answer.status == 200
        first_tokens_s.append(next(at for at, piece in answer.arrivals if not piece.startswith(b":")) - began)

    async with trio.open_nursery() as clients:
        for _ in range(REQUESTS):
            await trio.sleep(drawn.expovariate(1 / 6))
            clients.start_soon(one, drawn.randint(10, 200), drawn.randint(1, 6))
    await wait_all_tasks_blocked()
    await gateway.idle()
    await trio.sleep(60)
    counted = [neuron.counters for neuron in neurons.values()]
    asked = sum(counters["requests"] for counters in counted)
    ended = sum(counters["completed"] + counters["cancelled"] for counters in counted)
    return Run(first_tokens_s, asked, asked - ended)


@pytest.mark.parametrize("stream", [True, False])
async def test_hedging_halves_the_tail_at_under_five_percent_more_requests(autojump_clock, nursery, stream):
    """With one slow replica of two; afterwards no neuron still generates."""
    without = await a_day(nursery, None, stream=stream)
    hedged = await a_day(nursery, Hedge(None, BUDGET_PERCENT), stream=stream)

    assert without.upstream_requests == REQUESTS
    assert hedged.quantile(0.99) < without.quantile(0.99) / 2
    assert hedged.quantile(0.5) == pytest.approx(without.quantile(0.5), rel=0.02)
    assert REQUESTS < hedged.upstream_requests < REQUESTS * 1.05
    assert (without.orphans, hedged.orphans) == (0, 0)
