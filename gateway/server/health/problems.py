"""What is wrong with this gateway and its fleet: a list of problems with a code, a subject and the time they began.

`/health` and `cortex status` show the list, and the log has a line when a problem begins and when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import structlog
import trio

from gateway.access.ledger.ledger import Ledger
from gateway.access.store.store import Store
from gateway.aliases.auditor import AuditStatus
from gateway.aliases.files.rollout_state import Rollout
from gateway.aliases.warm_swap import SwapView
from gateway.fleet.node import Node
from gateway.fleet.state import Fleet
from gateway.http.server_tls.certificate_store import CertificateStore
from gateway.server.health.body import CatalogueStatus
from gateway.server.health.servability import Servability

__all__ = ["HealthProblem", "ProblemList", "find_problems"]

LOOK_INTERVAL_S = 1.0  # how late `since` may be when no request asks for the list

ProblemCode: TypeAlias = Literal[
    "node_down",
    "node_drained",
    "alias_unservable",
    "model_unservable",
    "file_not_in_force",
    "swap_failed",
    "rollout_rolled_back",
    "audit_unwritable",
    "history_unwritable",
    "ledger_behind",
    "certificate_not_in_force",
    "certificate_expires",
]

log = structlog.get_logger("cortex.problems")


@dataclass(frozen=True, slots=True)
class HealthProblem:
    """One problem. `subject` is the neuron, model, alias or file. `since` is in unix seconds; 0 until it is listed."""

    code: ProblemCode
    subject: str
    text: str
    since: float = 0.0


class ProblemList:
    """The problems now. Remembers when each began.

    Args:
        find: Returns the problems of this moment; called synchronously.
        unix_time: Returns seconds since 1970.
    """

    def __init__(
        self, find: Callable[[], Iterable[HealthProblem]], *, unix_time: Callable[[], float] = time.time
    ) -> None:
        self._find = find
        self._unix_time = unix_time
        self._known: dict[tuple[str, str], HealthProblem] = {}

    def current(self) -> list[HealthProblem]:
        """Every problem, in the order in which `find` returns them."""
        now = self._unix_time()
        found: dict[tuple[str, str], HealthProblem] = {}
        for problem in self._find():
            key = (problem.code, problem.subject)
            before = self._known.get(key)
            found.setdefault(
                key, HealthProblem(problem.code, problem.subject, problem.text, now if before is None else before.since)
            )
        began = [problem for key, problem in found.items() if key not in self._known]
        ended = [problem for key, problem in self._known.items() if key not in found]
        self._known = found
        for problem in began:
            log.warning("problem", code=problem.code, subject=problem.subject, text=problem.text)
        for problem in ended:  # also a warning: a log of warnings only must show that the problem is over
            lasted_s = round(max(0.0, now - problem.since), 1)
            log.warning("problem_over", code=problem.code, subject=problem.subject, lasted_s=lasted_s)
        return list(found.values())

    def as_json(self) -> list[dict[str, Any]]:
        """`current` for JSON."""
        return [asdict(problem) for problem in self.current()]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for problems until cancelled, so that each has the time at which it began. Started at once."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            self.current()


def find_problems(
    fleet: Fleet,
    servability: Servability,
    *,
    catalogue: CatalogueStatus,
    swaps: Iterable[SwapView],
    rolled_back: Iterable[Rollout],
    audit: AuditStatus,
    certificates: CertificateStore | None = None,
    unwritable: Iterable[tuple[str, str]] = (),
    rejected: Iterable[tuple[str, str]] = (),
    store: Store | None = None,
    ledger: Ledger | None = None,
) -> Iterator[HealthProblem]:
    """The problems of this moment, the most urgent kinds first.

    Args:
        fleet: The neurons.
        servability: Which models and aliases can be served.
        catalogue: The catalogue in force, and the faults of the file on disk.
        swaps: The aliases that are not at their new targets yet.
        rolled_back: The rollouts that were rolled back and that no operator has acknowledged.
        audit: The state of the audit log and of the history.
        certificates: Those of our ports, if they have TLS.
        unwritable: Path and reason of every other state file that cannot be written.
        rejected: Path and text of every other file on disk that is not in force.
        store: Keys and usage.
        ledger: The rows that wait to be written.
    """
    for node in fleet.nodes.values():
        yield from _node_problems(node)
    yield from _file_problems(catalogue)
    yield from (HealthProblem("file_not_in_force", path, text) for path, text in rejected)
    for name, reason in servability.aliases().items():
        yield HealthProblem("alias_unservable", name, reason)
    for swap in swaps:
        if swap.state == "failed":
            text = f"stays on {swap.in_force}: {swap.wanted} could not be warmed: {swap.reason}"
            yield HealthProblem("swap_failed", swap.alias, text)
    for rollout in rolled_back:
        text = f"the rollout to {rollout.target} was rolled back: {rollout.reason}"
        yield HealthProblem("rollout_rolled_back", rollout.alias, text)
    for name, reason in servability.models().items():
        yield HealthProblem("model_unservable", name, reason)
    yield from _state_problems(audit, unwritable)
    yield from _certificate_problems(certificates)
    if store is not None:
        behind = None if ledger is None else ledger.problem
        if store.error is not None:
            behind = f"{behind or store.error}; the keys read last stay in force"
        if behind is not None:
            yield HealthProblem("ledger_behind", store.name, behind)


def _node_problems(node: Node) -> Iterator[HealthProblem]:
    if not node.healthy and (node.misses or node.ever_answered):  # else it is new, and is being polled now
        reason = node.failure or "it has not answered yet"
        yield HealthProblem("node_down", node.name, f"{node.endpoint} is down: {reason}")
    if node.draining:
        yield HealthProblem("node_drained", node.name, f"gets no new requests; `cortex undrain {node.name}` ends that")


def _file_problems(catalogue: CatalogueStatus) -> Iterator[HealthProblem]:
    if catalogue["error"] is not None:
        text = f"generation {catalogue['generation']} stays in force: {catalogue['error']['message']}"
        yield HealthProblem("file_not_in_force", catalogue["path"] or "models.toml", text)


def _certificate_problems(certificates: CertificateStore | None) -> Iterator[HealthProblem]:
    if certificates is None:
        return
    path = str(certificates.files.cert)
    if certificates.error is not None:
        yield HealthProblem("certificate_not_in_force", path, f"the certificate in force stays: {certificates.error}")
    if (expiry := certificates.expiry_problem()) is not None:
        yield HealthProblem("certificate_expires", path, expiry)


def _state_problems(audit: AuditStatus, unwritable: Iterable[tuple[str, str]]) -> Iterator[HealthProblem]:
    if audit["error"] is not None:
        lost = f", {audit['lost']} are lost" if audit["lost"] else ""
        text = f"{audit['error']}; {audit['pending']} lines wait to be written{lost}"
        yield HealthProblem("audit_unwritable", audit["path"], text)
    if audit["history_error"] is not None:
        text = f"{audit['history_error']}; a rollback to the file in force is not possible"
        yield HealthProblem("history_unwritable", audit["history"], text)
    for path, reason in unwritable:
        yield HealthProblem("history_unwritable", path, reason)
