"""How many function calls a request and a chunk cost. The count is free of noise, unlike any time on a shared machine.

The budget was measured with Python 3.11. A change that needs more calls either finds others to save,
or raises the budget here on purpose. After it, `python -m fakes.call_counts --write` stores the new table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.call_counts import STORED

ROOT = Path(__file__).resolve().parents[3]

BUDGET = {"plain": 481, "keyed": 506, "stream": 1925, "new_stream": 1200, "chunk": 30, "lone_chunk": 90}
"""Calls per request, per stream of ten chunks, and per chunk: ours, Trio's, built-in functions, all of them.

Five calls of a stream differ from run to run: by when deadlines are moved, and when ids and Trio's heap are refilled.

A new stream has one chunk. It is one of twenty that start at the same time, each over two new connections.
A chunk is one of twenty that arrive at the same time; a lone one has the wake-up of the pump's task for itself.
"""


@pytest.fixture(scope="module")
def measured():
    """Measured in a process of its own: the log and the garbage collector are set as in production."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "fakes.call_counts", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", BUDGET)
def test_calls_stay_within_the_budget(measured, kind):
    calls = sum(measured[kind].values())
    assert calls <= BUDGET[kind], f"{calls:.0f} calls, and the budget is {BUDGET[kind]}. {grown(kind, measured[kind])}"


def grown(kind, table):
    """What has grown since the table was stored, most first."""
    stored = json.loads(STORED.read_text())[kind]
    more = {name: count - stored.get(name, 0) for name, count in table.items() if count - stored.get(name, 0) >= 0.1}
    lines = [f"{count:+.1f} {name}" for name, count in sorted(more.items(), key=lambda item: -item[1])]
    return "\n".join(["Grown:", *lines[:30]])


def test_failure_names_the_function_that_grew():
    stored = json.loads(STORED.read_text())["plain"]
    name = next(iter(stored))
    assert f"+3.0 {name}" in grown("plain", stored | {name: stored[name] + 3})
