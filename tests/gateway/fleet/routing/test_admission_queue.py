"""Queues of full models: order, departures, limits, and that no free slot is left unused. All in memory."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

import pytest
import trio
from fakes.fleets import a_catalogue, a_fleet, a_model, a_profile, answers, assert_idle
from trio.testing import wait_all_tasks_blocked

from gateway.errors import GatewayError, Overloaded, ServiceUnavailable
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import WaitForSlot
from gateway.fleet.routing.decision_log import note_decision
from gateway.fleet.routing.queue import AdmissionQueues

M = "lab/m"


class FixedCatalogue:
    """A catalogue that a test replaces."""

    def __init__(self, max_concurrent):
        self.current = a_catalogue(a_profile(M, max_concurrent=max_concurrent))


@dataclass
class QueuedFleet:
    """Nodes that all have the model, its queue, and a diary: (request, node, time of admission)."""

    names: tuple[str, ...]
    max_concurrent: int | None = 1
    limit: int = 1000
    diary: list[tuple[str, str, float]] = field(default_factory=list)

    def __post_init__(self):
        self.fleet = a_fleet(*self.names, clock=trio.current_time)
        for name in self.names:
            answers(self.fleet, name, a_model(M))
        self.catalogue_store = FixedCatalogue(self.max_concurrent)
        self.admission = AdmissionQueues(self.fleet, catalogue=self.catalogue_store, limit=self.limit)

    async def visit(self, who, *, work_s=1.0, since=None, failed_on=(), limit_of=None):
        """One request, as dispatch serves it: wait for a slot, work at the node, leave."""
        ticket = self.admission.ticket(M, trio.current_time() if since is None else since)
        ticket.avoided_nodes = frozenset(failed_on)
        if failed_on:
            ticket.was_admitted = True
        node = await self.find(ticket, failed_on)
        with self.fleet.lease(node, M):
            self.diary.append((who, node, trio.current_time()))
            await trio.sleep(work_s)

    async def find(self, ticket, failed_on=()):
        """The node; there is no checkpoint between the decision and the return."""
        decision = ticket.choose(self.catalogue_store.current, failed_on)
        if not isinstance(decision, Route):
            with ticket:
                while not isinstance(decision, Route):
                    assert isinstance(decision, WaitForSlot)
                    await ticket.wait_for_slot()
                    decision = ticket.choose(self.catalogue_store.current, failed_on)
        return decision.node

    def set_limit(self, max_concurrent):
        """Another catalogue, as the catalogue store would assign it."""
        self.catalogue_store.current = a_catalogue(a_profile(M, max_concurrent=max_concurrent))
        self.admission.wake_all()

    @property
    def order(self):
        return [who for who, _, _ in self.diary]


# The limit ............................................................................................................


async def test_node_gets_at_most_its_limit_and_the_next_request_when_one_ends(autojump_clock):
    """Two nodes with two slots each: four requests at once, and the next four when these end."""
    queued = QueuedFleet(("a", "b"), max_concurrent=2)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(queued.visit, number)
    assert [at for _, _, at in queued.diary] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sorted(node for _, node, _ in queued.diary[:4]) == ["a", "a", "b", "b"]
    assert queued.admission.views() == []


async def test_model_without_a_limit_has_no_queue(autojump_clock):
    """Every request is admitted at once."""
    queued = QueuedFleet(("a",), max_concurrent=None)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(queued.visit, number)
    assert {at for _, _, at in queued.diary} == {0}


async def test_slots_count_only_our_own_requests():
    """Requests of others make a node busy, but they take no slot."""
    queued = QueuedFleet(("a", "b"), max_concurrent=1)
    answers(queued.fleet, "b", a_model(M, in_flight=9))
    with queued.fleet.lease("a", M):
        assert queued.admission.ticket(M, 0).choose(queued.catalogue_store.current).node == "b"


# First come, first served .............................................................................................


async def test_first_come_is_first_served(autojump_clock):
    """Twenty requests for one slot are served in the order of arrival."""
    queued = QueuedFleet(("a",))
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(queued.visit, number)
            await wait_all_tasks_blocked()
    assert queued.diary == [(number, "a", number) for number in range(20)]


async def test_new_request_does_not_overtake_a_waiting_one_when_a_slot_becomes_free(autojump_clock):
    """The new request sees the free slot before the waiting one has woken, and queues behind it."""
    queued = QueuedFleet(("a",))
    async with trio.open_nursery() as nursery:
        with queued.fleet.lease("a", M):
            nursery.start_soon(queued.visit, "waits")
            await trio.sleep(3)
        newcomer = queued.admission.ticket(M, trio.current_time())  # no checkpoint since the lease came back
        assert newcomer.choose(queued.catalogue_store.current) == WaitForSlot(M)
        await queued.visit("came later")
    assert queued.diary == [("waits", "a", 3), ("came later", "a", 4)]


async def test_position_counts_from_1_and_moves_up(autojump_clock):
    """A ticket outside the queue has no position, and an empty queue is not shown."""
    queued = QueuedFleet(("a",))
    tickets = [queued.admission.ticket(M, at) for at in (3.0, 1.0, 2.0)]
    assert [ticket.position for ticket in tickets] == [None, None, None]
    with tickets[0], tickets[1]:
        with tickets[2]:
            assert [ticket.position for ticket in tickets] == [3, 1, 2]
        assert [ticket.position for ticket in tickets] == [2, 1, None]
    assert queued.admission.views() == []


# Leaving the queue ....................................................................................................


async def test_cancelled_request_leaves_the_queue_at_once(autojump_clock):
    """The requests behind it move up."""
    queued = QueuedFleet(("a",))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queued.visit, "works")
        await wait_all_tasks_blocked()
        scope = trio.CancelScope()
        nursery.start_soon(_visit_in, scope, queued, "leaves")
        await wait_all_tasks_blocked()
        nursery.start_soon(queued.visit, "stays")
        await wait_all_tasks_blocked()
        (queue,) = queued.admission.views()
        assert (queue.waiting_for_slot, queue.leases, queue.max_concurrent) == (2, 1, 1)
        scope.cancel()
        await trio.sleep(0.5)
        (queue,) = queued.admission.views()
        assert (queue.waiting_for_slot, queue.oldest_s) == (1, 0.5)
    assert queued.diary == [("works", "a", 0), ("stays", "a", 1)]


async def _visit_in(scope, queued, who):
    with scope:
        await queued.visit(who)


async def test_slot_goes_to_the_next_request_when_the_woken_one_is_cancelled(autojump_clock):
    """The next request gets the slot in the same step, not after the recheck interval."""
    queued = QueuedFleet(("a",))
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        with queued.fleet.lease("a", M):
            nursery.start_soon(_visit_in, scope, queued, "leaves")
            await wait_all_tasks_blocked()
            nursery.start_soon(queued.visit, "next")
            await trio.sleep(0.3)
        scope.cancel()
    assert queued.diary == [("next", "a", 0.3)]


async def test_full_queue_refuses_with_a_retry_after(autojump_clock):
    """Retry-After is the mean interval between the last admissions."""
    queued = QueuedFleet(("a",), limit=3)
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(lambda number=number: queued.visit(number, work_s=7.0))
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await queued.visit("too many")
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "overloaded", 1)
        assert (
            "the queue is full: 3 requests wait for a neuron, 3 of them for 'lab/m' (limits.queue = 3)"
            in caught.value.message
        )
        await trio.sleep(14.5)
        for number in range(2):
            nursery.start_soon(lambda number=number: queued.visit(f"late {number}", work_s=7.0))
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await queued.visit("too many")
        assert caught.value.retry_after_s == 4  # two in 7.5 s
        assert queued.admission.waiting == 3
    assert len(queued.diary) == 6


async def test_retry_after_of_a_slow_queue_is_at_most_a_minute(autojump_clock):
    """Admissions an hour apart do not predict the next one."""
    queued = QueuedFleet(("a",), limit=1)
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(lambda number=number: queued.visit(number, work_s=3600.0))
            await wait_all_tasks_blocked()
        await trio.sleep(3600.5)  # one was admitted
        nursery.start_soon(queued.visit, "late")
        await trio.sleep(3000)
        with pytest.raises(Overloaded) as caught:
            await queued.visit("too many")
    assert caught.value.retry_after_s == 60


async def test_retry_of_an_admitted_request_is_not_refused_by_a_full_queue(autojump_clock):
    """It has been admitted before, so the limit does not apply to it."""
    queued = QueuedFleet(("a", "b"), limit=0)
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(queued.visit, number)
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await queued.visit("new")
        await queued.visit("again", failed_on={"a"})
    assert queued.diary[-1] == ("again", "b", 1)


# What changes while they wait .........................................................................................


async def test_raised_limit_admits_waiting_requests_at_once(autojump_clock):
    """In order. A lowered limit cuts no running request; without a limit the queue empties."""
    queued = QueuedFleet(("a",), max_concurrent=1)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(lambda number=number: queued.visit(number, work_s=10.0))
            await wait_all_tasks_blocked()
        await trio.sleep(0.5)
        queued.set_limit(3)
        await trio.sleep(0.5)
        assert queued.diary == [(0, "a", 0), (1, "a", 0.5), (2, "a", 0.5)]
        queued.set_limit(1)
        await trio.sleep(9.25)  # until 10.25: the first is done, two are left, and that is one too many
        assert len(queued.diary) == 3
        await trio.sleep(0.5)  # until 10.75: all three are done
        assert queued.diary[3:] == [(3, "a", 10.5)]
        queued.set_limit(None)
    assert sorted(queued.diary[4:]) == [(number, "a", 10.75) for number in range(4, 8)]


async def test_new_replica_admits_waiting_requests(autojump_clock):
    """A node that is undrained has free slots."""
    queued = QueuedFleet(("a", "b"), max_concurrent=1)
    queued.fleet.drain("b", draining=True)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(lambda number=number: queued.visit(number, work_s=10.0))
            await wait_all_tasks_blocked()
        await trio.sleep(0.5)
        queued.fleet.drain("b", draining=False)
    assert queued.diary == [(0, "a", 0), (1, "b", 0.5), (2, "a", 10)]


async def test_waiting_requests_fail_when_the_last_node_goes_down(autojump_clock):
    """All of them, at once."""
    queued = QueuedFleet(("a",))
    errors = []

    async def visit():
        try:
            await queued.visit("x", work_s=10.0)
        except ServiceUnavailable as error:
            errors.append((trio.current_time(), error.message))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(visit)
        await trio.sleep(0.5)
        for _ in range(3):
            queued.fleet.missed("a", "gone")
    assert errors == [(0.5, "no healthy nodes available: a: gone")] * 2


async def test_end_of_a_retry_after_is_noticed_within_a_second(autojump_clock):
    """No event reports the end of a Retry-After, so waiting requests recheck."""
    queued = QueuedFleet(("a", "b"))
    queued.fleet.busy("b", M, 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: queued.visit("on a", work_s=30.0))
        await wait_all_tasks_blocked()
        nursery.start_soon(queued.visit, "waits")
    assert queued.diary == [("on a", "a", 0), ("waits", "b", 5)]


# Retries ..............................................................................................................


async def test_retry_keeps_its_place_in_the_order(autojump_clock):
    """A request that failed once is still ahead of all later ones."""
    queued = QueuedFleet(("a", "b"), max_concurrent=1)
    async with trio.open_nursery() as nursery:
        with queued.fleet.lease("a", M):
            nursery.start_soon(queued.visit, "on b")
            await wait_all_tasks_blocked()
            nursery.start_soon(queued.visit, "came later")
            await wait_all_tasks_blocked()
            nursery.start_soon(lambda: queued.visit("again", since=-1.0, failed_on={"a"}))
            await trio.sleep(1.5)
    assert queued.diary == [("on b", "b", 0), ("again", "b", 1), ("came later", "a", 1.5)]


async def test_retry_does_not_block_slots_on_nodes_that_it_avoids(autojump_clock):
    """A new request, and the requests behind the retry, take such a slot."""
    queued = QueuedFleet(("a", "b"), max_concurrent=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: queued.visit("on b", work_s=60.0))
        nursery.start_soon(lambda: queued.visit("on a", work_s=2.5))
        await wait_all_tasks_blocked()
        ours = {who: node for who, node, _ in queued.diary}
        nursery.start_soon(lambda: queued.visit("again", since=-1.0, failed_on={ours["on a"]}))
        await wait_all_tasks_blocked()
        nursery.start_soon(queued.visit, "behind")
        await trio.sleep(5.25)
        await queued.visit("newcomer")
        nursery.cancel_scope.cancel()
    assert [(who, at) for who, _, at in queued.diary[2:]] == [("behind", 2.5), ("newcomer", 5.25)]


# Random schedules .....................................................................................................


@dataclass
class Visitor:
    """One request of a schedule and its outcome."""

    number: int
    began: float
    is_retry: bool
    ended: str = "waits"


class Schedule:
    """Random requests, retries, departures, limits and crashes."""

    def __init__(self, rng):
        self.rng = rng
        self.queued = QueuedFleet(("a", "b", "c"), max_concurrent=2, limit=40)
        self.visitors = []

    async def run(self):
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                self.rng.choices((self.come, self.turn_over, self.crash, self.retry), (12, 1, 1, 2))[0](nursery)
                await trio.sleep(self.rng.choice([0, 0, 0.1, 0.5, 1.7]))
                await wait_all_tasks_blocked()
                self.check()
            for name in self.queued.names:
                self.up(name)
        assert_idle(self.queued.fleet)
        assert self.queued.admission.views() == []
        assert self.queued.admission.waiting == 0
        assert {visitor.ended for visitor in self.visitors} <= {"served", "left", "overloaded", "service_unavailable"}
        # First requests are served in the order of arrival; without a limit all are admitted at once.
        served = sorted(
            (at, self.visitors[who].began) for who, _, at in self.queued.diary if not self.visitors[who].is_retry
        )
        came = [began for _, began in served]
        assert came == sorted(came)
        return [(visitor.number, visitor.ended) for visitor in self.visitors], self.queued.diary

    def come(self, nursery):
        patience_s = self.rng.choice([None, None, 0.0, 0.3, 5])
        nursery.start_soon(self.one, patience_s, ())

    def retry(self, nursery):
        nursery.start_soon(self.one, None, {self.rng.choice(self.queued.names)})

    async def one(self, patience_s, failed_on):
        visitor = Visitor(len(self.visitors), trio.current_time(), bool(failed_on))
        self.visitors.append(visitor)
        with trio.move_on_after(float("inf") if patience_s is None else patience_s) as patience:
            try:
                await self.queued.visit(visitor.number, work_s=self.rng.choice([0.1, 1, 3]), failed_on=failed_on)
                visitor.ended = "served"
            except GatewayError as error:
                visitor.ended = error.code
        if patience.cancelled_caught:
            visitor.ended = "left"

    def turn_over(self, _):
        self.queued.set_limit(self.rng.choice([1, 2, 3, None]))

    def crash(self, _):
        name = self.rng.choice(self.queued.names)
        if (
            self.queued.fleet.nodes[name].healthy
            and len([n for n in self.queued.fleet.nodes.values() if n.healthy]) > 1
        ):
            for _ in range(3):
                self.queued.fleet.missed(name, "gone")
        else:
            self.up(name)

    def up(self, name):
        answers(self.queued.fleet, name, a_model(M))

    def check(self):
        """No request waits while a slot that it could take is free."""
        admission, fleet = self.queued.admission, self.queued.fleet
        max_concurrent = admission.max_concurrent(M)
        for queue in admission._queues.values():
            for ticket in queue.waiting_for_slot:
                free = [
                    replica.node.name
                    for replica in fleet.replicas(M)
                    if max_concurrent is None or replica.leases < max_concurrent
                ]
                assert not set(free) - ticket.avoided_nodes, (ticket.position, free, ticket.avoided_nodes)


@pytest.fixture
def seeded(monkeypatch):
    """Makes the order in which Trio runs tasks repeatable."""
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)

    def seed(number):
        trio._core._run._r.seed(number)
        return random.Random(number)  # noqa: S311 - replayable, not secret

    return seed


def a_run(rng):
    async def main():
        return await Schedule(rng).run()

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("seed", range(8))
def test_no_request_waits_beside_a_free_slot_in_any_schedule(seed, seeded):
    """No wake-up and no slot is lost, and the queues are empty in the end."""
    a_run(seeded(seed))


def test_schedule_with_the_same_seed_is_the_same(seeded):
    """What fails once can be looked at twice."""
    assert a_run(seeded(3)) == a_run(seeded(3))


# The common case ......................................................................................................


@pytest.mark.parametrize("seed", range(40))
async def test_plain_route_is_what_choose_decides(seed):
    """In any state of the fleet: the short way gives the same route and note, or leaves the decision to `choose`."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    queued = QueuedFleet(("a", "b", "c")[: chance.choice([1, 2, 3])], chance.choice([None, None, 1]))
    for node in queued.names:
        if chance.random() < 0.3:
            answers(queued.fleet, node)  # the model is gone there
        for _ in range(chance.choice([0, 0, 5])):
            queued.fleet.at_fault(node, M, "why")
        if chance.random() < 0.2:
            queued.fleet.busy(node, M, 5)
        queued.fleet.drain(node, draining=chance.random() < 0.2)
    ticket = queued.admission.ticket(M, 0)
    mine = chance.choice([queued.catalogue_store.current, a_catalogue()])
    with contextlib.ExitStack() as leases:
        for _ in range(chance.choice([0, 1, 4])):
            leases.enter_context(queued.fleet.lease(chance.choice(queued.names), M))
        notes, expected = [], []
        route = queued.admission.plain_route(M, mine, notes, queued.fleet.now())
        if route is not None:
            assert route == ticket.choose(mine)
            note_decision(expected, route, model=M, fleet=queued.fleet, catalogue=mine, failed_on=())

    assert [note._replace(at=0) for note in notes] == [note._replace(at=0) for note in expected]
    replicas = queued.fleet.replicas(M)
    usual = len(replicas) > 0 and not any(replica.troubled for replica in replicas)
    assert (route is not None) == (usual and queued.max_concurrent is None)
