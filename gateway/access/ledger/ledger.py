"""The ledger of one gateway: takes an entry per request, and writes them to the store in batches.

`add` is synchronous and touches neither store nor file. While the store is gone, entries wait in memory up to a limit
and then in a spool file. Nothing is lost while there is disk space, and nothing is written twice: see `exchange.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from gateway.access.keys.key import Key
from gateway.access.ledger.entry import LedgerRow
from gateway.access.ledger.exchange import BudgetWindow, Exchange, LedgerWriter, Seen
from gateway.access.ledger.roll_up import drop_past, roll_up
from gateway.access.ledger.spool_file import SpoolFile, abandoned_spools
from gateway.access.limits.amounts import NOTHING, Amounts
from gateway.access.limits.limiter import Limiter
from gateway.access.store.database import StoreUnavailable
from gateway.access.store.store import Store

__all__ = ["Ledger"]

BATCH_S = 0.25  # what `kill -9` may cost
BATCH_ROWS = 5_000  # in one transaction: about 50 ms
MEMORY_ROWS = 10_000  # that wait in memory, about 1 KiB each; more go to the spool file
LOST_BEYOND_ROWS = 50_000  # in memory, if the spool file cannot be written either
FIRST_EXCHANGE_S = 2.0  # what a start waits for the sums of budgets
FINAL_S = 5.0  # for the entries that are left when the process ends
LAST_REQUESTS_S = 0.01
HEARTBEAT_S = 5.0  # how often reservations are written again that have not changed
RETRY_S = 1.0  # after the store failed
ADOPT_S = 30.0  # how often to look for the spool files of gateways that have ended
ROLL_UP_S = 3600.0
DAY_S = 86_400
BEHIND_ROWS = 2 * BATCH_ROWS

_T = TypeVar("_T")

log = structlog.get_logger("cortex.ledger")


class Ledger:
    """Entries on their way to the store, and the sums of budgets on their way back.

    Args:
        store: The store; None for a gateway without one: then no entry is kept.
        writer: Writes batches in the store's thread.
        limiter: Gets the sums of budgets.
        directory: The state directory, for the spool file.
        keep_days: How many whole days rows are kept before they become daily sums.
        keys: Returns every key in force, so that the sums of their budgets are known before their first request.
        running: Returns how many requests run: at the end, their entries are waited for.

    Attributes:
        add: Takes the entry of a request that has ended. Synchronous.
        lost: Entries that were dropped since the start, because neither the store nor the disk took them.
    """

    def __init__(
        self,
        store: Store,
        writer: LedgerWriter,
        limiter: Limiter,
        *,
        directory: Path,
        keep_days: int,
        keys: Callable[[], Iterable[Key]] = tuple,
        running: Callable[[], int] = int,
    ) -> None:
        self.lost = 0
        self._store = store
        self._writer = writer
        self._limiter = limiter
        self._directory = directory
        self._keep_days = keep_days
        self._keys = keys
        self._running = running
        self._waiting: list[LedgerRow] = []  # oldest first; always this list, because of `add`
        self.add: Callable[[LedgerRow], None] = self._waiting.append
        self._attempted = 0  # of the oldest; they may be in the store already
        self._spool = SpoolFile.of_this_process(directory)
        self._adopted: list[SpoolFile] = []
        self._adopt_at = self._roll_up_at = 0.0
        self._reserved_before: dict[str, Amounts] = {}
        self._reserved_at = 0.0
        self._error: str | None = None
        self._spool_error: str | None = None
        self._files = trio.CapacityLimiter(1)  # of threads: a file system that hangs must not take Trio's own

    @property
    def problem(self) -> str | None:
        """Why rows wait, for `/health`; None if they do not wait for longer than usual."""
        on_disk = sum(not spool.is_empty for spool in (self._spool, *self._adopted))
        if self._error is None and not on_disk and len(self._waiting) <= BEHIND_ROWS:
            return None
        waiting = f"{len(self._waiting)} rows wait in memory"
        if on_disk:
            waiting += f" and more in {on_disk} spool file{'s' if on_disk > 1 else ''} in {self._directory}"
        if self.lost:
            waiting += f"; {self.lost} are lost"
        return f"{self._error or 'the store is slower than the requests'}; {waiting}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write a batch every 250 ms until cancelled, and then what is left, for at most `FINAL_S`.

        Started when the sums of budgets are known, or after `FIRST_EXCHANGE_S`: without a store the gateway serves.
        """
        try:
            with trio.move_on_after(FIRST_EXCHANGE_S):
                await self._batch()
            task_status.started()
            while True:
                await trio.sleep(BATCH_S if self._error is None else RETRY_S)
                await self._batch()
                await self._replay()
                await self._maintain()
        finally:
            with trio.move_on_after(FINAL_S, shield=True):
                while self._running():  # noqa: ASYNC110 - they were cancelled at the same moment
                    await trio.sleep(LAST_REQUESTS_S)
                while self._waiting and await self._batch():
                    pass
            self._leave()

    def _leave(self) -> None:
        """Put on disk what the store did not take."""
        if self._waiting:
            # Blocks, because nothing else is left to run. The next start of a gateway writes these rows.
            self._moved(self._waiting, self._append_to_spool(self._waiting))
        self._spool.close()
        for spool in self._adopted:
            spool.close()

    # Batches...

    async def _batch(self) -> bool:
        """Write the oldest entries, and learn what the budgets have left. False if the store is gone."""
        entries = self._waiting[:BATCH_ROWS]
        wanted = self._wanted()
        reserved = self._reserved()
        if not entries and not wanted and reserved is None and self._error is None:
            return True
        exchange = Exchange(entries, self._attempted > 0, wanted, reserved)
        self._attempted = max(self._attempted, len(entries))
        try:
            seen = await self._exchange(exchange)
        except StoreUnavailable as error:
            self._failed(error)
            await self._make_room()
            return False
        del self._waiting[: len(entries)]
        self._attempted = 0
        self._succeeded()
        if reserved is not None:
            self._reserved_before, self._reserved_at = reserved, trio.current_time()
        self._written(entries)
        self._apply(seen)
        return True

    async def _exchange(self, exchange: Exchange) -> Seen:
        if not exchange.entries and exchange.reserved is None:
            seen = await self._store.read(lambda connection: self._writer.read(connection, exchange))
            if seen.sums.keys() >= set(exchange.wanted):
                return seen
        return await self._store.run(lambda connection: self._writer.write(connection, exchange))

    def _wanted(self) -> list[BudgetWindow]:
        """The windows of all budgets, in force now."""
        now = self._limiter.unix_time()
        wanted: list[BudgetWindow] = []
        for key in self._keys():
            if key.limits.budgets:
                self._limiter.use_of(key)
        for use in self._limiter.uses():
            for budget in use.budgets:
                budget.spent(now)
                wanted.append(BudgetWindow(use.key_id, budget.budget.unit, budget.budget.window, budget.start))
        return wanted

    def _reserved(self) -> dict[str, Amounts] | None:
        """What live requests of keys with budgets have reserved; None if the store knows it."""
        reserved = {use.key_id: Amounts(*use.reserved) for use in self._limiter.uses() if use.budgets and use.running}
        if reserved == self._reserved_before:
            is_fresh = trio.current_time() - self._reserved_at < HEARTBEAT_S
            return None if is_fresh or not reserved else reserved
        return reserved

    def _written(self, entries: Sequence[LedgerRow]) -> None:
        with_budgets = {use.key_id for use in self._limiter.uses() if use.budgets}
        if not with_budgets:
            return
        for entry in entries:
            if entry.key_id in with_budgets:
                self._limiter.written(entry.key_id, entry.entry().used, entry.at)

    def _apply(self, seen: Seen) -> None:
        for use in self._limiter.uses():
            for budget in use.budgets:
                window = BudgetWindow(use.key_id, budget.budget.unit, budget.budget.window, budget.start)
                budget.stored = seen.sums.get(window, budget.stored)
            use.elsewhere[:] = seen.elsewhere.get(use.key_id, NOTHING)

    def _failed(self, error: StoreUnavailable) -> None:
        if self._error is None:
            log.error("ledger_failed", reason=str(error), waiting=len(self._waiting), retry_s=RETRY_S)
        self._error = str(error)

    def _succeeded(self) -> None:
        if self._error is not None:
            log.info("ledger_recovered", store=self._store.name)
        self._error = None

    # The spool file...

    async def _make_room(self) -> None:
        """Move the older half of the entries to disk if there are too many in memory."""
        if len(self._waiting) <= MEMORY_ROWS:
            return
        entries = self._waiting[: len(self._waiting) - MEMORY_ROWS // 2]
        self._moved(entries, await self._in_thread(lambda: self._append_to_spool(entries)))

    def _append_to_spool(self, entries: Sequence[LedgerRow]) -> str | None:
        """Returns why the disk takes no rows. Blocking."""
        try:
            self._spool.append(entries)
        except OSError as error:
            return f"{self._spool.path}: {error.strerror or error}"
        return None

    def _moved(self, entries: Sequence[LedgerRow], failure: str | None) -> None:
        """The oldest entries are on disk now; or not, and then the oldest are dropped beyond a limit."""
        count = len(entries)
        if failure is not None:
            count = max(0, len(self._waiting) - LOST_BEYOND_ROWS)
            self.lost += count
            if failure != self._spool_error:
                log.error("spool_failed", reason=failure, waiting=len(self._waiting), lost=self.lost)
        self._spool_error = failure
        del self._waiting[:count]
        self._attempted = max(0, self._attempted - count)

    async def _replay(self) -> None:
        """Write the rows on disk, once the store takes rows again."""
        for spool, is_own in [*((adopted, False) for adopted in self._adopted), (self._spool, True)]:
            while self._error is None and not spool.is_empty:
                await self._replay_portion(spool, is_own=is_own)
        self._adopted = [spool for spool in self._adopted if not spool.is_empty]

    async def _replay_portion(self, spool: SpoolFile, *, is_own: bool) -> None:
        try:
            entries, end = await self._in_thread(spool.next_rows)
            exchange = Exchange(entries, may_repeat=True)
            await self._store.run(lambda connection: self._writer.write(connection, exchange))
            await self._in_thread(lambda: spool.taken(end))
        except StoreUnavailable as error:
            self._failed(error)
            return
        except OSError as error:
            self._error = f"{spool.path}: {error.strerror or error}"
            return
        if is_own:
            self._written(entries)
        await self._batch()  # what came meanwhile

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(call, limiter=self._files)

    # Once in a while...

    async def _maintain(self) -> None:
        now = trio.current_time()
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_S
            self._adopted += await self._in_thread(lambda: abandoned_spools(self._directory))  # reads names, no rows
        if now >= self._roll_up_at and self._error is None:
            self._roll_up_at = now + ROLL_UP_S
            await self._roll_up()
            self._limiter.forget_all_but({key.id for key in self._keys()})

    async def _roll_up(self) -> None:
        today = self._limiter.windows.at("day", time.time())
        noon = (
            today.start - (self._keep_days - 0.5) * DAY_S
        )  # about noon, whichever hours the clocks have changed by since
        before = self._limiter.windows.at("day", noon).start
        try:
            while await self._store.run(lambda connection: roll_up(connection, before)):
                await self._batch()
            await self._store.run(lambda connection: drop_past(connection, time.time()))
        except StoreUnavailable as error:
            self._failed(error)
