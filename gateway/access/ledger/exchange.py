"""One batch between a gateway and the store: rows of the ledger go there, sums of budgets come back. Blocking SQL.

All of it is one transaction, and transactions of several gateways come one after another. So a row is counted in the
sums of budgets exactly once, however often it is sent.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection, delete, func, insert, select, text

from gateway.access.ledger.entry import NO_VALUES, LedgerEntry, LedgerRow, SharedValues
from gateway.access.ledger.prices import Tariff
from gateway.access.limits.amounts import Amounts
from gateway.access.limits.limit import BudgetUnit, Window
from gateway.access.limits.windows import WINDOWS, Windows, day_of
from gateway.access.store.database import sqlite_of
from gateway.access.store.schema import budget_sums, reservations, usage, usage_daily

__all__ = ["BudgetWindow", "Exchange", "LedgerWriter", "Seen"]

_ADVISORY_LOCK = 0x6C6564676572  # "ledger": one number for all gateways on a PostgreSQL database
RESERVATION_STALE_S = 15.0  # a gateway that lives writes its reservations again every 5 s
IDS_AT_A_TIME = 500  # in one IN list: SQLite takes 32,766 parameters


_Row: TypeAlias = tuple[Any, ...]
_Kind: TypeAlias = tuple[_Row, tuple[bool, ...]]
_Span: TypeAlias = tuple[float, float]
"""The earliest and the latest time at which a request of a batch started."""


class BudgetWindow(NamedTuple):
    """One window of one budget; `starts_at` in unix seconds."""

    key_id: str
    unit: BudgetUnit
    window: Window
    starts_at: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a gateway sends, and what it wants to know.

    Args:
        entries: Rows to write.
        may_repeat: Some of them may be in the store already.
        wanted: The windows whose sums it wants.
        reserved: By key, what its live requests have reserved; None for no news.
    """

    entries: Sequence[LedgerRow] = ()
    may_repeat: bool = False
    wanted: Sequence[BudgetWindow] = ()
    reserved: Mapping[str, Amounts] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store says: the sum of each wanted window that it has, and by key what other gateways have reserved."""

    sums: Mapping[BudgetWindow, float] = field(default_factory=dict)
    elsewhere: Mapping[str, Amounts] = field(default_factory=dict)


class LedgerWriter:
    """Writes batches. Used in the store's thread only.

    Args:
        windows: Of the operator's time zone; no other thread may use it.
        tariff: The price of electricity.
        gateway_id: Unique among the gateways of a store.
    """

    def __init__(self, windows: Windows, tariff: Tariff, gateway_id: str) -> None:
        self._windows = windows
        self._tariff = tariff
        self._gateway_id = gateway_id

    def write(self, connection: Connection, exchange: Exchange) -> Seen:
        """Write a batch, and read what is wanted, in a transaction that may write."""
        if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyhow
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        entries = exchange.entries
        if exchange.may_repeat:
            known = _known_ids(connection, entries)
            entries = [entry for entry in entries if entry.id not in known]
        if entries:
            times = [entry.own[_AT] for entry in entries]
            span = (min(times), max(times))
            self._insert(connection, entries, span)
            self._add_to_sums(connection, entries, span)
        if exchange.reserved is not None:
            self._write_reservations(connection, exchange.reserved)
        seen = self.read(connection, exchange)
        missing = [window for window in exchange.wanted if window not in seen.sums]
        if not missing:
            return seen
        for window in missing:
            self._begin_sum(connection, window)
        return self.read(connection, exchange)

    def read(self, connection: Connection, exchange: Exchange) -> Seen:
        """Read what is wanted. A sum that does not exist yet is left out: `write` begins it."""
        if not exchange.wanted:
            return Seen()
        wanted = set(exchange.wanted)
        starts = sorted({window.starts_at for window in wanted})
        columns = (budget_sums.c.key_id, budget_sums.c.unit, budget_sums.c.window, budget_sums.c.starts_at)
        found = connection.execute(select(*columns, budget_sums.c.used).where(budget_sums.c.starts_at.in_(starts)))
        sums = {window: row[4] for row in found if (window := BudgetWindow(*row[:4])) in wanted}
        return Seen(sums, self._reserved_elsewhere(connection))

    def _reserved_elsewhere(self, connection: Connection) -> dict[str, Amounts]:
        of_others = (reservations.c.gateway_id != self._gateway_id) & (
            reservations.c.at > time.time() - RESERVATION_STALE_S
        )
        amounts = (reservations.c.tokens, reservations.c.money, reservations.c.gpu_seconds)
        sums = [func.sum(column) for column in amounts]
        rows = connection.execute(select(reservations.c.key_id, *sums).where(of_others).group_by(reservations.c.key_id))
        return {row[0]: Amounts(*row[1:]) for row in rows}

    # Rows...

    def _insert(self, connection: Connection, entries: Sequence[LedgerRow], span: _Span) -> None:
        is_postgresql = connection.dialect.name == "postgresql"
        for day, of_day in self._by_day(entries, span).items():
            for (values, absent), rows in self._by_kind(of_day).items():
                columns, zeros = _columns(absent)
                shared = (day, *_storable(values), *zeros)
                if is_postgresql:
                    statement = _insert(columns, [", ".join(["%s"] * len(columns))])
                    connection.exec_driver_sql(statement, [(*shared, *row) for row in rows])
                else:
                    self._insert_portions(connection, columns, shared, rows)

    def _insert_portions(
        self, connection: Connection, columns: tuple[str, ...], shared: _Row, rows: Sequence[_Row]
    ) -> None:
        """Insert rows into SQLite, many with one statement: its driver releases the interpreter's lock for each
        statement, and gets it back only when the event loop waits.

        What rows take is by far the binding of values, above all of None, for which the driver looks for an adapter.
        So a value that rows share is bound once, and columns without any value are left out.
        """
        sqlite, done = sqlite_of(connection), 0
        for size in _ROWS_PER_STATEMENT:
            while len(rows) - done >= size:
                parameters = (*shared, *chain.from_iterable(rows[done : done + size]))
                sqlite.execute(_sqlite_insert(columns, len(shared), size), parameters)
                done += size

    def _by_kind(self, entries: Iterable[LedgerRow]) -> dict[_Kind, list[_Row]]:
        """The own values of rows, and those optional ones that they have, by what many rows share: key, alias, model
        and so on, and which of the optional values they lack.
        """
        kinds: dict[_Kind, list[_Row]] = {}
        last_shared: SharedValues | None = None
        last_absent: tuple[bool, ...] = ()
        rows: list[_Row] = []
        for entry in entries:
            shared, absent = entry.shared, _ALL_ABSENT
            own: _Row = entry.own
            if entry.optional is not NO_VALUES:
                absent = tuple(map(operator.is_, entry.optional, NO_VALUES))
                own = (*own, *(value for value in entry.optional if value is not None))
                if (energy_wh := entry.optional[_ENERGY_WH]) is not None:
                    own = (*own, self._tariff.cost(energy_wh, entry.at))
            if shared is not last_shared or absent != last_absent:  # the last kind is found sooner than any
                rows, last_shared, last_absent = kinds.setdefault((shared, absent), []), shared, absent
            rows.append(own)
        return kinds

    def _by_day(self, entries: Sequence[LedgerRow], span: _Span) -> Mapping[str, Sequence[LedgerRow]]:
        first, last = span
        zone = self._windows.zone
        if last < self._windows.at("day", first).end:
            return {day_of(first, zone): entries}
        days: dict[str, list[LedgerRow]] = {}
        for entry in entries:
            days.setdefault(day_of(entry.at, zone), []).append(entry)
        return days

    # Sums of budgets...

    def _add_to_sums(self, connection: Connection, entries: Sequence[LedgerRow], span: _Span) -> None:
        """Add to the sums that exist. One that does not exist yet begins with all rows, these included."""
        starts, mark = tuple(self._starts(entries, span)), _mark(connection)
        find = _sums_statement(mark, len(starts))
        if connection.dialect.name == "sqlite":
            sums: Sequence[Any] = sqlite_of(connection).execute(find, starts).fetchall()
        else:
            sums = connection.exec_driver_sql(find, starts).all()
        if not sums:
            return
        by_key: dict[str | None, list[LedgerRow]] = {}
        for entry in entries:
            by_key.setdefault(entry.key_id, []).append(entry)
        added: list[tuple[Any, ...]] = []
        for row in sums:
            window = BudgetWindow(*row)
            start, end = self._windows.at(window.window, window.starts_at)
            amount = _AMOUNTS[window.unit]
            more = sum(amount(entry.entry()) for entry in by_key.get(window.key_id, ()) if start <= entry.at < end)
            if more:
                added.append((more, *window))
        if added:
            connection.exec_driver_sql(_ADD_TO_SUM.replace("?", mark), added)

    def _starts(self, entries: Sequence[LedgerRow], span: _Span) -> list[float]:
        """Where the windows begin into which these entries fall."""
        first, last = span
        starts: set[float] = set()
        for window in WINDOWS:
            begin = self._windows.at(window, first)
            if last < begin.end:
                starts.add(begin.start)
            else:
                starts.update(self._windows.at(window, entry.at).start for entry in entries)
        return sorted(starts)

    def _begin_sum(self, connection: Connection, window: BudgetWindow) -> None:
        start, end = self._windows.at(window.window, window.starts_at)
        used = 0.0
        for table, rows in (
            (usage, (usage.c.at >= start) & (usage.c.at < end)),
            # Rows that were summed by day are older than an hour; longer windows begin with a day.
            (usage_daily, usage_daily.c.day >= day_of(start, self._windows.zone)),
        ):
            if table is usage_daily and window.window in {"minute", "hour"}:
                continue
            amount: Any = {
                "tokens": table.c.prompt_tokens + table.c.completion_tokens,
                "money": table.c.cost,
                "gpu-seconds": table.c.gpu_seconds,
            }[window.unit]
            query = select(func.sum(amount)).where(table.c.key_id == window.key_id, rows)
            used += float(connection.execute(query).scalar() or 0.0)
        connection.execute(insert(budget_sums).values(**window._asdict(), used=used))

    def _write_reservations(self, connection: Connection, reserved: Mapping[str, Amounts]) -> None:
        connection.execute(delete(reservations).where(reservations.c.gateway_id == self._gateway_id))
        rows = [
            {
                "gateway_id": self._gateway_id,
                "key_id": key_id,
                "tokens": amounts.tokens,
                "money": amounts.money,
                "gpu_seconds": amounts.gpu_s,
                "at": time.time(),
            }
            for key_id, amounts in reserved.items()
        ]
        if rows:
            connection.execute(insert(reservations), rows)


def _known_ids(connection: Connection, entries: Iterable[LedgerRow]) -> set[str]:
    known: set[str] = set()
    for ids in _portions([entry.id for entry in entries]):
        known.update(connection.execute(select(usage.c.id).where(usage.c.id.in_(ids))).scalars())
    return known


def _portions(ids: list[str]) -> Iterable[list[str]]:
    return (ids[start : start + IDS_AT_A_TIME] for start in range(0, len(ids), IDS_AT_A_TIME))


def _mark(connection: Connection) -> str:
    """What the driver takes as the mark of a parameter."""
    return "?" if connection.dialect.name == "sqlite" else "%s"


_AMOUNTS: Mapping[BudgetUnit, Callable[[LedgerEntry], float]] = {
    "tokens": lambda entry: entry.prompt_tokens + entry.completion_tokens,
    "money": lambda entry: entry.cost or 0.0,
    "gpu-seconds": lambda entry: entry.gpu_seconds,
}
_ADD_TO_SUM = 'UPDATE budget_sums SET used = used + ? WHERE key_id = ? AND unit = ? AND "window" = ? AND starts_at = ?'
_AT: Final = 1  # of `LedgerRow.own`
_SHARED_COLUMNS = ("day", *LedgerRow.SHARED)
_MODEL, _ENERGY_WH = LedgerRow.SHARED.index("model"), LedgerRow.OPTIONAL.index("energy_wh")
_NEVER_NULL = ("cached_tokens", "reasoning_tokens")
_ALL_ABSENT = (True,) * len(NO_VALUES)


@cache
def _columns(absent: tuple[bool, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Of rows that lack these of the optional values, and a zero for each of those that may not be NULL: they follow
    the shared values.
    """
    present = [name for name, is_absent in zip(LedgerRow.OPTIONAL, absent, strict=True) if not is_absent]
    zeros = [name for name in _NEVER_NULL if name not in present]
    energy_cost = [] if absent[_ENERGY_WH] else ["energy_cost"]
    return (*_SHARED_COLUMNS, *zeros, *LedgerRow.OWN, *present, *energy_cost), (0,) * len(zeros)


def _storable(shared: _Row) -> _Row:
    """PostgreSQL refuses a row, and so its whole batch, for a zero byte in the model's name: a neuron chose that."""
    model = shared[_MODEL]
    return shared if model is None or model.isprintable() else (*shared[:_MODEL], ascii(model), *shared[_MODEL + 1 :])


_ROWS_PER_STATEMENT = (128, 32, 8, 2, 1)  # few statements, so that the driver keeps them prepared


def _insert(columns: Sequence[str], rows: Iterable[str]) -> str:
    names, values = ", ".join(columns), "), (".join(rows)
    return f"INSERT INTO usage ({names}) VALUES ({values}) ON CONFLICT (id) DO NOTHING"  # noqa: S608 - our own names


@cache
def _sqlite_insert(columns: tuple[str, ...], shared_count: int, rows: int) -> str:
    """The statement whose parameters are the shared values, and then each row's own."""
    own_count, shared = len(columns) - shared_count, [f"?{number + 1}" for number in range(shared_count)]
    starts = [1 + shared_count + row * own_count for row in range(rows)]
    return _insert(
        columns, [", ".join([*shared, *(f"?{start + column}" for column in range(own_count))]) for start in starts]
    )


@lru_cache(maxsize=16)  # nearly always 5: an hour, a day and so on
def _sums_statement(mark: str, starts: int) -> str:
    marks = ", ".join([mark] * starts)
    return f'SELECT key_id, unit, "window", starts_at FROM budget_sums WHERE starts_at IN ({marks})'  # noqa: S608 - our own names
