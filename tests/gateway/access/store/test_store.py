"""The store on SQLite and on PostgreSQL: schema, migrations, transactions, and a database that is gone for a while."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import trio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fakes.ledger_rows import open_store
from fakes.patience import SAFETY_NET_S
from sqlalchemy import exc, func, insert, select, text

from gateway.access.keys import key_rows
from gateway.access.store import migrate
from gateway.access.store import store as store_module
from gateway.access.store.backup import backup_to
from gateway.access.store.database import Database, InvalidStoreUrl, StoreUnavailable
from gateway.access.store.migrate import SchemaUnknown
from gateway.access.store.schema import SCHEMA_VERSION, counters, metadata
from gateway.access.store.store import Store, StoreBusy

HERE = Path("/nonexistent")  # the URLs of these tests are absolute


@pytest.fixture
def database(store_url):
    found = Database(store_url, HERE)
    found.upgrade()
    yield found
    found.close()


def add(name, value=1):
    return lambda connection: connection.execute(insert(counters).values(name=name, value=value))


def count(connection):
    """How many were added; the migration adds one row itself."""
    return connection.execute(select(func.count()).select_from(counters)).scalar() - 1


def test_migrations_from_nothing_lead_to_the_tables_of_the_schema(store_url):
    database = Database(store_url, HERE)
    if database.path is None:
        assert database.version() is None
    assert database.upgrade()
    assert not database.upgrade()
    assert database.version() == SCHEMA_VERSION
    assert database.read(lambda c: compare_metadata(MigrationContext.configure(c), metadata)) == []
    database.close()


VERSIONS = [script.revision for script in migrate.scripts().walk_revisions()][:0:-1]


@pytest.mark.parametrize("version", VERSIONS)
def test_migration_from_each_earlier_version_keeps_what_is_there(store_url, version):
    """An upgrade of cortex; the migrations in between run one after the other."""
    database = Database(store_url, HERE)
    if database.path is not None:
        database.path.touch()
    assert database.write(partial(migrate.upgrade, to=version))
    row = text(
        "INSERT INTO keys (id, name, secret_hash, may, verbs, budgets, observe, weight, priority, created_at,"
        " end_streams) VALUES ('a', 'alice', 'ff', '[]', '[]', '[]', '[]', 100, 'batch', 1.5, false)"
    )
    database.write(lambda c: c.execute(row))
    assert database.upgrade()
    assert database.version() == SCHEMA_VERSION
    assert database.read(lambda c: compare_metadata(MigrationContext.configure(c), metadata)) == []
    assert [stored.key.name for stored in database.read(key_rows.read_all)] == ["alice"]
    database.close()


def test_a_store_of_a_newer_release_is_refused(database):
    database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(SchemaUnknown, match="schema version 9999"):
        database.upgrade()


def test_gateways_that_start_together_migrate_once(store_url):
    databases = [Database(store_url, HERE) for _ in range(6)]
    migrated, failed = [], []

    def start(database):
        try:
            migrated.append(database.upgrade())
        except Exception as error:  # noqa: BLE001 - shown below
            failed.append(error)
        database.close()

    threads = [threading.Thread(target=start, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_NET_S)
    assert failed == []
    assert sorted(migrated) == [False] * 5 + [True]


def test_an_error_rolls_everything_back(database):
    database.write(add("a"))
    with pytest.raises(exc.IntegrityError):
        database.write(lambda c: (add("b")(c), add("a")(c)))
    assert database.read(count) == 1
    assert database.error is None


async def test_work_of_cancelled_callers_never_overlaps_other_work(database):
    """The abandoned work still has the thread, and the one connection."""
    store = Store(database)
    began, may_end, running, overlaps = threading.Event(), threading.Event(), [], []

    def slow(connection):
        running.append(1)
        began.set()
        may_end.wait(SAFETY_NET_S)
        add("slow")(connection)
        running.pop()

    def quick(connection):
        overlaps.append(len(running))
        return count(connection)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run, slow)
        await trio.to_thread.run_sync(began.wait, SAFETY_NET_S)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, may_end.set)
        assert await store.read(quick) == 1
    assert overlaps == [0]
    await store.aclose()


async def test_the_queue_is_bounded(database, monkeypatch):
    monkeypatch.setattr(store_module, "QUEUE_LIMIT", 2)
    store = Store(database)
    began, may_end = threading.Event(), threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.read, lambda _: (began.set(), may_end.wait(SAFETY_NET_S)))
        await trio.to_thread.run_sync(began.wait, SAFETY_NET_S)
        nursery.start_soon(store.read, count)
        await trio.testing.wait_all_tasks_blocked()
        try:
            with pytest.raises(StoreBusy):
                await store.read(count)
        finally:
            may_end.set()
    assert await store.read(count) == 0
    await store.aclose()


def test_sqlite_file_that_is_away_is_an_error_until_it_is_back(tmp_path):
    """SQLite itself would go on with the removed file, and lose what it writes there."""
    database = Database("sqlite:///store.db", tmp_path)
    database.upgrade()
    database.path.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="No such file"):
            database.write(add("lost"))
    assert "No such file" in database.error
    (tmp_path / "away").rename(database.path)
    database.write(add("kept"))
    assert (database.read(count), database.error) == (1, None)
    database.close()


def test_sqlite_file_is_readable_by_its_owner_only(tmp_path):
    database = Database("sqlite:///state/store.db", tmp_path)
    database.upgrade()
    assert database.path == tmp_path / "state/store.db"
    assert database.path.stat().st_mode & 0o777 == 0o600
    database.close()


@pytest.mark.postgres
def test_postgresql_that_restarts_is_an_error_until_it_is_back(postgres):
    database = Database(postgres.new_database(), HERE)
    database.upgrade()
    postgres.stop()
    with pytest.raises(StoreUnavailable):
        database.write(add("lost"))
    assert database.error is not None
    postgres.start()
    database.write(add("kept"))
    assert (database.read(count), database.error) == (1, None)
    database.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mysql://a:secret@b/c", "not in mysql"),
        ("no url, secret", "must be sqlite:///PATH or postgresql://"),
        ("sqlite://", "needs a file"),
        ("sqlite://secret@host/x.db", "needs a file"),
        ("sqlite:///a\0b", "needs a file"),
        ("sqlite:///:memory:", "gone with its process"),
        ("sqlite:///x.db?mode=ro&secret=1", "neither a driver nor parameters"),
        ("sqlite+aiosqlite:///x.db", "neither a driver nor parameters"),
        ("postgresql://a:secret@b:port/c", "port must be a number"),
        ("postgresql://a:secret@b:99999/c", "port must be 1 to 65535"),
        ("postgresql+asyncpg://a:secret@b/c", "uses the driver psycopg"),
    ],
)
def test_other_urls_are_refused_without_quoting_them(url, text):
    with pytest.raises(InvalidStoreUrl, match=text) as caught:
        Database(url, HERE)
    assert "secret" not in str(caught.value)


def test_the_name_has_no_password():
    assert "secret" not in Database("postgresql://cortex:secret@db/cortex", HERE).name


def test_no_backup_is_made_of_a_damaged_database(tmp_path):
    path, copy = tmp_path / "cortex.db", tmp_path / "copy.db"
    open_store(f"sqlite:///{path}").close()
    pages = path.read_bytes()
    path.write_bytes(pages[:4096] + bytes(byte ^ 0x55 for byte in pages[4096:]))

    with pytest.raises(StoreUnavailable, match="malformed"):
        backup_to(Database(f"sqlite:///{path}", tmp_path), copy)

    assert not copy.exists()
