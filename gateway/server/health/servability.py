"""Which configured models and aliases cannot be served now, and why. The rules are those of routing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from catalogue.models import Alias, Catalogue
from gateway.errors import GatewayError
from gateway.fleet.loading.backoff import FailedLoadView
from gateway.fleet.model_names import catalogue_id
from gateway.fleet.routing.choose import ColdLoad, choose
from gateway.fleet.state import Fleet

__all__ = ["Servability"]

REASON_VALID_S = 1.0  # circuit breakers and back-offs end by time alone, which changes no version of the fleet

_Answers: TypeAlias = tuple[dict[str, str], dict[str, str]]  # models and aliases that cannot be served, with reasons


class Servability:
    """Answers from the fleet and the catalogue of the moment. Keeps the answers until either changes, or for 1 s.

    Args:
        fleet: The fleet.
        catalogue: Returns the catalogue in force.
        failed_loads: Returns the pairs of neuron and model whose last load failed.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        catalogue: Callable[[], Catalogue],
        failed_loads: Callable[[], Iterable[FailedLoadView]],
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._failed_loads = failed_loads
        self._answers: _Answers = ({}, {})
        self._reasons: dict[str, str | None] = {}
        self._valid_for: tuple[Catalogue, int] | None = None
        self._valid_until = 0.0

    def models(self) -> dict[str, str]:
        """The models that cannot be served, or that a healthy neuron holds and cannot serve; with the reason."""
        return self._current()[0]

    def aliases(self) -> dict[str, str]:
        """The aliases of which a target with a weight above 0 cannot be served; with the reason."""
        return self._current()[1]

    def is_servable(self, model: str) -> bool:
        """Whether a request for the model would be answered now, or after a load."""
        self._current()
        return self._why_not(model) is None

    def can_serve(self, alias: Alias) -> bool:
        """Whether a request for the alias would be answered: by a target, or by a fallback."""
        return any(map(self.is_servable, (*alias.active, *alias.fallback)))

    def anything(self) -> bool:
        """Whether any request can be answered. A neuron without models, and no catalogue, counts as able to."""
        if not self._fleet.any_open():
            return False
        catalogue = self._catalogue()
        names = {*catalogue.models, *(model for alias in catalogue.aliases.values() for model in alias.active)}
        names |= {catalogue_id(model, catalogue) for node in self._fleet.nodes.values() for model in node.models}
        return not names or any(map(self.is_servable, names))

    def _current(self) -> _Answers:
        key, now = (self._catalogue(), self._fleet.version), self._fleet.now()
        # The catalogue is compared by identity: its generation number is not unique among catalogues.
        is_valid = self._valid_for is not None and self._valid_for[0] is key[0] and self._valid_for[1] == key[1]
        if not is_valid or now >= self._valid_until:
            self._valid_for, self._valid_until = key, now + REASON_VALID_S
            self._reasons = {}
            self._answers = (dict(self._find_models()), dict(self._find_aliases()))
        return self._answers

    def _find_models(self) -> Iterator[tuple[str, str]]:
        unservable = dict(_held_unservable(self._fleet, self._catalogue()))
        for model in sorted({*self._catalogue().models, *unservable}):
            reason = self._why_not(model) if model in self._catalogue().models else None
            if reason is not None or model in unservable:
                yield model, reason or unservable[model]

    def _find_aliases(self) -> Iterator[tuple[str, str]]:
        for name, alias in sorted(self._catalogue().aliases.items()):
            reasons = [reason for model in sorted(alias.active) if (reason := self._why_not(model)) is not None]
            if not reasons:
                continue
            text = "; ".join(dict.fromkeys(reasons))
            fallback = next((model for model in alias.fallback if self._why_not(model) is None), None)
            yield name, text if fallback is None else f"{text}; its requests fall back to {fallback}"

    def _why_not(self, model: str) -> str | None:
        if model not in self._reasons:
            self._reasons[model] = self._find_reason(model)
        return self._reasons[model]

    def _find_reason(self, model: str) -> str | None:
        try:
            decision = choose(model, self._fleet, self._catalogue())
        except GatewayError as error:
            return error.message
        if not isinstance(decision, ColdLoad):
            return None
        failed = {load.node: load for load in self._failed_loads() if load.model == model and load.retry_in_s > 0}
        if any(candidate.node not in failed for candidate in decision.candidates):
            return None
        reasons = "; ".join(f"{load.node}: {load.reason}" for load in failed.values())
        return f"model '{model}' could not be loaded: {reasons}"


def _held_unservable(fleet: Fleet, catalogue: Catalogue) -> Iterator[tuple[str, str]]:
    """The models that a healthy neuron holds and reports as not servable."""
    for node in fleet.nodes.values():
        for replica in node.models.values():
            if node.healthy and not replica.servable:
                reason = replica.report and replica.report.servable_reason
                text = f"{node.name} holds it and cannot serve it{f': {reason}' if reason else ''}"
                yield catalogue_id(replica.id, catalogue), text
