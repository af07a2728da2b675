"""What happens when the neurons change: the fleet takes them in or lets them go, and the audit log gets a line."""

from __future__ import annotations

from collections.abc import Callable

from catalogue.toml.faults import Fault
from gateway.fleet.control.membership import FleetMembership
from gateway.server.neurons.neuron_store import NeuronChange, NeuronStore

__all__ = ["NeuronRecords"]

EVENT = "neurons"  # of the lines in the audit log


class NeuronRecords:
    """Connects a store to a fleet and an audit log.

    Args:
        store: Notifies of changes and rejections.
        membership: Changes the fleet.
        record: `Auditor.record_action`.
    """

    def __init__(self, store: NeuronStore, membership: FleetMembership, *, record: Callable[..., None]) -> None:
        self._membership = membership
        self._record = record
        self._last_rejection: tuple[Fault, ...] | None = None
        store.subscribe(self._changed)
        store.subscribe_to_rejections(self._rejected)

    def _changed(self, change: NeuronChange) -> None:
        self._last_rejection = None
        self._membership.apply(change.new)
        hashes = {"before": change.before, "neurons_file": change.digest}
        self._record(EVENT, change.who, summary=str(change), outcome="in force", diff=change.as_json(), **hashes)

    def _rejected(self, faults: tuple[Fault, ...], who: str) -> None:
        if faults == self._last_rejection:
            return  # the same file with the same faults was read again
        self._last_rejection = faults
        faults_json = [fault.as_json() for fault in faults]
        outcome = "refused; the neurons in force stay"
        self._record(EVENT, who, summary=str(faults[0]), outcome=outcome, faults=faults_json)
