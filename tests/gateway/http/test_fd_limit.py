"""The limit of open files: how many connections it allows, and a process with hundreds of silent ones."""

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
    """Replaces the process's limits; appends those that are set."""
    fake = {"soft": 1024, "hard": 4096, "set": []}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (fake["soft"], fake["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: fake["set"].append(both))
    return fake


def test_soft_limit_is_raised_to_the_hard_limit(limits):
    """A shell's soft limit is usually 1024."""
    fd_limit.raise_limit()

    assert limits["set"] == [(4096, 4096)]


@pytest.mark.parametrize(
    ("soft", "connections"), [(resource.RLIM_INFINITY, 10_000), (1_000_000, 10_000), (1024, 448), (64, 1)]
)
def test_connections_are_limited_by_the_file_limit(limits, soft, connections):
    """Two descriptors per connection, and a reserve; a lower number than configured is logged."""
    limits["soft"] = soft

    with capture_logs() as logs:
        assert fd_limit.connections_within(10_000) == connections
    assert [entry["event"] for entry in logs] == ["connections_limited"] * (connections < 10_000)


def test_silent_connections_leave_descriptors_for_requests(tmp_path):
    """Without a descriptor for its neurons, a gateway would answer every request with 502 for 75 s."""
    body = json.dumps({"model": "helexa/small", "messages": [{"role": "user", "content": "hello"}]})
    options = ("demo", "--dir", tmp_path, "--port", 0, "--speed", 100)
    with running_cortex(*options, open_files=256) as process, ExitStack() as silent:
        url = urlsplit(ADDRESS.search(process.read_until("Ctrl-C ends it"))[1])
        for _ in range(400):
            silent.enter_context(socket.create_connection((url.hostname, url.port), timeout=SAFETY_NET_S))
        responses = [httpx.post(f"{url.geturl()}/v1/chat/completions", content=body, timeout=60) for _ in range(3)]
        process.interrupt()
        code, _, err = process.end()

    assert [response.status_code for response in responses] == [200, 200, 200]
    assert "connections_limited" in err
    assert "Too many open files" not in err
    assert code == 0
