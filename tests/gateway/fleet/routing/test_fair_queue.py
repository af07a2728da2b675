"""How keys share the slots of a full model: by priority and weight, whatever one of them sends. In own time."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
import trio
from fakes.fleets import a_catalogue, a_fleet, a_model, a_profile, answers, assert_idle
from trio.testing import wait_all_tasks_blocked

from gateway.access.keys.key import Key
from gateway.errors import Overloaded
from gateway.fleet.route import Route
from gateway.fleet.routing.queue import AdmissionQueues

M = "lab/m"


def a_key(name, weight=100, priority="interactive"):
    return Key(id=name, name=name, weight=weight, priority=priority)


class _Catalogue:
    def __init__(self, slots):
        self.current = a_catalogue(a_profile(M, max_concurrent=slots))


@dataclass
class SharedModel:
    """One node with some slots for a model. It notes each admission, and the slot-seconds of each key."""

    slots: int = 1
    limit: int = 1000
    diary: list[tuple[str, float]] = field(default_factory=list)
    used_s: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self):
        self.fleet = a_fleet("a", clock=trio.current_time)
        answers(self.fleet, "a", a_model(M))
        self.catalogue = _Catalogue(self.slots)
        self.admission = AdmissionQueues(self.fleet, catalogue=self.catalogue, limit=self.limit)

    async def request(self, key, work_s=1.0):
        """As dispatch serves it."""
        ticket = self.admission.ticket(M, trio.current_time(), key)
        decision = ticket.choose(self.catalogue.current)
        try:
            if not isinstance(decision, Route):
                with ticket:
                    while not isinstance(decision, Route):
                        await ticket.wait_for_slot()
                        decision = ticket.choose(self.catalogue.current)
        except Overloaded as error:
            self.refused["" if key is None else key.id] += 1
            return error
        began = trio.current_time()
        try:
            with self.fleet.lease(decision.node, M):
                self.diary.append(("" if key is None else key.id, began))
                await trio.sleep(work_s)
        finally:
            self.used_s["" if key is None else key.id] += trio.current_time() - began
            ticket.end_slot()
        return None

    async def keep_asking(self, key, work_s=1.0):
        """One request after another."""
        while True:
            await self.request(key, work_s)

    @property
    def order(self):
        return [key_id for key_id, _ in self.diary]


async def flood(shared, *loads, until_s):
    """Each of `loads` is a key, how many requests it keeps waiting, and how long each uses a slot."""
    with trio.move_on_after(until_s):
        async with trio.open_nursery() as nursery:
            for key, count, work_s in loads:
                for _ in range(count):
                    nursery.start_soon(shared.keep_asking, key, work_s)
    assert_idle(shared.fleet)
    assert shared.admission.views() == []
    assert shared.admission.waiting == 0


# Weights ..............................................................................................................


@pytest.mark.parametrize("slots", [1, 4])
async def test_shares_converge_to_the_weights(slots, autojump_clock):
    """1 : 2 : 5, though the lightest key waits with most requests."""
    shared = SharedModel(slots)
    keys = a_key("light", 100), a_key("middle", 200), a_key("heavy", 500)
    await flood(shared, (keys[0], 24, 1.0), (keys[1], 10, 1.0), (keys[2], 8, 1.0), until_s=100)
    total = sum(shared.used_s.values())
    assert total == pytest.approx(100 * slots)
    assert {name: used / total for name, used in shared.used_s.items()} == pytest.approx(
        {"light": 1 / 8, "middle": 2 / 8, "heavy": 5 / 8}, abs=0.03
    )


async def test_slot_time_is_shared_not_the_number_of_requests(autojump_clock):
    """Requests of one key take 20 times as long; equal weights give both keys the same slot time."""
    shared = SharedModel(4)
    await flood(shared, (a_key("long"), 6, 10.0), (a_key("short"), 6, 1.0), until_s=400)
    assert shared.used_s["long"] / 1600 == pytest.approx(0.5, abs=0.04)
    assert Counter(shared.order)["short"] > 8 * Counter(shared.order)["long"]


async def test_flood_of_one_key_does_not_delay_another_beyond_its_share(autojump_clock):
    """With 499 requests of another key before it, a request gets the next slot but one, and then every other."""
    shared = SharedModel()
    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(shared.request, a_key("flood"))
        await wait_all_tasks_blocked()
        await trio.sleep(0.5)
        for number in range(3):
            nursery.start_soon(shared.request, a_key("calm"))
            await wait_all_tasks_blocked()
            assert shared.admission.views()[0].waiting_for_slot == 500 + number
            assert max(ticket.position for ticket in _tickets(shared) if ticket.key.id == "calm") == 2 * number + 2
        await trio.sleep(8)
        nursery.cancel_scope.cancel()
    assert shared.order[:8] == ["flood", "flood", "calm", "flood", "calm", "flood", "calm", "flood"]


def _tickets(shared):
    (queue,) = shared.admission._queues.values()
    return list(queue)


async def test_one_request_at_a_time_gains_nothing(autojump_clock):
    """A key that joins again after each answer is charged for what it had."""
    shared = SharedModel()
    await flood(shared, (a_key("one by one", 100), 2, 1.0), (a_key("flood", 300), 20, 1.0), until_s=200)
    assert shared.used_s["one by one"] == pytest.approx(50, abs=3)


async def test_time_without_requests_is_no_credit(autojump_clock):
    """A key that comes after 20 s of others' requests shares from then on; it does not catch up."""
    shared = SharedModel()
    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(shared.request, a_key("early"))
        await trio.sleep(20.5)
        for _ in range(20):
            nursery.start_soon(shared.request, a_key("late"))
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert Counter(shared.order[21:])["late"] == pytest.approx(10, abs=1)


async def test_requests_without_a_key_are_one_flow(autojump_clock):
    """First come, first served, and together one share beside a key."""
    shared = SharedModel()
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(shared.request, None if number < 4 else a_key("k"))
            await wait_all_tasks_blocked()
    assert shared.order == ["", "", "k", "", "k", ""]


# Priority .............................................................................................................


async def test_interactive_goes_before_batch_but_every_tenth_slot_is_for_batch(autojump_clock):
    """Whatever the weights are."""
    shared = SharedModel()
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(shared.request, a_key("batch", 10_000, "batch"))
        await wait_all_tasks_blocked()  # one of them has the slot
        for _ in range(60):
            nursery.start_soon(shared.request, a_key("chat", 1))
        await trio.sleep(40.5)
        nursery.cancel_scope.cancel()
    assert shared.order[1:41] == (["chat"] * 9 + ["batch"]) * 4


async def test_batch_shares_its_turns_by_weight_and_gets_all_slots_when_nothing_else_waits(autojump_clock):
    """Batch keys among themselves are like interactive ones."""
    shared = SharedModel()
    keys = a_key("light", 100, "batch"), a_key("heavy", 300, "batch")
    await flood(shared, (keys[0], 9, 1.0), (keys[1], 9, 1.0), until_s=100)
    assert shared.used_s["heavy"] == pytest.approx(75, abs=2)
    assert sum(shared.used_s.values()) == pytest.approx(100)


async def test_expected_order_is_the_order_of_admissions(autojump_clock):
    """The position that a request is shown is true if none joins and none leaves."""
    rng = random.Random(13)  # noqa: S311 - replayable, not secret
    shared = SharedModel()
    keys = [a_key(f"i{n}", weight) for n, weight in enumerate((97, 211, 331))] + [
        a_key(f"b{n}", 100, "batch") for n in range(2)
    ]
    async with trio.open_nursery() as nursery:
        for _ in range(120):
            nursery.start_soon(shared.request, rng.choice(keys))
            await wait_all_tasks_blocked()
        expected = sorted((ticket.position, ticket.key.id) for ticket in _tickets(shared))
    assert list(enumerate(shared.order[1:], start=1)) == expected


# Leaving without a trace ..............................................................................................


async def test_cancelled_requests_leave_no_trace(autojump_clock):
    """A key whose 200 waiting requests were cancelled is served as if they had never come."""
    orders = []
    for cancelled in (0, 200):
        shared = SharedModel()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(shared.request, a_key("other"))
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as leaving:
                for _ in range(cancelled):
                    leaving.start_soon(shared.request, a_key("k"))
                await trio.sleep(0.5)
                assert shared.admission.waiting == 3 + cancelled
                leaving.cancel_scope.cancel()
            assert shared.admission.waiting == 3
            for _ in range(4):
                nursery.start_soon(shared.request, a_key("k"))
            await wait_all_tasks_blocked()
        assert shared.admission.views() == []
        assert shared.admission.room._backlogs == {}
        orders.append([(key_id, at - start) for key_id, at in shared.diary])
    assert orders[0] == orders[1]


async def test_slot_offered_to_a_request_that_is_cancelled_goes_to_the_next_key(autojump_clock):
    """In the same instant."""
    shared = SharedModel()
    scope = trio.CancelScope()

    async def leaves():
        with scope:
            await shared.request(a_key("leaves"))

    async with trio.open_nursery() as nursery:
        with shared.fleet.lease("a", M):
            nursery.start_soon(leaves)
            await wait_all_tasks_blocked()
            nursery.start_soon(shared.request, a_key("next"))
            await trio.sleep(0.3)
        scope.cancel()
    assert shared.diary == [("next", 0.3)]


# A full queue .........................................................................................................


async def test_flood_that_fills_the_queue_does_not_keep_others_out(autojump_clock):
    """The newest request of the flood gives way, with a Retry-After; the flood's own further requests are refused."""
    shared = SharedModel(limit=10)
    errors = []

    async def one(key):
        error = await shared.request(key)
        if error is not None:
            errors.append((key.id, error.status, error.code, error.retry_after_s))

    async with trio.open_nursery() as nursery:
        for _ in range(12):  # one has the slot, ten wait, one is refused
            nursery.start_soon(one, a_key("flood"))
            await wait_all_tasks_blocked()
        assert errors == [("flood", 503, "overloaded", 1)]
        for number in range(7):
            nursery.start_soon(one, a_key("calm"))
            await wait_all_tasks_blocked()
            assert shared.admission.waiting == 10
            assert len(errors) == 2 + number
    assert shared.refused == {"flood": 6, "calm": 2}  # up to half of the room each
    assert shared.order[1:11] == ["flood", "calm"] * 5


async def test_batch_gives_way_to_interactive_but_keeps_a_tenth_of_the_room(autojump_clock):
    """So that there is a batch request to give every tenth slot to."""
    shared = SharedModel(limit=20)
    async with trio.open_nursery() as nursery:
        for _ in range(21):
            nursery.start_soon(shared.request, a_key("batch", 100, "batch"))
        await wait_all_tasks_blocked()
        for _ in range(40):
            nursery.start_soon(shared.request, a_key("chat"))
        await wait_all_tasks_blocked()
        assert shared.admission.waiting_counts() == {(M, "interactive"): 18, (M, "batch"): 2}
        for _ in range(5):
            nursery.start_soon(shared.request, a_key("more", 100, "batch"))
        await wait_all_tasks_blocked()
        assert shared.admission.waiting_counts() == {(M, "interactive"): 18, (M, "batch"): 2}
        nursery.cancel_scope.cancel()


async def test_retry_after_depends_on_the_share_of_the_key(autojump_clock):
    """Ten admissions in 18 s. A key with a tenth of the weight has to wait for ten more, and batch too."""
    shared = SharedModel(limit=30)
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(shared.request, a_key("heavy", 900), 2.0)
        await trio.sleep(20.0)
        for _ in range(40):
            nursery.start_soon(shared.request, a_key("heavy", 900), 2.0)
        await wait_all_tasks_blocked()
        light, batch = a_key("light", 100), a_key("batch", 900, "batch")
        assert shared.admission._retry_after_s(a_key("heavy", 900)) == 2
        assert shared.admission._retry_after_s(light) == 18
        assert shared.admission._retry_after_s(batch) == 18
        nursery.cancel_scope.cancel()


# Any schedule .........................................................................................................


@pytest.mark.parametrize("seed", range(4))
async def test_random_keys_leave_no_queue_and_no_slot_unused(seed, autojump_clock):
    """While a request waits, every slot is in use, for 1,000 requests of which a third leave."""
    rng = random.Random(seed)  # noqa: S311 - replayable, not secret
    shared = SharedModel(3, limit=50)
    keys = [a_key(f"k{n}", rng.choice([1, 100, 900]), rng.choice(["interactive", "batch"])) for n in range(8)] + [None]

    async def one(key, patience_s, work_s):
        with trio.move_on_after(patience_s):
            await shared.request(key, work_s)

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            patience_s = rng.choice([float("inf"), float("inf"), rng.uniform(0, 8)])
            nursery.start_soon(one, rng.choice(keys), patience_s, rng.choice([0.1, 1, 3]))
            await trio.sleep(rng.choice([0, 0, 0.2, 1.5]))
            await wait_all_tasks_blocked()
            assert shared.admission.waiting <= 50
            assert not shared.admission.waiting or shared.fleet.leases == 3
    assert_idle(shared.fleet)
    assert shared.admission.views() == []
    assert shared.admission.room._backlogs == {}
    assert len(shared.diary) > 500
