"""The store as a gateway uses it: its database behind one worker thread. No request waits for it.

row = await store.read(lambda connection: connection.execute(select(keys)).all())
await store.run(lambda connection: connection.execute(insert(usage), rows))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio
from sqlalchemy import Connection

from gateway.access.store.database import Database, StoreUnavailable

__all__ = ["Store", "StoreBusy"]

QUEUE_LIMIT = 256  # calls that wait for the thread: each background task has one or two, an operator's request one

_Result = TypeVar("_Result")


class StoreBusy(StoreUnavailable):
    """Too many calls wait for the database already."""


class Store:
    """A database, used by one thread at a time.

    If a caller is cancelled while it waits for the thread, its work never begins. If its work runs already, it goes on
    to its end and may be committed: so work must be repeatable, or the caller must not be cancelled.

    Args:
        database: Nothing else in this process may use it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = trio.CapacityLimiter(1)
        self._calls = 0

    @property
    def name(self) -> str:
        """The database: a file, or a URL without its password."""
        return self._database.name

    @property
    def error(self) -> str | None:
        """Why the last use of the database failed; None after a success."""
        return self._database.error

    async def run(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in the thread, in a transaction that may change the database; see `Database.write`.

        Raises:
            StoreUnavailable: The database cannot be used, or too many calls wait for it.
            sqlalchemy.exc.IntegrityError: `work` violates a constraint.
        """
        return await self._in_thread(lambda: self._database.write(work))

    async def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in the thread, in a transaction that only reads. Raises StoreUnavailable."""
        return await self._in_thread(lambda: self._database.read(work))

    async def upgrade(self) -> bool:
        """Create the database or migrate it; see `Database.upgrade`."""
        return await self._in_thread(self._database.upgrade)

    async def aclose(self) -> None:
        """Close the connection after the calls before this one."""
        await self._in_thread(self._database.close)

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        if self._calls >= QUEUE_LIMIT:
            raise StoreBusy(f"{self.name}: {QUEUE_LIMIT} calls wait for the database already")
        self._calls += 1
        try:
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._thread)
        finally:
            self._calls -= 1
