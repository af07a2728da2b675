"""Files and sockets are few: how many connections they are enough for, and what a process does with hundreds."""

import json
import re
import resource
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest
from fakes.patience import SAFETY_NET_S
from fakes.process import running_cortex
from structlog.testing import capture_logs

from gateway.http import fd_limit

ADDRESS = re.compile(r"cortex demo: (http://\S+)")


@pytest.fixture
def limits(monkeypatch):
    """The process's limits as the test says; what was set is appended."""
    told = {"soft": 1024, "hard": 4096, "set": []}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (told["soft"], told["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: told["set"].append(both))
    return told


def test_limit_is_raised_as_far_as_it_goes(limits):
    """1024 is what a shell gives; the hard limit is what the system allows."""
    fd_limit.raise_limit()

    assert limits["set"] == [(4096, 4096)]


@pytest.mark.parametrize(
    ("soft", "connections"), [(resource.RLIM_INFINITY, 10_000), (1_000_000, 10_000), (1024, 448), (64, 1)]
)
def test_connections_are_as_many_as_there_are_descriptors_for(limits, soft, connections):
    """Two for each, and some for everything else; who gets fewer than configured is told why."""
    limits["soft"] = soft

    with capture_logs() as logs:
        assert fd_limit.connections_within(10_000) == connections
    assert [entry["event"] for entry in logs] == ["connections_limited"] * (connections < 10_000)


def test_connections_that_say_nothing_leave_room_for_who_asks(tmp_path):
    """Without a descriptor for its neurons, a gateway would answer 502 to everybody; and it would do so for 75 s."""
    body = json.dumps({"model": "helexa/small", "messages": [{"role": "user", "content": "hello"}]})
    options = ("demo", "--dir", tmp_path, "--port", 0, "--speed", 100)
    with running_cortex(*options, open_files=256) as process, ExitStack() as silent:
        url = urlsplit(ADDRESS.search(process.read_until("Ctrl-C ends it"))[1])
        for _ in range(400):
            silent.enter_context(socket.create_connection((url.hostname, url.port), timeout=SAFETY_NET_S))
        answers = [httpx.post(f"{url.geturl()}/v1/chat/completions", content=body, timeout=60) for _ in range(3)]
        process.interrupt()
        code, _, err = process.end()

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert "connections_limited" in err
    assert "Too many open files" not in err
    assert code == 0
