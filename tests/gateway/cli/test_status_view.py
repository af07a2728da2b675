"""What `cortex status` prints of hosts and loads, from the JSON of the admin API; what `cortex audit verify` prints."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from gateway.aliases.files.audit_log import Verification
from gateway.cli.views import status_view
from gateway.cli.views.audit_view import verification_lines
from gateway.cli.views.problems_view import problem_lines


def printed(what: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def a_load(**more: Any) -> dict[str, Any]:
    usual = {"node": "beast", "model": "m", "elapsed_s": 12.0, "estimate_s": 30.0, "waiters": 2, "overdue": False}
    return usual | {"wakes": False, "progress": 0.4} | more


def test_watts_of_a_device_are_shown() -> None:
    """And a dash where the neuron does not know them."""
    devices = [{"name": "H200", "vram_used_mb": 1, "vram_total_mb": 2, "power_w": power_w} for power_w in (249.6, None)]
    node = {"name": "beast", "healthy": True, "models": [], "devices": devices, "leases": 0, "kind": "neuron"}

    shown = printed(status_view.neurons_table({"nodes": [node], "drains": [{"node": "beast", "state": "open"}]}))

    first, second = (line for line in shown.splitlines() if "H200" in line)
    assert "250" in first
    assert "250" not in second


def test_progress_of_loads_and_wakes_is_shown() -> None:
    shown = printed(status_view._loads([a_load(), a_load(model="n", wakes=True), a_load(model="o", progress=None)]))

    rows = {line.split()[0]: line for line in shown.splitlines() if "beast" in line}
    assert "40% " in rows["m"]
    assert "waking" not in rows["m"]
    assert "40%, waking" in rows["n"]
    assert "%" not in rows["o"]


def test_problems_with_the_same_reason_share_a_line() -> None:
    """Every neuron is down: each alias has the same reason, once for all. Others keep their own line."""
    reason = "no healthy nodes available: beast: Connection refused"
    problems = [
        {"code": "node_down", "subject": "beast", "text": "Connection refused", "since": 0.0},
        *({"code": "alias_unservable", "subject": f"a{n}", "text": reason, "since": 60.0 - n} for n in range(10)),
        *({"code": "model_unservable", "subject": f"m{n}", "text": reason, "since": 60.0} for n in range(2)),
        {"code": "model_unservable", "subject": "other", "text": "another reason", "since": 60.0},
    ]
    lines = [line.plain for line in problem_lines(problems)]
    assert [line.split("since")[0].strip() for line in lines] == [
        "node_down  beast",
        "alias_unservable  a0, a1, a2, a3, a4, a5, a6, a7 and 2 more",
        "model_unservable  m0, m1",
        "model_unservable  other",
    ]
    assert [line.count(reason) for line in lines] == [0, 1, 1, 0]


def test_reason_of_a_status_is_its_first_line() -> None:
    replica = {"progress": None, "reason": "crashed 4 times\nlast lines"}

    assert status_view._state("poisoned", replica) == "poisoned: crashed 4 times"
    assert status_view._state("loading", {"progress": 0.25, "reason": None}) == "loading 25%"


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [(1, 1, "log: 1 line, number 1, is intact"), (1, 3, "log: 3 lines, numbers 1 to 3, are intact")],
)
def test_intact_audit_log_in_words(first: int, last: int, text: str) -> None:
    verification = Verification(lines=last, first=first, last=last)
    assert next(verification_lines("log", verification)) == text
