"""Reports over rows and daily sums, on SQLite and PostgreSQL; and how rows become daily sums."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from fakes.ledger_rows import an_entry, open_store, totals
from sqlalchemy import func, insert, select

from gateway.access.ledger import roll_up as roll_up_module
from gateway.access.ledger.exchange import Exchange, LedgerWriter
from gateway.access.ledger.prices import Tariff
from gateway.access.ledger.roll_up import roll_up
from gateway.access.ledger.usage_report import GROUPINGS, UsageQuery, read_usage_report
from gateway.access.limits.windows import Windows
from gateway.access.store.schema import keys, usage

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 11, 30, 12, tzinfo=BERLIN).timestamp()
DAY_S = 86_400


@pytest.fixture
def database(store_url):
    found = open_store(store_url)
    found.write(lambda c: c.execute(insert(keys), [a_key("k1", "alice"), a_key("k2", "bob")]))
    yield found
    found.close()


def a_key(key_id, name, revoked_at=None):
    return {
        "id": key_id,
        "name": name,
        "secret_hash": key_id * 32,
        "may": ["*"],
        "verbs": ["infer"],
        "budgets": [],
        "observe": [],
        "weight": 100,
        "priority": "interactive",
        "created_at": 0,
        "revoked_at": revoked_at,
        "end_streams": False,
    }


def store(database, *entries):
    writer = LedgerWriter(Windows(BERLIN), Tariff([0.25], BERLIN), "g1")
    database.write(lambda c: writer.write(c, Exchange(entries)))


def report(database, by, since=NOON - 7 * DAY_S, until=NOON + DAY_S, key_id=None):
    query = UsageQuery(by, since, until, key_id, "Europe/Berlin")
    return database.read(lambda c: read_usage_report(c, query))


@pytest.fixture
def entries():
    return [
        an_entry(NOON, prompt=1000, completion=500, cost=0.75, energy_wh=40.0, gpu_seconds=2.0, cached_tokens=7),
        an_entry(NOON, prompt=1000, completion=0, outcome="error", status=503, node=None),
        an_entry(NOON - DAY_S, "k2", alias=None, prompt=3, completion=4, estimated=True, reasoning_tokens=2),
        an_entry(NOON - 2 * DAY_S, None, model="other", node="mini", cost=0.0),
    ]


EXPECTED = {
    "key": [("alice", 2, 2500), ("(no key)", 1, 30), ("bob", 1, 7)],
    "alias": [("helexa/small", 3, 2530), ("(no alias)", 1, 7)],
    "model": [("Qwen/Qwen3-1.7B", 3, 2507), ("other", 1, 30)],
    "node": [("beast", 2, 1507), ("(no node)", 1, 1000), ("mini", 1, 30)],
    "day": [("2026-11-28", 1, 30), ("2026-11-29", 1, 7), ("2026-11-30", 2, 2500)],
}


def summary(rows):
    return [(row.name, row.requests, row.prompt_tokens + row.completion_tokens) for row in rows]


@pytest.mark.parametrize("by", GROUPINGS)
@pytest.mark.parametrize("summed_days", [0, 1, 3])
def test_groups_are_the_same_however_many_days_were_summed(database, entries, by, summed_days):
    store(database, *entries)
    midnight = Windows(BERLIN).at("day", NOON).start
    database.write(lambda c: roll_up(c, midnight + DAY_S - (3 - summed_days) * DAY_S))
    assert summary(report(database, by)) == EXPECTED[by]


@pytest.mark.parametrize("is_summed", [False, True])
def test_a_group_has_its_money_energy_and_prices_per_million(database, entries, is_summed):
    store(database, *entries)
    if is_summed:
        database.write(lambda c: roll_up(c, NOON + DAY_S))
    alice = report(database, "key")[0]
    assert (alice.errors, alice.cached_tokens, alice.estimated) == (1, 7, 0)
    assert (alice.cost, alice.energy_cost) == (0.75, pytest.approx(0.01))
    assert (alice.energy_kwh, alice.gpu_seconds) == (pytest.approx(0.04), 2.0)
    if not is_summed:  # daily sums keep no tokens per priced request apart
        assert alice.cost_per_million_tokens == pytest.approx(500)
        assert alice.energy_cost_per_million_tokens == pytest.approx(0.01 / 1500 * 1e6)
        bob = next(row for row in report(database, "key") if row.name == "bob")
        assert (bob.cost, bob.cost_per_million_tokens, bob.estimated, bob.reasoning_tokens) == (0, None, 1, 2)


def test_a_report_of_one_key_has_nothing_of_others(database, entries):
    store(database, *entries)
    database.write(lambda c: roll_up(c, NOON - DAY_S / 2))
    for by in GROUPINGS:
        assert sum(row.requests for row in report(database, by, key_id="k2")) == 1


def test_times_bound_the_report(database, entries):
    store(database, *entries)
    assert summary(report(database, "key", since=NOON)) == [("alice", 2, 2500)]
    assert summary(report(database, "key", until=NOON - DAY_S)) == [("(no key)", 1, 30)]
    assert report(database, "day", since=NOON + 1) == []


def test_a_name_that_was_used_again_after_its_key_was_revoked_stays_apart(database, entries):
    database.write(lambda c: c.execute(insert(keys), [a_key("k0", "alice", revoked_at=1.0), a_key("k9", "eve", 1.0)]))
    store(database, an_entry(NOON, "k0"), an_entry(NOON, "k9"), an_entry(NOON, "k7", prompt=99), entries[0])
    assert [row.name for row in report(database, "key")] == ["alice", "k7", "alice (k0)", "eve"]


def test_rows_become_daily_sums_in_portions_and_each_counts_once(database, monkeypatch):
    monkeypatch.setattr(roll_up_module, "PORTION_ROWS", 7)
    entries = [an_entry(NOON - number * 3600) for number in range(100)]
    store(database, *entries)
    portions = 1
    while database.write(lambda c: roll_up(c, NOON - DAY_S)):
        portions += 1
        assert totals(database) == (100, 3000)
    assert portions == 11
    assert database.read(lambda c: c.execute(select(func.count()).select_from(usage)).scalar()) == 25
    assert totals(database) == (100, 3000)
    store(database, an_entry(NOON - 2 * DAY_S))  # a row that was on a spool file for days
    assert not database.write(lambda c: roll_up(c, NOON - DAY_S))
    assert totals(database) == (101, 3030)
    assert sum(row.requests for row in report(database, "day")) == 101
