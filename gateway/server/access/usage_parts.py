"""Limits, budgets and the ledger of one gateway, built from its settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

from catalogue.source import CatalogueSource
from gateway.access.keys.key import Key
from gateway.access.ledger.exchange import LedgerWriter
from gateway.access.ledger.ledger import Ledger
from gateway.access.ledger.prices import Tariff
from gateway.access.limits.limit import Limits
from gateway.access.limits.limiter import Limiter
from gateway.access.limits.windows import Windows, zone_of
from gateway.access.store.store import Store
from gateway.aliases.files.catalogue_files import state_directory
from gateway.config.settings import Settings
from gateway.proxy.accounts.accounting import Accounting
from gateway.server.access.usage_routes import UsageReports

__all__ = ["UsageParts"]


class UsageParts:
    """What a gateway needs to limit and to account.

    Args:
        settings: The gateway's.
        store: Where the ledger is.
        catalogue: The prices of models.
        keys: Returns every key in force.
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
        *,
        store: Store,
        catalogue: CatalogueSource,
        keys: Callable[[], Iterable[Key]],
        count_exceeded: Callable[[str, bool], object],
    ) -> None:
        ledger, defaults = settings.ledger, settings.access.limits
        zone = zone_of(ledger.timezone)
        self.limiter = Limiter(
            defaults=Limits(rpm=defaults.rpm, tpm=defaults.tpm, concurrency=defaults.concurrency),
            windows=Windows(zone),
            currency=ledger.currency,
            count_exceeded=count_exceeded,
        )
        self.ledger: Ledger | None = None
        if ledger.keep_days:
            writer = LedgerWriter(Windows(zone), Tariff(settings.energy.tariff, zone), secrets.token_hex(8))
            self.ledger = Ledger(
                store,
                writer,
                self.limiter,
                directory=state_directory(settings),
                keep_days=ledger.keep_days,
                keys=keys,
            )
        self.accounting = Accounting(self.limiter, catalogue, self.ledger)
        self.reports = UsageReports(store, self.limiter, ledger.currency, ledger.timezone)
