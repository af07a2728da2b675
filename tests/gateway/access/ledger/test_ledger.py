"""The ledger's task with a real store, SQLite and PostgreSQL: batches, a store that is gone, and several gateways."""

import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio
import trio.testing
from fakes.ledger_rows import an_entry, open_store, totals
from fakes.patience import SAFETY_NET_S
from fakes.reservations import reserved

from gateway import errors
from gateway.access.keys.key import Key
from gateway.access.ledger import ledger as ledger_module
from gateway.access.ledger.exchange import LedgerWriter
from gateway.access.ledger.ledger import Ledger
from gateway.access.ledger.prices import Tariff
from gateway.access.ledger.spool_file import SpoolFile, abandoned_spools
from gateway.access.limits.amounts import Amounts
from gateway.access.limits.limit import Budget, Limits
from gateway.access.limits.limiter import Limiter
from gateway.access.limits.windows import Windows
from gateway.access.store.database import Database, StoreUnavailable
from gateway.access.store.store import Store

HERE = Path("/nonexistent")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(ledger_module, "BATCH_S", 0.01)
    monkeypatch.setattr(ledger_module, "RETRY_S", 0.02)
    monkeypatch.setattr(ledger_module, "ADOPT_S", 0.02)


@pytest.fixture
def database(store_url):
    found = open_store(store_url)
    yield found
    found.close()


class OneGateway:
    """The part of a gateway that accounts."""

    def __init__(self, url, directory, keys=(), keep_days=90, zone=UTC):
        self.store = Store(Database(url, HERE))
        self.limiter = Limiter(windows=Windows(zone))
        writer = LedgerWriter(Windows(UTC), Tariff((), UTC), f"gateway {id(self)}")
        self.ledger = Ledger(
            self.store, writer, self.limiter, directory=directory, keep_days=keep_days, keys=lambda: keys
        )

    def ask(self, key, tokens):
        """One request that uses what it reserved."""
        with reserved(self.limiter.use_of(key), Amounts(tokens)) as reservation:
            reservation.used = Amounts(tokens)
        self.ledger.add(an_entry(time.time(), key.id, prompt=tokens, completion=0))


@asynccontextmanager
async def running(*gateways):
    with trio.fail_after(SAFETY_NET_S):
        async with trio.open_nursery() as nursery:
            for gateway in gateways:
                await nursery.start(gateway.ledger.run)
            yield
            nursery.cancel_scope.cancel()
        for gateway in gateways:
            await gateway.store.aclose()


async def until(condition):
    while not condition():
        await trio.sleep(0.01)


async def test_entries_are_in_the_store_soon_and_all_of_them_at_the_end(store_url, database, tmp_path):
    """The process ends right after the last requests: SIGTERM loses none."""
    gateway = OneGateway(store_url, tmp_path)
    async with running(gateway):
        gateway.ledger.add(an_entry(time.time()))
        await until(lambda: totals(database) == (1, 30))
        for _ in range(12_345):
            gateway.ledger.add(an_entry(time.time()))
    assert totals(database) == (12_346, 12_346 * 30)
    assert gateway.ledger.problem is None
    assert list(tmp_path.glob("*.spool")) == []


@pytest.mark.parametrize("keep_days", [1, 90, 270, 36_500])
async def test_rows_of_whole_days_are_kept_whenever_the_clocks_changed(tmp_path, monkeypatch, keep_days):
    """36,500 is the most that `[ledger] keep_days` takes."""
    url, zone = f"sqlite:///{tmp_path / 'cortex.db'}", ZoneInfo("Europe/Berlin")
    open_store(url).close()
    kept_from = []
    monkeypatch.setattr(ledger_module, "roll_up", lambda _, before: kept_from.append(before))
    first_day = datetime.now(zone).date() - timedelta(days=keep_days)

    async with running(OneGateway(url, tmp_path, keep_days=keep_days, zone=zone)):
        await until(lambda: kept_from)

    midnights = [datetime.combine(first_day + timedelta(days=late), clock_time(), zone).timestamp() for late in (0, 1)]
    assert kept_from[0] in midnights  # the second if midnight has passed since


async def test_the_end_waits_for_requests_that_are_cancelled_at_the_same_moment(store_url, database, tmp_path):
    """A second signal cuts everything at once."""
    gateway, live = OneGateway(store_url, tmp_path), [1, 2]
    gateway.ledger._running = lambda: len(live)

    async def request():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            gateway.ledger.add(an_entry(time.time()))
            live.pop()

    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.ledger.run)
        for _ in range(2):
            nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert totals(database)[0] == 2
    await gateway.store.aclose()


class GoneStore:
    """A SQLite file that is away, or a PostgreSQL server that is down."""

    def __init__(self, url, postgres):
        self._path = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else None
        self._postgres = postgres

    def __enter__(self):
        if self._path is not None:
            self._path.rename(self._path.with_suffix(".away"))
        else:
            self._postgres.stop()

    def __exit__(self, *_):
        if self._path is not None:
            self._path.with_suffix(".away").rename(self._path)
        else:
            self._postgres.start()


@pytest.fixture
def gone_store(store_url, request):
    is_sqlite = store_url.startswith("sqlite")
    return GoneStore(store_url, None if is_sqlite else request.getfixturevalue("postgres"))


async def test_no_row_is_lost_or_doubled_while_the_store_goes_and_comes_under_load(
    store_url, database, tmp_path, gone_store, monkeypatch
):
    """In memory first, then on disk; and requests go on all the time."""
    monkeypatch.setattr(ledger_module, "MEMORY_ROWS", 200)
    monkeypatch.setattr(ledger_module, "BATCH_ROWS", 150)
    gateway = OneGateway(store_url, tmp_path)
    ledger, sent = gateway.ledger, 0

    async def load(scope):
        nonlocal sent
        with scope:
            while True:
                for _ in range(5):
                    ledger.add(an_entry(time.time(), prompt=sent % 7))
                    sent += 1
                await trio.sleep(0.001)

    async with running(gateway), trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(load, scope)
        for _ in range(2):
            await until(lambda: totals(database)[0] > 0)
            with gone_store:
                await until(lambda: ledger.problem is not None and "spool file" in ledger.problem)
                before = sent
                await until(lambda: sent > before + 500)  # noqa: B023 - awaited here
                assert len(ledger._waiting) < 1000
            await until(lambda: ledger.problem is None)
        scope.cancel()
    assert totals(database) == (sent, sum(number % 7 + 20 for number in range(sent)))
    assert ledger.lost == 0
    assert list(tmp_path.glob("*.spool")) == []


async def test_a_process_that_ends_without_its_store_leaves_its_rows_to_the_next(
    store_url, database, tmp_path, gone_store, monkeypatch
):
    monkeypatch.setattr(ledger_module, "FINAL_S", 0.1)
    with gone_store:
        first = OneGateway(store_url, tmp_path)
        async with running(first):
            for _ in range(100):
                first.ledger.add(an_entry(time.time()))
        assert len(list(tmp_path.glob("*.spool"))) == 1
    second = OneGateway(store_url, tmp_path)
    async with running(second):
        await until(lambda: totals(database) == (100, 3000))
        await until(lambda: second.ledger.problem is None)
    assert list(tmp_path.glob("*.spool")) == []


async def test_rows_that_were_written_before_a_kill_are_not_doubled_from_the_spool_file(store_url, database, tmp_path):
    entries = [an_entry(time.time()) for _ in range(50)]
    killed = SpoolFile.of_this_process(tmp_path)
    killed.append(entries)
    killed.close()
    gateway = OneGateway(store_url, tmp_path)
    for entry in entries[:30]:
        gateway.ledger.add(entry)
    async with running(gateway):
        await until(lambda: totals(database)[0] >= 50 and gateway.ledger.problem is None)
    assert totals(database) == (50, 1500)
    assert abandoned_spools(tmp_path) == []


async def test_a_batch_whose_end_is_unknown_is_sent_again_and_counts_once(store_url, database, tmp_path):
    """The task is cancelled while the thread commits; what the store has by then is not known."""
    key = Key("k1", "alice", limits=Limits(budgets=(Budget("tokens", 10**9, "month"),)))
    gateway = OneGateway(store_url, tmp_path, [key])
    async with running(gateway):
        await until(lambda: gateway.limiter.use_of(key).budgets)
        for _ in range(40):
            gateway.ask(key, 3)
        with trio.move_on_after(0):
            await gateway.ledger._batch()
        while gateway.ledger._waiting:
            await gateway.ledger._batch()
        assert totals(database) == (40, 120)
        assert gateway.limiter.use_of(key).budgets[0].spent(time.time()) == 120


async def test_without_store_and_disk_the_oldest_rows_are_dropped_and_counted(
    store_url, database, tmp_path, gone_store, monkeypatch
):
    monkeypatch.setattr(ledger_module, "MEMORY_ROWS", 20)
    monkeypatch.setattr(ledger_module, "LOST_BEYOND_ROWS", 50)
    monkeypatch.setattr(ledger_module, "FINAL_S", 0.1)
    (tmp_path / "a file").touch()
    with gone_store:
        gateway = OneGateway(store_url, tmp_path / "a file")
        async with running(gateway):
            for _ in range(80):
                gateway.ledger.add(an_entry(time.time()))
            await until(lambda: gateway.ledger.lost)
            assert gateway.ledger.lost == 30
            assert "30 are lost" in gateway.ledger.problem


async def test_budgets_go_on_with_what_this_gateway_knows_while_the_store_is_gone(
    store_url, database, tmp_path, gone_store
):
    key = Key("k1", "alice", limits=Limits(budgets=(Budget("tokens", 100, "month"),)))
    gateway = OneGateway(store_url, tmp_path, [key])
    async with running(gateway):
        gateway.ask(key, 60)
        await until(lambda: totals(database) == (1, 60))
        with gone_store:
            gateway.ask(key, 30)
            await until(lambda: gateway.ledger.problem is not None)
            with pytest.raises(errors.InsufficientQuota):
                gateway.ask(key, 20)
            gateway.ask(key, 10)
        await until(lambda: totals(database) == (3, 100))
        await until(lambda: gateway.limiter.use_of(key).budgets[0].stored == 100)
        assert gateway.limiter.use_of(key).budgets[0].unwritten == 0


async def test_a_gateway_that_starts_knows_what_was_spent_before(store_url, database, tmp_path):
    key = Key("k1", "alice", limits=Limits(budgets=(Budget("tokens", 100, "month"),)))
    first = OneGateway(store_url, tmp_path, [key])
    async with running(first):
        first.ask(key, 90)
    second = OneGateway(store_url, tmp_path, [key])
    async with running(second):
        with pytest.raises(errors.InsufficientQuota):
            second.ask(key, 20)


async def test_two_gateways_share_a_budget_and_overrun_it_by_one_batch_at_most(store_url, database, tmp_path):
    """Each asks as fast as its store answers; both stop within what they can use between two looks."""
    key = Key("k1", "alice", limits=Limits(budgets=(Budget("tokens", 1000, "month"),)))
    gateways = [OneGateway(store_url, tmp_path, [key]) for _ in range(2)]

    async def ask_until_refused(gateway):
        while True:
            before = time.monotonic()
            try:
                gateway.ask(key, 10)
            except errors.InsufficientQuota:
                return
            await until(lambda: not gateway.ledger._waiting)
            assert time.monotonic() >= before

    async with running(*gateways), trio.open_nursery() as nursery:
        for gateway in gateways:
            nursery.start_soon(ask_until_refused, gateway)
    requests, tokens = totals(database)
    assert requests == tokens / 10
    assert 1000 <= tokens <= 1000 + 2 * 10


async def test_a_long_stream_at_one_gateway_is_reserved_at_the_other(store_url, database, tmp_path):
    key = Key("k1", "alice", limits=Limits(budgets=(Budget("tokens", 1000, "month"),)))
    first, second = gateways = [OneGateway(store_url, tmp_path, [key]) for _ in range(2)]
    async with running(*gateways):
        with reserved(first.limiter.use_of(key), Amounts(950)):
            await until(lambda: second.limiter.use_of(key).elsewhere[0] == 950)
            with pytest.raises(errors.InsufficientQuota):
                second.ask(key, 100)
        await until(lambda: second.limiter.use_of(key).elsewhere[0] == 0)
        second.ask(key, 100)


async def test_a_gateway_starts_without_its_store_and_notices_when_it_is_back(
    store_url, database, tmp_path, gone_store
):
    with gone_store:
        gateway = OneGateway(
            store_url, tmp_path, [Key("k1", "alice", limits=Limits(budgets=(Budget("tokens", 1, "day"),)))]
        )
        async with running(gateway):
            assert "0 rows wait in memory" in gateway.ledger.problem
    idle = OneGateway(store_url, tmp_path)
    idle.ledger._failed(StoreUnavailable("it was gone"))
    async with running(idle):
        await until(lambda: idle.ledger.problem is None)
