"""Whether the fleet can serve a model now: the answer that warm swaps and the catalogue store wait for. No I/O."""

from __future__ import annotations

from catalogue.models import Catalogue
from gateway.fleet.model_names import replicas_of
from gateway.fleet.state import Fleet

__all__ = ["FleetReadiness"]


class FleetReadiness:
    """The fleet as a `catalogue.warming.Readiness`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def is_servable(self, model: str, catalogue: Catalogue) -> bool:
        """Whether a request for the model could be sent to a neuron now."""
        return bool(replicas_of(model, self._fleet, catalogue))

    def is_proven(self, model: str, catalogue: Catalogue) -> bool:
        """Whether a replica has answered a request since it was loaded, and its circuit breaker is closed."""
        return any(replica.proven and replica.breakers_closed for replica in replicas_of(model, self._fleet, catalogue))
