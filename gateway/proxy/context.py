"""The collaborators that all requests share. One `ProxyContext` exists per gateway; `server/main.py` builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from catalogue.source import CatalogueSource
from gateway.access.admission import Access
from gateway.config.settings import Settings
from gateway.errors import ShuttingDown
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.routing.queue import AdmissionQueues
from gateway.fleet.state import Fleet
from gateway.http.pool import UpstreamPool
from gateway.proxy.accounts.accounting import Accounting
from gateway.proxy.hedging.hedge_policy import HedgePolicy
from gateway.proxy.shadow.shadower import Shadower
from gateway.telemetry.request_log import RequestLog

__all__ = ["ProxyContext", "shutting_down"]

SHUTTING_DOWN_RETRY_S = 5  # a restart behind a load balancer takes about this long


@dataclass(frozen=True, slots=True)
class ProxyContext:
    """What the request path uses, and nothing else.

    Args:
        settings: The gateway's configuration.
        catalogue: Each request reads the snapshot in force once, when it is resolved.
        fleet: The neurons, their models, leases and circuit breakers.
        upstream: The connections to the neurons.
        admission: The queue of each model.
        scheduler: Loads models.
        request_log: Opens a record for each request.
        poll_soon: Asks the poller to poll the named node now.
        hedge_policy: When a request of an alias with `hedge` is sent to a second replica.
        secret_key: The gateway's own, of which copies of it have the same.
        access: Checks keys. The default lets every request pass that has none.
        accounting: Limits keys, and enters requests in the ledger; None if neither is done.
        shadows: None if no request is ever shadowed.
        draining: Set when the gateway begins to shut down.
    """

    settings: Settings
    catalogue: CatalogueSource
    fleet: Fleet
    upstream: UpstreamPool
    admission: AdmissionQueues
    scheduler: LoadScheduler
    request_log: RequestLog
    poll_soon: Callable[[str], None]
    hedge_policy: HedgePolicy
    secret_key: bytes = field(repr=False)
    access: Access = field(default_factory=Access)
    accounting: Accounting | None = None
    shadows: Shadower | None = None
    draining: trio.Event = field(default_factory=trio.Event)


def shutting_down() -> ShuttingDown:
    """The error for a request that arrives, or still waits for a replica, while the gateway drains."""
    return ShuttingDown("this gateway is shutting down", retry_after_s=SHUTTING_DOWN_RETRY_S)
