"""Sockets that a service manager passes: which port each is for, and what is refused."""

import contextlib
import os
import socket

import pytest

from gateway.config.settings import GatewaySettings, Listen
from gateway.server.listen import CannotListen
from gateway.server.restart import socket_activation
from gateway.server.restart.socket_activation import NO_SOCKETS, inherited_sockets


@pytest.fixture
def passed(monkeypatch):
    """Pass sockets to this process, with the variables of `sd_listen_fds(3)`: returns these and the settings."""
    opened = []

    def pass_sockets(*sockets, names="", pid=None):
        first = 200
        for number, sock in enumerate(sockets):
            opened.append(first + number)
            os.dup2(sock.fileno(), first + number)
        monkeypatch.setattr(socket_activation, "FIRST_FD", first)
        pid = os.getpid() if pid is None else pid
        return {"LISTEN_PID": str(pid), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names, "HOME": "/"}

    yield pass_sockets
    for fd in opened:
        with contextlib.suppress(OSError):  # closed by the test
            os.close(fd)


@pytest.fixture
def ports():
    with socket.create_server(("127.0.0.1", 0)) as api, socket.create_server(("127.0.0.1", 0)) as metrics:
        yield api, metrics


def settings(api, metrics):
    return GatewaySettings(listen=Listen(*api.getsockname()), metrics_listen=Listen(*metrics.getsockname()))


@pytest.mark.parametrize("names", ["api:metrics", "", "cortex.socket:cortex.socket"])
def test_socket_is_known_by_its_name_else_by_the_configured_port(passed, ports, names):
    """The variables are taken away, so that no child process believes that the sockets are its own."""
    api, metrics = ports
    environ = passed(api, metrics, names=names)
    found = inherited_sockets(environ, settings(api, metrics))
    assert found.api.getsockname() == api.getsockname()
    assert found.metrics.getsockname() == metrics.getsockname()
    assert not found.api.getblocking()
    assert not os.get_inheritable(found.api.fileno())
    assert environ == {"HOME": "/"}
    found.close()


def test_names_decide_although_the_ports_differ_from_the_configured_ones(passed, ports):
    api, metrics = ports
    found = inherited_sockets(passed(metrics, api, names="metrics:api"), GatewaySettings())
    assert (found.api.getsockname(), found.metrics.getsockname()) == (api.getsockname(), metrics.getsockname())
    found.close()


def test_sockets_of_another_process_are_left_alone(passed, ports):
    assert inherited_sockets(passed(*ports, pid=1), settings(*ports)) == NO_SOCKETS
    assert inherited_sockets({}, settings(*ports)) == NO_SOCKETS


def test_socket_without_a_port_of_ours_is_refused(passed, ports):
    with pytest.raises(CannotListen, match="FileDescriptorName=api"):
        inherited_sockets(passed(ports[0]), GatewaySettings())


def test_two_sockets_for_one_port_are_refused(passed, ports):
    with pytest.raises(CannotListen, match="two sockets for the port `api`"):
        inherited_sockets(passed(*ports, names="api:api"), settings(*ports))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_socket_that_does_not_listen_is_refused(passed, ports, kind):
    with (
        socket.socket(socket.AF_INET, kind) as sock,
        pytest.raises(CannotListen, match="not a listening TCP socket"),
    ):
        inherited_sockets(passed(sock, names="api"), settings(*ports))


def test_file_descriptor_that_is_no_socket_is_refused(passed, ports, tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(CannotListen, match="is no socket"):
        inherited_sockets(passed(file, names="api"), settings(*ports))
