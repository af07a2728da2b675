"""Which hosts a request may name while a gateway on loopback is open."""

import socket

import pytest

from gateway.errors import Misdirected
from gateway.server.access.host_check import HostCheck

LOCAL = [
    "127.0.0.1",
    "127.0.0.1:31313",
    "[::1]",
    "[::1]:31313",
    "10.1.2.3",
    "localhost",
    "localhost:1",
    "gpu-1",
    "A.LOCALHOST",
]
LOCAL += ["b.local:80", "c.internal.", socket.gethostname(), "Api.Example.ORG:443", "", "::1"]
FOREIGN = ["evil.example", "evil.example:31313", "evil.example.", "127.0.0.1.evil.example", "localhost.evil.example"]
FOREIGN += [
    "local.evil.example",
    "xlocal.com",
    "1.2.3",
    "api.example.org.evil.example",
    "[evil.example]",
]


@pytest.mark.parametrize("host", LOCAL)
def test_local_names_and_those_written_down_pass(host):
    hosts = HostCheck(["api.example.org"])
    hosts.is_on = True
    for _ in range(2):  # the second time from memory
        assert hosts.fault(host.encode()) is None


@pytest.mark.parametrize("host", FOREIGN)
def test_names_of_the_internet_do_not(host):
    hosts = HostCheck(["api.example.org"])
    assert hosts.fault(host.encode()) is None  # not open, or not on loopback
    hosts.is_on = True
    for _ in range(2):
        assert isinstance(hosts.fault(host.encode()), Misdirected)


def test_what_clients_send_is_remembered_within_bounds():
    hosts = HostCheck()
    hosts.is_on = True
    for number in range(10_000):
        assert hosts.fault(f"127.0.0.1:{number}".encode()) is None
    assert len(hosts._good) <= 64
    assert len(str(hosts.fault(b"a." * 10_000))) < 500
