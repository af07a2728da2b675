"""Keeps the keys in memory as the store has them: one look every half second, and the whole table on a change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import structlog
import trio

from gateway.access.keys import key_rows
from gateway.access.keys.key import Key
from gateway.access.keys.key_rows import NewSecret
from gateway.access.keys.key_table import KeyTable, StoredKey
from gateway.access.store.database import StoreUnavailable
from gateway.access.store.migrate import SchemaUnknown
from gateway.access.store.store import Store

__all__ = ["KeyRefresh"]

LOOK_INTERVAL_S = 0.5  # a change by another process is in force within a second
FIRST_KEY: Mapping[str, Any] = {"name": "operator", "verbs": ["infer", "read", "operate", "keys"]}

log = structlog.get_logger("cortex.keys")


class KeyRefresh:
    """Reads keys from the store into the table. While the store is away, the last known keys stay in force.

    Args:
        store: Where the keys are.
        table: Where requests find them.
        end_requests: Called for each key that was revoked with its running requests.
    """

    def __init__(self, store: Store, table: KeyTable, *, end_requests: Callable[[Key], None]) -> None:
        self._store = store
        self._table = table
        self._end_requests = end_requests
        self._version = -1
        self._ended: set[str] = set()
        self._is_open = False

    async def open(self) -> None:
        """Create or migrate the store, and read every key.

        Raises:
            StoreUnavailable, SchemaUnknown: By their names.
        """
        await self._store.upgrade()
        self._is_open = True
        await self.refresh()

    async def create_first_key(self, secret: str | None) -> NewSecret | None:
        """Create a key with all verbs if there is none; see `key_rows.create_first`. Raises StoreUnavailable."""
        created = await self._store.run(partial(key_rows.create_first, columns=FIRST_KEY, secret=secret))
        await self.refresh()
        return created

    async def refresh(self) -> None:
        """Read the keys if they have changed. Raises StoreUnavailable."""
        found = await self._store.read(partial(key_rows.read_if_changed, version=self._version))
        if found is None:
            return
        self._version, keys = found
        self._table.replace(keys)
        for stored in keys:
            self._end_once(stored)

    def _end_once(self, stored: StoredKey) -> None:
        if stored.end_streams and stored.key.id not in self._ended:
            self._ended.add(stored.key.id)
            self._end_requests(stored.key)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for changes until cancelled. Started at once. A store that was not opened is opened when it is there."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            try:
                if self._is_open:
                    await self.refresh()
                else:
                    await self.open()
            except (StoreUnavailable, SchemaUnknown) as error:  # `/health` and the log show the problem
                log.debug("store_unavailable", reason=str(error))
