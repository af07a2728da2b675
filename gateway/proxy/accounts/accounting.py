"""What all request accounts of one gateway share."""

from __future__ import annotations

from catalogue.source import CatalogueSource
from gateway.access.ledger.entry import SharedValues, row_ids
from gateway.access.ledger.ledger import Ledger
from gateway.access.limits.limiter import Limiter

__all__ = ["Accounting"]


class Accounting:
    """Where request accounts reserve, find prices, and enter what was used.

    Args:
        limiter: The use of every key.
        catalogue: The prices of models.
        ledger: Takes an entry per request; None for none.

    Attributes:
        new_row_id: Returns another id at each call.
        last_shared: What the last row shares with others.
    """

    __slots__ = ("catalogue", "last_shared", "ledger", "limiter", "new_row_id")

    def __init__(self, limiter: Limiter, catalogue: CatalogueSource, ledger: Ledger | None = None) -> None:
        self.limiter = limiter
        self.catalogue = catalogue
        self.ledger = ledger
        self.new_row_id = row_ids()
        self.last_shared: SharedValues | None = None
