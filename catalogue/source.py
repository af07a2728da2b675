"""How a component gets the catalogue in force."""

from __future__ import annotations

from typing import Protocol

from catalogue.models import Catalogue

__all__ = ["CatalogueSource"]


class CatalogueSource(Protocol):
    """The owner of the catalogue in force. In the gateway it is `gateway.aliases.catalogue_store`."""

    @property
    def current(self) -> Catalogue:
        """The snapshot now. Keep it for one decision; read it again after a wait."""
        ...
