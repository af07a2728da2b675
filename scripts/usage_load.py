"""Compare the ledger with what clients counted, under load: to the token, key by key. Exit code 1 if they differ.

    .venv/bin/python scripts/usage_load.py                  200 keys, 50 streams, 1,000 small requests/s for 20 s
    … --rate 500 --requests 5000                            another load
    … --store postgresql://…                                another store than SQLite; it must have no tables of cortex

Needs `rustc`. Starts the kit's mock upstream, one `cortex serve` in keys mode and the kit's `usage`, on loopback. Every
key has rpm, tpm, concurrency and a budget. The rate is reached only if the machine has a core to spare for the clients
and the upstream; the comparison holds at any rate.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from perf import KEYS, wait_until_ready
from perf_kit import ROOT, Process, build, cortex_command, cpu_s, found, free_ports, mock, need, one, run

from gateway.access.keys.key_changes import KeyChanges
from gateway.access.ledger.usage_report import UsageQuery, read_usage_report
from gateway.access.store.database import Database

LEDGER_S = 30  # for the last rows to arrive
Counts = dict[str, tuple[int, int, int]]
"""Requests, prompt tokens and completion tokens by the name of the key."""


def main() -> int:
    """Run the load, print the comparison; returns the exit code."""
    options = parse_options()
    need("rustc")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        build(home, "mock", "usage")
        database = Database(options.store or f"sqlite:///{home / 'usage.db'}", home)
        secrets = create_keys(database, options.keys)
        upstream = stack.enter_context(mock(home))
        port, metrics_port = free_ports(2)
        settings = f'{KEYS}[store]\nurl = "{options.store or f"sqlite:///{database.path}"}"\n'
        command = cortex_command(home / "cortex", port, metrics_port, upstream.port, settings)
        gateway = stack.enter_context(one("cortex", port, command, ROOT))
        wait_until_ready(gateway)
        return compare(home, database, gateway, secrets, options)


def parse_options() -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--streams", type=int, default=50, help="at a time, of 20 chunks each")
    parser.add_argument("--clients", type=int, default=32, help="connections of small requests")
    parser.add_argument("--rate", type=int, default=1000, help="small requests per second")
    parser.add_argument("--requests", type=int, default=20_000, help="small requests in all")
    parser.add_argument("--store", metavar="URL", help="the gateway's store; default: an SQLite file")
    return parser.parse_args()


def create_keys(database: Database, count: int) -> dict[str, str]:
    """Secrets by the names of new keys."""
    database.upgrade()
    changes = KeyChanges()
    fields = [{"name": f"key {number}", "budgets": ["tokens 1G/month"]} for number in range(count)]
    created = database.write(lambda connection: [changes.create(connection, each) for each in fields])
    return {key["name"]: key["secret"] for key in created}


def compare(
    home: Path, database: Database, gateway: Process, secrets: dict[str, str], options: argparse.Namespace
) -> int:
    """Run the clients, wait until the ledger has as many rows, print both sums; returns the exit code."""
    keys = home / "keys"
    keys.write_text("\n".join(secrets.values()) + "\n", encoding="utf-8")
    load = (options.streams, options.clients, options.rate, options.requests)
    began, before_s = time.time(), cpu_s(gateway.pid)
    summary, *lines = run([str(home / "usage"), str(gateway.port), str(keys), *map(str, load)]).splitlines()
    used_s = cpu_s(gateway.pid) - before_s
    print(summary)
    small, took_s = found(r"small (\d+) in ([\d.]+) s", summary).groups()
    bad = int(found(r"bad (\d+)", summary)[1])
    per_key = [tuple(map(int, line.split())) for line in lines]
    counted: Counts = {name: (a, b, c) for name, (a, b, c) in zip(secrets, per_key, strict=True) if a}
    ledger = ledger_of(database, began, sum(row[0] for row in counted.values()))
    streams = found(r"streams (\d+)", summary)[1]
    print(f"small requests/s reached: {int(small) / float(took_s):.0f} of {options.rate}, beside {streams} streams")
    print(f"CPU of the gateway: {used_s:.1f} s of {took_s} s")
    for name, of in (("clients", counted), ("ledger", ledger)):
        requests, prompt, completion = (sum(column) for column in zip(*of.values(), strict=True))
        print(f"{name:8} {len(of)} keys, {requests:,} requests, {prompt:,} + {completion:,} tokens")
    differing = [name for name in counted.keys() | ledger.keys() if counted.get(name) != ledger.get(name)]
    is_slow = int(small) < 0.98 * options.rate * float(took_s)
    print(f"failed requests: {bad}; rate reached: {'no' if is_slow else 'yes'}; keys that differ: {len(differing)}")
    print("the ledger equals what the clients counted" if not differing else "THE LEDGER DIFFERS")
    return 1 if differing or bad else 0


def ledger_of(database: Database, since: float, rows: int) -> Counts:
    """What the ledger has once it has that many rows, or after `LEDGER_S`."""
    deadline = time.monotonic() + LEDGER_S
    while True:
        query = UsageQuery("key", since - 1, time.time() + 1)
        report = database.read(partial(read_usage_report, query=query))
        if sum(row.requests for row in report) >= rows or time.monotonic() > deadline:
            time.sleep(1)  # for a row too many
            report = database.read(partial(read_usage_report, query=query))
            return {row.name: (row.requests, row.prompt_tokens, row.completion_tokens) for row in report}
        time.sleep(0.25)


if __name__ == "__main__":
    sys.exit(main())
