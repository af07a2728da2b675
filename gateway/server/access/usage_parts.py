"""Limits, budgets and the ledger of one gateway, built from its settings."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from catalogue.source import CatalogueSource
from gateway.access.ledger.exchange import LedgerWriter
from gateway.access.ledger.ledger import Ledger
from gateway.access.ledger.prices import Tariff
from gateway.access.limits.limit import Limits
from gateway.access.limits.limiter import Limiter
from gateway.access.limits.windows import Windows, zone_of
from gateway.aliases.files.catalogue_files import state_directory
from gateway.config.settings import Settings
from gateway.proxy.accounts.accounting import Accounting
from gateway.server.access.parts import AccessParts
from gateway.server.access.usage_routes import UsageReports

__all__ = ["UsageParts"]


class UsageParts:
    """What a gateway needs to limit and to account.

    Args:
        settings: The gateway's.
        access: Has the store and the keys, and runs the ledger.
        catalogue: The prices of models.
        running: Returns how many requests run.
        count_exceeded: Counts limits that were exceeded, by limit and whether it is enforced.

    Attributes:
        limiter: The use of every key.
        ledger: None with `[ledger] keep_days = 0`. Then budgets count what this process has seen.
        accounting: For the request path.
        reports: For the routes.
    """

    def __init__(
        self,
        settings: Settings,
        access: AccessParts,
        *,
        catalogue: CatalogueSource,
        running: Callable[[], int],
        count_exceeded: Callable[[str, bool], object],
    ) -> None:
        ledger, defaults = settings.ledger, settings.access.limits
        zone = zone_of(ledger.timezone)
        self.limiter = Limiter(
            defaults=Limits(rpm=defaults.rpm, tpm=defaults.tpm, concurrency=defaults.concurrency),
            windows=Windows(zone),
            currency=ledger.currency,
            count_exceeded=count_exceeded,
            clock=time.perf_counter,  # what Trio's clock reads too, through three more calls
        )
        self.ledger: Ledger | None = None
        if ledger.keep_days:
            writer = LedgerWriter(Windows(zone), Tariff(settings.energy.tariff, zone), secrets.token_hex(8))
            self.ledger = Ledger(
                access.store,
                writer,
                self.limiter,
                directory=state_directory(settings),
                keep_days=ledger.keep_days,
                keys=access.keys_in_force,
                running=running,
            )
        access.ledger = self.ledger
        self._table = access.access.table
        self.accounting = Accounting(self.limiter, catalogue, self.ledger)
        self.reports = UsageReports(access.store, self.limiter, ledger.currency, ledger.timezone)

    def use_of(self, key_id: str) -> dict[str, Any] | None:
        """How near a key is to its limits, for operators; None for one that was revoked."""
        stored = self._table.by_id(key_id)
        return None if stored is None or stored.key.revoked_at is not None else self.limiter.view(stored.key)
