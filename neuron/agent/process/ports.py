"""Which port each engine gets."""

from __future__ import annotations

import socket

from neuron.agent.config.rules import PortRange
from neuron.agent.engines.launch import LOOPBACK, EngineHost

__all__ = ["NoFreePort", "PortAllocator", "is_free"]


class NoFreePort(Exception):
    """Every port of the range is in use."""


def is_free(port: int, host: EngineHost = LOOPBACK) -> bool:
    """Whether an engine could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host.bind else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.bind, port))
        except OSError:
            return False
    return True


class PortAllocator:
    """Hands out ports in turn, so that a client with an old address does not meet another model there."""

    def __init__(self, host: EngineHost = LOOPBACK) -> None:
        self._host = host
        self._taken: set[int] = set()
        self._last: dict[PortRange, int] = {}

    def take(self, ports: PortRange) -> int:
        """A port of the range that nothing listens on. The caller gives it back.

        Raises:
            NoFreePort: There is none.
        """
        count = ports.last - ports.first + 1
        begin = self._last.get(ports, ports.first - 1) + 1 - ports.first
        for offset in range(count):
            port = ports.first + (begin + offset) % count
            if port not in self._taken and is_free(port, self._host):
                self._taken.add(port)
                self._last[ports] = port
                return port
        raise NoFreePort(f"no port of {ports} is free: widen `ports` of the engine")

    def give_back(self, port: int) -> None:
        """The engine on this port has ended."""
        self._taken.discard(port)
