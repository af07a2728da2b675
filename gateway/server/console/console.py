"""The parts of the console, wired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from catalogue.source import CatalogueSource
from gateway.access.admission import Access
from gateway.aliases.warm_swap import WarmSwaps
from gateway.asgi import App
from gateway.fleet.loading.drain import Drains
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.routing.queue import QueueView
from gateway.fleet.state import Fleet
from gateway.server.access.host_check import HostCheck
from gateway.server.access.operators import identify_by, inference_key_of, may_infer_by
from gateway.server.console.admin_port import AdminPort
from gateway.server.console.event_feed import EventFeed
from gateway.server.console.event_sources import LogSource, RequestSource, StateSource, fleet_state
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
        access: Checks keys.
        catalogue, fleet, drains, scheduler, swaps, queues: What pages show of the neurons and their models.
        requests: The request log.
        health: Returns the body of `/health`.
        capture: Returns the running capture without its texts, None if none runs.
    """

    access: Access
    catalogue: CatalogueSource
    fleet: Fleet
    drains: Drains
    scheduler: LoadScheduler
    swaps: WarmSwaps
    requests: RequestLog
    queues: Callable[[], Sequence[QueueView]]
    health: Callable[[], dict[str, Any]]
    capture: Callable[[], dict[str, Any] | None]


class Console:
    """Sessions, events and figures of one gateway.

    Attributes:
        sessions: Of browsers.
        feed: The live events. Its `run` and that of `figures` are background tasks of the gateway.
        figures: The last hour.
    """

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._identify = identify_by(context.access)
        self._may_infer = may_infer_by(context.access)
        self._health: tuple[float, dict[str, Any]] = (-1.0, {})
        self._addresses: Addresses | None = None
        self._admin_is_tls = False
        self.sessions = Sessions(self._identify)
        self.figures = FigureHistory(context.requests, context.fleet, context.queues)
        self.feed = EventFeed(
            [
                StateSource("problem", self._problems),
                StateSource("fleet", self._fleet),
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
            identify=self._identify,
            feed=self.feed,
            inference=inference,
            may_infer=self._may_infer,
            inference_key=lambda operator: inference_key_of(operator, self._context.access),
            hosts=hosts,
        )

    def listens(self, addresses: Addresses, *, admin_is_tls: bool) -> None:
        """The gateway listens now at these addresses."""
        self._addresses, self._admin_is_tls = addresses, admin_is_tls

    def describe(self, operator: Operator) -> dict[str, Any]:
        """What a page needs to know besides the session itself."""
        addresses = self._addresses
        api = {"api_port": addresses and addresses.api.port, "api_is_tls": addresses is not None and addresses.is_tls}
        return {"may_infer": self._may_infer(operator), **api}

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
        problems = {key: health.get(key) for key in ("status", "problems", "nodes")}
        return problems | {"capture": self._context.capture()}

    def _fleet(self) -> dict[str, Any]:
        context = self._context
        return fleet_state(
            context.fleet,
            context.drains,
            context.scheduler,
            context.swaps,
            context.queues,
            catalogue=context.catalogue.current,
        )

    def _aliases(self) -> dict[str, Any]:
        health = self._current_health()
        return {key: health.get(key) for key in ("aliases", "catalogue")}

    def _current_health(self) -> dict[str, Any]:
        now = trio.current_time()
        if now >= self._health[0]:
            self._health = (now + HEALTH_VALID_S, self._context.health())
        return self._health[1]
