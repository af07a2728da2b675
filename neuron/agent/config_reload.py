"""Puts changes of `neuron.toml` in force: when the file changes, on SIGHUP, and on `POST /reload`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from catalogue.toml.faults import Fault, FaultyFile
from neuron.agent.config.load import parse_neuron_file
from neuron.agent.supervision.host import ModelHost, ReloadOutcome

__all__ = ["ConfigReload"]

POLL_S = 1.0

log = structlog.get_logger("cortex.neuron.config")


class ConfigReload:
    """The file, and the host that follows it.

    Args:
        path: Of `neuron.toml`.
        data: Its content that is in force.
        host: Gets new configurations.
    """

    def __init__(self, path: Path, data: bytes, host: ModelHost) -> None:
        self._path = path
        self._seen = data
        self._host = host

    async def watch(self) -> None:
        """Look every second whether the content has changed, forever. A faulty file is logged, and changes nothing.

        Polling works on every file system, and however an editor replaces the file.
        """
        while True:
            await trio.sleep(POLL_S)
            try:
                data = await self._read()
            except FaultyFile:
                continue  # between the two steps of an editor
            if data != self._seen:
                await self._reload_and_log(data)

    async def when(self, requested: Callable[[], Awaitable[object]]) -> None:
        """Reload whenever `requested` returns, forever."""
        while True:
            await requested()
            try:
                data = await self._read()
            except FaultyFile as error:
                log.warning("config_refused", faults=[str(fault) for fault in error.faults])
            else:
                await self._reload_and_log(data)

    async def now(self) -> ReloadOutcome:
        """Read the file and put it in force. Raises FaultyFile."""
        return self._put_in_force(await self._read())

    async def _read(self) -> bytes:
        try:
            return await trio.to_thread.run_sync(self._path.read_bytes, abandon_on_cancel=True)
        except OSError as error:
            fault = Fault(str(self._path), None, None, f"cannot be read: {error.strerror or error}")
            raise FaultyFile((fault,)) from error

    async def _reload_and_log(self, data: bytes) -> None:
        try:
            self._put_in_force(data)
        except FaultyFile as error:
            log.warning("config_refused", faults=[str(fault) for fault in error.faults])

    def _put_in_force(self, data: bytes) -> ReloadOutcome:
        self._seen = data
        outcome = self._host.apply(parse_neuron_file(data, self._path).settings)
        facts = {name: list(getattr(outcome, name)) for name in ReloadOutcome.__dataclass_fields__}
        log.info("config_reloaded", **{name: ids for name, ids in facts.items() if ids})
        return outcome
