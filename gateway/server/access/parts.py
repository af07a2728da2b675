"""The store, its keys in memory, and the checks by them: built and started for one gateway."""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Callable

import structlog
import trio

from catalogue.toml.faults import Fault, FaultyFile
from gateway.access.admission import Access
from gateway.access.keys.key import Key
from gateway.access.keys.key_refresh import KeyRefresh
from gateway.access.keys.key_table import KeyTable
from gateway.access.ledger.ledger import Ledger
from gateway.access.store.database import Database, InvalidStoreUrl, StoreUnavailable
from gateway.access.store.migrate import SchemaUnknown
from gateway.access.store.store import Store
from gateway.aliases.files.catalogue_files import state_directory
from gateway.config.load import OPEN_BEYOND_LOOPBACK, OPEN_HINT
from gateway.config.settings import Listen, Settings
from gateway.server.access.host_check import HostCheck
from gateway.server.listen import CannotStart

__all__ = ["AccessParts", "open_database", "print_first_key"]

CLOSE_DEADLINE_S = 2.0

log = structlog.get_logger("cortex.access")


class AccessParts:
    """What a gateway needs to check keys.

    Args:
        settings: The gateway's.
        end_requests: Ends the running requests of a key.
        first_secret: The secret of the first key, if the operator chose it.
        show_first_key: Called with the secret of the first key if the gateway made it.
        record: `Auditor.record_action`: the first key is audited.

    Attributes:
        access: Checks requests.
        hosts: Checks the hosts that requests name.
        store: Keys and usage.
        refresh: Keeps `access.table` as the store has it.
        ledger: Uses the store from when it is open until it is closed; None for none.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        end_requests: Callable[[Key], None],
        first_secret: str | None = None,
        show_first_key: Callable[[str], None],
        record: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._mode = settings.access.mode
        self._first_secret = first_secret
        self._show_first_key = show_first_key
        self._record = record
        self.access = Access(KeyTable(), mode=self._mode or "open", admin_token=settings.admin.token)
        self.hosts = HostCheck(settings.access.allowed_hosts)
        self.store = Store(open_database(settings))
        self.ledger: Ledger | None = None
        self.refresh = KeyRefresh(self.store, self.access.table, end_requests=end_requests)

    def keys_in_force(self) -> list[Key]:
        """Every key that is neither revoked nor expired."""
        now = time.time()
        keys = [stored.key for stored in self.access.table.keys()]  # noqa: SIM118 - a method of ours
        return [key for key in keys if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)]

    def listens_on(self, address: Listen) -> None:
        """The API listens on this address, which is a socket's. Raises CannotStart if it is open by accident."""
        is_loopback = ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
        if self._mode is None and not is_loopback:
            raise CannotStart(f"gateway.listen: {address} {OPEN_BEYOND_LOOPBACK}: {OPEN_HINT}")
        if self._mode == "open" and not is_loopback:
            log.warning("open_gateway", address=str(address), consequence="everyone who reaches the port may use it")
        self.hosts.is_on = self.access.mode == "open" and is_loopback

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the store, then follow its changes until cancelled. Started once every key is in force.

        Raises:
            CannotStart: In keys mode, the store cannot be used. An open gateway starts without, and opens it later.
        """
        try:
            await self._open()
        except (StoreUnavailable, SchemaUnknown) as error:
            if self.access.mode == "keys":
                raise CannotStart(f"the store of keys cannot be used: {error}") from error
            log.warning("store_unavailable", reason=str(error), consequence="usage is not recorded meanwhile")
        try:
            async with trio.open_nursery() as nursery:
                if self.ledger is not None:
                    await nursery.start(self.ledger.run)
                await self.refresh.run(task_status=task_status)
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                await self.store.aclose()

    async def _open(self) -> None:
        await self.refresh.open()
        if self.access.mode == "keys" or self._first_secret is not None:
            created = await self.refresh.create_first_key(self._first_secret)
            if created is not None:
                key = created.stored.key
                log.warning("first_key", key=key.name, key_id=key.id, verbs=sorted(key.verbs))
                summary = f"create key {key.name}, the first"
                self._record("key", "cortex", summary=summary, outcome="active", key=key.name, key_id=key.id)
                if self._first_secret is None:
                    self._show_first_key(created.secret)


def open_database(settings: Settings) -> Database:
    """The database that the settings name; nothing is read yet. Raises FaultyFile if the URL names none."""
    try:
        return Database(settings.store.url, state_directory(settings))
    except InvalidStoreUrl as error:
        raise FaultyFile((Fault("cortex.toml", None, "store.url", str(error)),)) from error


def print_first_key(secret: str) -> None:
    """Print the first key on stdout. The log, which may go to other people, does not get it."""
    sys.stdout.write(
        f"the first key of this gateway, `operator`, with every verb; it is shown once:\n\n    {secret}\n\n"
        "`cortex key create NAME` creates a key for each user\n"
    )
    sys.stdout.flush()
