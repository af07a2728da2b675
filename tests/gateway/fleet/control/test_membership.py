"""Neurons that come, go and move while requests run."""

from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fakes.fleets import assert_idle, where
from fakes.neuron import FakeNeuron, model
from fakes.world import a_sim, a_sim_model, a_world, profile_of

from gateway.config.settings import NeuronSettings, PollSettings
from gateway.fleet.control.membership import FleetMembership
from gateway.fleet.control.neuron_client import NeuronClient
from gateway.fleet.control.poller import Poller
from gateway.fleet.state import Fleet

A, B = NeuronSettings("a", "http://a:13131"), NeuronSettings("b", "http://b:13131")
A_MOVED = NeuronSettings("a", "http://elsewhere:13131", token="new")


class Hosts(dict):
    """Fake neurons by host name; `clients` are all clients that were made, and `closed` those that were closed."""

    def __init__(self, **hosts):
        super().__init__(hosts)
        self.clients, self.closed = [], []

    def client(self, settings):
        host = httpx.URL(settings.endpoint).host
        client = NeuronClient(settings.endpoint, token=settings.token, transport=self[host])
        self.clients.append(host)
        aclose = client.aclose

        async def close():
            self.closed.append(host)
            await aclose()

        client.aclose = close
        return client


@asynccontextmanager
async def membership(hosts, *neurons, busy=frozenset()):
    """A fleet of these neurons, polled every 10 s."""
    poll = PollSettings(interval_seconds=10, timeout_seconds=4, misses=3)
    fleet, clients = Fleet(neurons, misses=3), {settings.name: hosts.client(settings) for settings in neurons}
    poller = Poller(fleet, clients, poll)
    members = FleetMembership(fleet, poller, clients, poll=poll, is_busy=busy.__contains__, make_client=hosts.client)
    async with trio.open_nursery() as nursery:
        await nursery.start(poller.run)
        await nursery.start(members.run)
        yield fleet, members
        nursery.cancel_scope.cancel()
    assert_idle(fleet)


async def test_new_neuron_is_polled_at_once(autojump_clock):
    """It gets requests as soon as it has answered, also in a fleet that had no neuron."""
    hosts = Hosts(a=FakeNeuron(model("m")))
    async with membership(hosts) as (fleet, members):
        await trio.sleep(3)
        members.apply([A])
        await trio.testing.wait_all_tasks_blocked()

        assert where(fleet, "m") == ["a"]
        assert hosts["a"].request_times("/models") == [3]


async def test_neurons_that_stay_are_not_touched(autojump_clock):
    """The same node, the same leases, the same circuit breaker, and no poll out of turn."""
    hosts = Hosts(a=FakeNeuron(model("m")), b=FakeNeuron(model("n")))
    async with membership(hosts, A) as (fleet, members):
        node, replica = fleet.nodes["a"], fleet.nodes["a"].models["m"]
        for _ in range(5):
            fleet.at_fault("a", "m", "it broke")
        with fleet.lease("a", "m"):
            members.apply([B, A])
            await trio.sleep(1)
            members.apply([A])
            await trio.sleep(1)

            assert fleet.nodes["a"] is node
            assert node.models["m"] is replica
            assert (replica.leases, replica.breaker.closed) == (1, False)
            assert hosts["a"].request_times("/models") == [0]
            assert hosts.clients == ["a", "b"]


async def test_removed_neuron_finishes_what_it_has_and_goes(autojump_clock):
    """No new request goes there at once; its client is closed when the last request has ended, and not before."""
    hosts = Hosts(a=FakeNeuron(model("m")), b=FakeNeuron(model("m")))
    async with membership(hosts, A, B) as (fleet, members):
        with fleet.lease("a", "m"):
            members.apply([B])

            assert where(fleet, "m") == ["b"]
            assert list(fleet.nodes) == ["b"]
            await trio.sleep(100)
            assert list(fleet.leaving) == ["a"]
            assert hosts.closed == []
        await trio.sleep(0.1)

        assert fleet.leaving == {}
        assert hosts.closed == ["a"]
        fleet.succeeded("a", "m", answered=True)
        fleet.at_fault("a", "m", "a request that ended late reports its outcome")
        assert hosts["a"].request_times("/models") == [0]


async def test_neuron_with_a_job_goes_after_the_job(autojump_clock):
    """A load or unload still uses its client."""
    busy = {"a"}
    hosts = Hosts(a=FakeNeuron(model("m")))
    async with membership(hosts, A, busy=busy) as (fleet, members):
        members.apply([])
        await trio.sleep(30)
        assert hosts.closed == []
        busy.clear()
        await trio.sleep(2)

        assert (fleet.leaving, hosts.closed) == ({}, ["a"])


async def test_removed_neuron_that_comes_back_while_it_finishes_is_the_same(autojump_clock):
    """No request finds it absent for longer than it was."""
    hosts = Hosts(a=FakeNeuron(model("m")))
    async with membership(hosts, A) as (fleet, members):
        node = fleet.nodes["a"]
        with fleet.lease("a", "m"):
            members.apply([])
            assert where(fleet, "m") == []
            members.apply([A])
            assert where(fleet, "m") == ["a"]
            assert fleet.nodes["a"] is node
        await trio.sleep(5)

        assert (fleet.leaving, hosts.closed) == ({}, [])
        assert hosts["a"].request_times("/models") == [0, 0]


async def test_neuron_moves_once_it_answers_at_its_new_address(autojump_clock):
    """Until then requests go to the old one. Those that run there end there, and count for the same neuron."""
    hosts = Hosts(a=FakeNeuron(model("m")), elsewhere=FakeNeuron(model("m")))
    hosts["elsewhere"].slow_s["/models"] = 2
    async with membership(hosts, A) as (fleet, members):
        node = fleet.nodes["a"]
        with fleet.lease("a", "m"):
            members.apply([A_MOVED])
            await trio.sleep(1)
            assert fleet.replicas("m")[0].url == "http://a:8080"
            await trio.sleep(1.5)

            [replica] = fleet.replicas("m")
            assert (replica.url, replica.leases, replica.node) == ("http://elsewhere:8080", 1, node)
            assert (node.settings, node.endpoint) == (A_MOVED, "http://elsewhere:13131")
            assert replica.route.access.authorization == b"Bearer new"
            assert hosts.closed == ["a"]
        await trio.sleep(10)

        assert hosts["a"].request_times("/models") == [0], "the old address is not polled any more"
        assert len(hosts["elsewhere"].request_times("/models")) == 3, "asked, polled at once, and 10 s later"
        assert where(fleet, "m") == ["a"]


async def test_failures_at_the_old_address_say_nothing_about_the_new_one(autojump_clock):
    """The old host is turned off, and ten streams break there: the breaker stays closed."""
    hosts = Hosts(a=FakeNeuron(model("m")), elsewhere=FakeNeuron(model("m")))
    async with membership(hosts, A) as (fleet, members):
        members.apply([A_MOVED])
        await trio.sleep(1)
        for _ in range(10):
            fleet.at_fault("a", "m", "it broke off", "http://a:8080")
            fleet.unreachable("a", "m", "refused", "http://a:8080")
            fleet.dropped("a", "m", "http://a:8080")

        [replica] = fleet.replicas("m")
        assert replica.breakers_closed
        assert fleet.nodes["a"].misses == 0

        for _ in range(5):
            fleet.at_fault("a", "m", "it broke off", "http://elsewhere:8080")
        assert not replica.breakers_closed


async def test_neuron_that_never_answers_at_its_new_address_moves_all_the_same(autojump_clock):
    """The file in force is the truth, after as many tries as a poll may miss."""
    hosts = Hosts(a=FakeNeuron(model("m")), elsewhere=FakeNeuron(model("m")))
    hosts["elsewhere"].unreachable = True
    async with membership(hosts, A) as (fleet, members):
        members.apply([A_MOVED])
        await trio.sleep(1.5)
        assert where(fleet, "m") == ["a"]
        await trio.sleep(5)

        assert where(fleet, "m") == []
        assert (fleet.nodes["a"].healthy, fleet.nodes["a"].endpoint) == (False, "http://elsewhere:13131")
        hosts["elsewhere"].unreachable = False
        await trio.sleep(2)
        assert fleet.replicas("m")[0].url == "http://elsewhere:8080"


async def test_neuron_that_is_down_moves_at_once(autojump_clock):
    """It has nothing to lose at its old address."""
    hosts = Hosts(a=FakeNeuron(model("m")), elsewhere=FakeNeuron(model("m")))
    hosts["a"].unreachable = True
    async with membership(hosts, A) as (fleet, members):
        await trio.sleep(30)
        assert not fleet.any_healthy()
        members.apply([A_MOVED])
        await trio.sleep(0.1)

        assert fleet.replicas("m")[0].url == "http://elsewhere:8080"


@pytest.mark.parametrize("after_s", [0, 1])
async def test_move_that_is_taken_back_does_not_happen(autojump_clock, after_s):
    """Also before its task has begun; its client is closed."""
    hosts = Hosts(a=FakeNeuron(model("m")), elsewhere=FakeNeuron(model("m")))
    hosts["elsewhere"].slow_s["/models"] = 2
    async with membership(hosts, A) as (fleet, members):
        members.apply([A_MOVED])
        if after_s:
            await trio.sleep(after_s)
        members.apply([A])
        await trio.sleep(5)

        assert fleet.replicas("m")[0].url == "http://a:8080"
        assert hosts.closed == hosts.clients[1:]


async def test_later_move_replaces_an_earlier_one(autojump_clock):
    """Only the last file counts, and applying it twice changes nothing."""
    hosts = Hosts(a=FakeNeuron(model("m")), elsewhere=FakeNeuron(model("m")), third=FakeNeuron(model("m")))
    hosts["elsewhere"].hanging.add("/models")
    async with membership(hosts, A) as (fleet, members):
        third = NeuronSettings("a", "http://third:13131")
        members.apply([A_MOVED])
        await trio.sleep(1)
        members.apply([third])
        members.apply([third])
        await trio.sleep(1)

        assert fleet.replicas("m")[0].url == "http://third:8080"
        assert sorted(hosts.closed) == ["a", "elsewhere"]


async def test_moved_neuron_is_removed_while_it_moves(autojump_clock):
    """The move ends with it."""
    hosts = Hosts(a=FakeNeuron(model("m")), elsewhere=FakeNeuron(model("m")))
    hosts["elsewhere"].slow_s["/models"] = 2
    async with membership(hosts, A) as (fleet, members):
        members.apply([A_MOVED])
        await trio.sleep(1)
        members.apply([])
        await trio.sleep(5)

        assert (dict(fleet.nodes), fleet.leaving) == ({}, {})
        assert sorted(hosts.closed) == ["a", "elsewhere"]


async def test_load_on_a_removed_neuron_is_given_up_and_its_requests_go_elsewhere(autojump_clock):
    """Its requests wait for a load on another neuron, and are answered."""
    cold = a_sim_model("cold", 8000, load_s=100.0)
    first, second = a_sim("a", cold, vram_mb=(30_000,)), a_sim("b", cold)
    async with a_world(first, second, profiles=(profile_of(cold),)) as world, trio.open_nursery() as nursery:
        answered = []

        async def ask():
            answered.append(await world.ask("cold"))

        nursery.start_soon(ask)
        await trio.sleep(10)
        [loading] = world.load_calls()
        world.fleet.remove(loading)
        await trio.sleep(150)

        assert world.load_calls() == [loading, "b" if loading == "a" else "a"]
        assert [answer.status for answer in answered] == [200]
        assert not world.scheduler.is_busy(loading)
        world.fleet.forget(loading)
