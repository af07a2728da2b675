"""One batch between gateway and store, on SQLite and PostgreSQL: rows once, sums of budgets exact."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.ledger_rows import an_entry, open_store, totals
from msgspec import structs
from sqlalchemy import insert, select, update

from gateway.access.ledger import exchange as exchange_module
from gateway.access.ledger.exchange import BudgetWindow, Exchange, LedgerWriter
from gateway.access.ledger.prices import Tariff
from gateway.access.limits.amounts import Amounts
from gateway.access.limits.windows import Windows
from gateway.access.store.schema import reservations, usage, usage_daily

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
MIDNIGHT = NOON - 12 * 3600
DAY = BudgetWindow("k1", "tokens", "day", MIDNIGHT)


@pytest.fixture
def database(store_url):
    found = open_store(store_url)
    yield found
    found.close()


def a_writer(gateway_id="g1", tariff=()):
    return LedgerWriter(Windows(UTC), Tariff(tariff, UTC), gateway_id)


def send(database, *entries, writer=None, **more):
    exchange = Exchange(entries, **more)
    return database.write(lambda connection: (writer or a_writer()).write(connection, exchange))


def test_a_row_has_every_field(database):
    entry = an_entry(
        NOON,
        dialect="anthropic",
        outcome="client_disconnected",
        cached_tokens=3,
        reasoning_tokens=4,
        estimated=True,
        queue_ms=1.5,
        load_ms=2.5,
        first_token_ms=3.5,
        gpu_seconds=0.25,
        energy_wh=500.0,
        cost=0.125,
    )
    send(database, entry, writer=a_writer(tariff=[0.3]))
    (row,) = database.read(lambda c: c.execute(select(usage)).mappings().all())
    assert dict(row) == {
        **structs.asdict(entry.entry()),
        "energy_cost": pytest.approx(0.15),
        "day": "2026-11-30",
    }


def test_rows_of_one_batch_may_lack_different_values(database):
    entries = [
        an_entry(NOON, **more) for more in ({}, {"cached_tokens": 3}, {"reasoning_tokens": 4}, {"queue_ms": 0.0})
    ]
    send(database, *entries)
    rows = database.read(lambda c: c.execute(select(usage)).mappings().all())
    stored = [{name: row[name] for name in structs.asdict(entries[0].entry())} for row in rows]
    assert sorted(stored, key=lambda row: row["id"]) == [structs.asdict(entry.entry()) for entry in entries]


def test_a_large_batch_writes_no_temporary_file(tmp_path):
    """There may be no place for one: a container may only write to its volume."""
    database = open_store(f"sqlite:///{tmp_path}/store.db")
    for _ in range(3):  # later rows change pages of earlier ones
        send(database, *(an_entry(NOON + number % 1000) for number in range(3000)))

    def work(connection):
        a_writer().write(connection, Exchange([an_entry(NOON + number * 7 % 1000) for number in range(3000)]))
        return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]

    opened = database.write(work)
    database.close()
    assert any("store.db" in path for path in opened)
    assert not [path for path in opened if "etilqs" in path]


def test_rows_that_are_sent_again_are_neither_doubled_nor_counted_twice(database):
    entries = [an_entry(NOON + number) for number in range(1200)]
    assert send(database, *entries[:1000], wanted=[DAY]).sums == {DAY: 30_000}
    assert send(database, *entries, may_repeat=True, wanted=[DAY]).sums == {DAY: 36_000}
    assert send(database, *entries, may_repeat=True, wanted=[DAY]).sums == {DAY: 36_000}
    assert totals(database) == (1200, 36_000)


@pytest.mark.parametrize(
    ("unit", "expected"), [("tokens", 60), ("money", pytest.approx(0.5)), ("gpu-seconds", pytest.approx(3.0))]
)
def test_sum_of_a_new_budget_begins_with_what_the_ledger_has_of_its_window(database, unit, expected):
    """Rows, and days that were summed; not what is of other keys, or of other times."""
    window = BudgetWindow("k1", unit, "month", datetime(2026, 11, 1, tzinfo=UTC).timestamp())
    sums = dict.fromkeys(("requests", "errors", "cached_tokens", "reasoning_tokens", "estimated", "total_ms"), 1)
    summed = {"key_id": "k1", "alias": "", "model": "", "node": "", "energy_wh": 0, **sums}
    day = {"prompt_tokens": 5, "completion_tokens": 25, "cost": 0.25, "gpu_seconds": 1.5}
    days = [{**summed, **day, "day": name} for name in ("2026-10-31", "2026-11-02")]
    database.write(lambda c: c.execute(insert(usage_daily), days))
    used = {"cost": 0.25, "gpu_seconds": 1.5}
    send(database, an_entry(NOON, **used), an_entry(NOON, "k2", **used), an_entry(NOON - 40 * 86_400, **used))
    assert send(database, wanted=[window]).sums == {window: expected}


def test_sums_count_each_row_in_the_windows_of_its_own_time(database):
    minute = BudgetWindow("k1", "tokens", "minute", NOON)
    before = BudgetWindow("k1", "tokens", "minute", NOON - 60)
    hour = BudgetWindow("k1", "tokens", "hour", NOON)
    other = BudgetWindow("k2", "tokens", "day", MIDNIGHT)
    wanted = [minute, before, hour, DAY, other]
    assert set(send(database, wanted=wanted).sums.values()) == {0}
    entries = [
        an_entry(NOON + 59.9),
        an_entry(NOON - 0.1),
        an_entry(NOON + 60),
        an_entry(NOON, "k2"),
        an_entry(NOON, None),
    ]
    assert send(database, *entries, wanted=wanted).sums == {minute: 30, before: 30, hour: 60, DAY: 90, other: 30}


def test_sums_of_two_gateways_are_one(database):
    first, second = a_writer("g1"), a_writer("g2")
    send(database, an_entry(NOON), writer=first, wanted=[DAY])
    assert send(database, an_entry(NOON), an_entry(NOON), writer=second, wanted=[DAY]).sums == {DAY: 90}
    read = database.read(lambda c: first.read(c, Exchange(wanted=[DAY])))
    assert read.sums == {DAY: 90}


def test_gateways_see_what_the_others_have_reserved_until_they_are_gone(database):
    first, second = a_writer("g1"), a_writer("g2")
    send(database, writer=first, reserved={"k1": Amounts(100, 0.5, 2)})
    seen = send(database, writer=second, reserved={"k1": Amounts(7), "k2": Amounts(1)}, wanted=[DAY])
    assert seen.elsewhere == {"k1": Amounts(100, 0.5, 2)}
    assert send(database, writer=first, wanted=[DAY]).elsewhere == {"k1": Amounts(7, 0, 0), "k2": Amounts(1, 0, 0)}
    send(database, writer=second, reserved={})
    assert send(database, writer=first, wanted=[DAY]).elsewhere == {}
    stale = update(reservations).values(at=time.time() - exchange_module.RESERVATION_STALE_S - 1)
    database.write(lambda c: c.execute(stale))
    assert send(database, writer=second, wanted=[DAY]).elsewhere == {}


def test_text_that_a_database_refuses_does_not_stop_the_batch(database):
    """PostgreSQL takes no zero byte, and no database a lone surrogate. Model names come from neurons."""
    send(
        database,
        an_entry(NOON, model="a\0b"),
        an_entry(NOON, model="\ud800"),
        an_entry(NOON, alias="'; DROP TABLE usage"),
    )
    found = database.read(lambda c: set(c.execute(select(usage.c.model, usage.c.alias)).all()))
    assert len(found) == 3
    assert ("'a\\x00b'", "helexa/small") in found


def test_rows_of_a_batch_are_written_fast(database):
    """A guard against one statement per row, not a measurement."""
    statements = []
    entries = [an_entry(NOON) for _ in range(500)]

    class Counting(LedgerWriter):
        def write(self, connection, exchange):
            real = connection.execute
            connection.execute = lambda *args, **more: statements.append(args) or real(*args, **more)
            return super().write(connection, exchange)

    writer = Counting(Windows(UTC), Tariff((), UTC), "g1")
    send(database, *entries, writer=writer, wanted=[DAY])
    assert len(statements) < 12
