"""How a pool finds the addresses of neurons, on real sockets: one lookup for many connections."""

import socket
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.http.tcp.known_addresses import KNOWN_S, KnownAddresses


class Names(trio.abc.HostnameResolver):
    """Resolves every name to `addresses`; counts the lookups."""

    def __init__(self, *addresses):
        self.addresses = addresses
        self.lookups = 0

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - the interface's names
        self.lookups += 1
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]

    async def getnameinfo(self, sockaddr, flags):
        raise AssertionError("connecting looks up addresses, never names")


def resolver(*addresses):
    names = Names(*addresses)
    trio.socket.set_custom_hostname_resolver(names)  # of this `trio.run`
    return names


@pytest.fixture
async def port():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0] as listener:
        yield listener.socket.getsockname()[1]


async def test_connections_that_open_at_the_same_time_share_one_lookup(port):
    names, known, peers = resolver("127.0.0.1"), KnownAddresses(), []

    async def connect():
        async with await known.open_tcp_stream("beast", port) as stream:
            peers.append(stream.socket.getpeername())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(connect)
    assert peers == [("127.0.0.1", port)] * 20
    assert names.lookups == 1
    known._hosts["beast"].known_at -= KNOWN_S + 1
    await connect()
    assert names.lookups == 2


async def test_failure_to_connect_makes_the_next_call_look_again(port):
    """A host that has moved is found at once, once its name says so."""
    names, known = resolver("127.0.0.2"), KnownAddresses()  # where nothing listens
    with pytest.raises(ConnectionRefusedError):
        await known.open_tcp_stream("beast", port)
    names.addresses = ("127.0.0.1",)
    async with await known.open_tcp_stream("beast", port):
        assert names.lookups == 2


async def test_host_with_several_addresses_is_reached_at_the_one_that_answers(port):
    resolver("127.0.0.2", "127.0.0.1")
    async with await KnownAddresses().open_tcp_stream("beast", port) as stream:
        assert stream.socket.getpeername() == ("127.0.0.1", port)


async def test_cancelled_connect_leaves_no_descriptor():
    """The listener's queue is full, so the kernel waits."""
    known = KnownAddresses()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address):
            before = open_descriptors()
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(known.open_tcp_stream, *address)
                await wait_all_tasks_blocked()
                assert open_descriptors() == before + 5
                nursery.cancel_scope.cancel()
            assert open_descriptors() == before


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))
