"""What the gateway tells systemd: states, the status line, and a heartbeat that stops with the event loop."""

import os
import socket
import time

import pytest
import trio
from fakes.patience import until
from structlog.testing import capture_logs

from gateway.server.restart.service_manager import ServiceManager


@pytest.fixture
def manager_socket(tmp_path):
    """The manager's end: a function that returns every line received since the last call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)

        def lines():
            found = []
            while True:
                try:
                    found += sock.recv(4096).decode().splitlines()
                except BlockingIOError:
                    return found

        yield str(tmp_path / "notify"), lines


def test_states_are_reported_in_the_words_of_sd_notify(manager_socket):
    address, lines = manager_socket
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": address})
    manager.ready()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    manager.stopping()
    manager.main_process(4711)
    manager.ready()  # systemd would complain of a message that does not come from the main process
    ready, reloading, since, stopping, main = lines()
    assert (ready, reloading, main, stopping) == ("READY=1", "RELOADING=1", "MAINPID=4711", "STOPPING=1")
    name, _, usec = since.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_abstract_socket():
    """Systemd may use one: its name begins with a zero byte, which the variable shows as @."""
    name = f"cortex-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        ServiceManager(f"@{name}").ready()
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_is_meant_for_one_process(environ, watchdog_s):
    assert ServiceManager.from_environment(environ).watchdog_s == watchdog_s


async def test_heartbeat_stops_when_a_task_blocks_the_event_loop(manager_socket, nursery):
    """Then the manager restarts the gateway. The status line is sent when it changes."""
    address, lines = manager_socket
    manager = ServiceManager(address, watchdog_s=0.1)
    status = ["3 of 3 neurons up"]
    await nursery.start(manager.run, lambda: status[0])
    received = []
    await until(lambda: received.extend(lines()) or received.count("WATCHDOG=1") > 3)
    status[0] = "2 of 3 neurons up"
    await until(lambda: received.extend(lines()) or received[-1] == "STATUS=2 of 3 neurons up")
    assert [line for line in received if line != "WATCHDOG=1"] == [
        "STATUS=3 of 3 neurons up",
        "STATUS=2 of 3 neurons up",
    ]
    lines()
    time.sleep(0.3)  # noqa: ASYNC251 - this is the fault
    assert lines() == []
    await until(lambda: "WATCHDOG=1" in lines())
    nursery.cancel_scope.cancel()


async def test_without_a_manager_nothing_is_sent(autojump_clock):
    manager = ServiceManager()
    manager.ready()
    await manager.run(lambda: "status")
    assert trio.current_time() == 0


def test_manager_that_is_gone_is_logged_once(tmp_path):
    manager = ServiceManager(str(tmp_path / "gone"))
    with capture_logs() as logs:
        manager.ready()
        manager.ready()
    assert [entry["event"] for entry in logs] == ["service_manager_unreachable"]
