"""Where the catalogue in force is asked for. The watcher's keeper is one; so is whatever a test says."""

from __future__ import annotations

from typing import Protocol

from catalogue.models import Catalogue

__all__ = ["CatalogueSource"]


class CatalogueSource(Protocol):
    """Whoever holds the catalogue in force."""

    @property
    def current(self) -> Catalogue:
        """The snapshot now. Who decides once takes it once and keeps it; who waits asks again."""
        ...
