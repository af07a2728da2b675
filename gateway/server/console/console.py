"""The parts of the console, wired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from gateway.access.keys.key import Key
from gateway.asgi import App
from gateway.fleet.routing.queue import QueueView
from gateway.fleet.state import Fleet
from gateway.server.access.host_check import HostCheck
from gateway.server.console.admin_port import AdminPort
from gateway.server.console.event_feed import EventFeed
from gateway.server.console.event_sources import LogSource, RequestSource, StateSource
from gateway.server.console.figures import FigureHistory
from gateway.server.console.sessions import Operator, Sessions
from gateway.server.listen import Addresses
from gateway.telemetry.recent_log import recent_log
from gateway.telemetry.request_log import RequestLog

__all__ = ["Console", "ConsoleContext"]

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
HEALTH_VALID_S: Final = 0.5  # two kinds of events are parts of it


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """What the console shows, and who may see it.

    Args:
        identify: Returns whose key this is; None if it is not valid or cannot read.
        may_infer: Whether an operator may use the playground.
        inference_key: Returns the key of an operator for the playground.
        fleet, requests, queues: What the figures are computed from.
        fleet_state: Returns the neurons as `event_sources.fleet_state` does.
        health: Returns the body of `/health`.
    """

    identify: Callable[[str], Operator | None]
    may_infer: Callable[[Operator], bool]
    inference_key: Callable[[Operator], Key | None]
    fleet: Fleet
    requests: RequestLog
    queues: Callable[[], Sequence[QueueView]]
    fleet_state: Callable[[], dict[str, Any]]
    health: Callable[[], dict[str, Any]]


class Console:
    """Sessions, events and figures of one gateway.

    Attributes:
        sessions: Of browsers.
        feed: The live events. Its `run` and that of `figures` are background tasks of the gateway.
        figures: The last hour.
    """

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._health: tuple[float, dict[str, Any]] = (-1.0, {})
        self._addresses: Addresses | None = None
        self._admin_is_tls = False
        self.sessions = Sessions(context.identify)
        self.figures = FigureHistory(context.requests, context.fleet, context.queues)
        self.feed = EventFeed(
            [
                StateSource("problem", self._problems),
                StateSource("fleet", context.fleet_state),
                StateSource("alias", self._aliases),
                RequestSource(context.requests, self.figures),
                LogSource(recent_log),
            ]
        )

    def port(self, routes: App, inference: App, hosts: HostCheck) -> AdminPort:
        """The application of the admin port.

        Args:
            routes: The Quart application of the admin API.
            inference: The application for the inference paths.
            hosts: Checks the host that each request names.
        """
        return AdminPort(
            routes,
            sessions=self.sessions,
            identify=self._context.identify,
            feed=self.feed,
            inference=inference,
            may_infer=self._context.may_infer,
            inference_key=self._context.inference_key,
            hosts=hosts,
        )

    def listens(self, addresses: Addresses, *, admin_is_tls: bool) -> None:
        """The gateway listens now at these addresses."""
        self._addresses, self._admin_is_tls = addresses, admin_is_tls

    def describe(self, operator: Operator) -> dict[str, Any]:
        """What a page needs to know besides the session itself."""
        addresses = self._addresses
        api = {"api_port": addresses and addresses.api.port, "api_is_tls": addresses is not None and addresses.is_tls}
        return {"may_infer": self._context.may_infer(operator), **api}

    def url(self, listens_on: str, host: str) -> str | None:
        """The console's address for a browser that knows this machine as `host`; None if it cannot reach the port.

        Args:
            listens_on: The host of `[gateway] metrics_listen`.
            host: Without a port.
        """
        if self._addresses is None or (listens_on in LOOPBACK and host not in LOOPBACK):
            return None
        scheme = "https" if self._admin_is_tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._addresses.metrics.port}/"

    def _problems(self) -> dict[str, Any]:
        health = self._current_health()
        return {key: health.get(key) for key in ("status", "problems", "nodes")}

    def _aliases(self) -> dict[str, Any]:
        health = self._current_health()
        return {key: health.get(key) for key in ("aliases", "catalogue")}

    def _current_health(self) -> dict[str, Any]:
        now = trio.current_time()
        if now >= self._health[0]:
            self._health = (now + HEALTH_VALID_S, self._context.health())
        return self._health[1]
