"""Which gateway and which `models.toml` a command is about: `--url`, profiles, cortex.toml, environment."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from catalogue.toml.faults import FaultyFile
from gateway.aliases.files.audit_log import AuditHead
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress
from gateway.cli.options import exit_with_faults, find_config, load_settings, print_faults
from gateway.cli.profiles import InvalidProfile, find_profile
from gateway.cli.source.local_file import LocalFile
from gateway.cli.source.remote_file import RemoteFile
from gateway.cli.terminal import print_error
from gateway.cli.tls_trust import CannotTrust, TlsTrust
from gateway.config.load import load
from gateway.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from gateway.access.store.database import Database
    from gateway.cli.source.editable_file import EditableFile

__all__ = ["Connection"]


@dataclass
class Connection:
    """What an operator says about gateway and files. Nothing is read before it is needed.

    Args:
        config: The cortex.toml; None for the usual places.
        token: The key or admin token; None for that of the cortex.toml.
        api, admin: Base URLs that replace those of the cortex.toml; None for those.
        url: The admin port of a gateway, or its name in the file of profiles. Then no cortex.toml is read.
        ca: Trusted instead of what the profile or the cortex.toml says.
    """

    config: Path | None = None
    token: str | None = None
    api: str | None = None
    admin: str | None = None
    url: str | None = None
    ca: Path | None = None

    @cached_property
    def settings(self) -> Settings:
        """The settings. Prints every fault and exits with 1 if they are faulty."""
        return load_settings(self.config).settings

    def database(self) -> Database:
        """The store of keys and usage. A faulty `[store] url` ends the program."""
        from gateway.server.access.parts import open_database  # noqa: PLC0415 - SQLAlchemy takes 300 ms to import

        try:
            return open_database(self.settings)
        except FaultyFile as error:
            exit_with_faults(error)

    def address(self) -> GatewayAddress:
        """The gateway. A faulty cortex.toml or profile ends the program."""
        return self._remote_address() if self.url else self._address(self.settings)

    def address_if_possible(self) -> GatewayAddress:
        """The gateway, for commands that only ask: a faulty cortex.toml is a warning, and the defaults apply."""
        if self.url:
            return self._remote_address()
        try:
            return self._address(load(find_config(self.config), os.environ).settings)
        except FaultyFile as error:
            print_faults(error.faults, "warning")
            return self._address(Settings())

    def _remote_address(self) -> GatewayAddress:
        try:
            profile = find_profile(self.url or "")
        except InvalidProfile as error:
            print_error(f"error: {error}")
            sys.exit(1)
        url = profile.url.rstrip("/")
        api, admin = self.api or url, self.admin or url
        self._trust(TlsTrust.of_remote(self.ca or profile.ca, profile.cert, profile.cert_key, os.environ), api, admin)
        return GatewayAddress(api, admin, self.token or profile.key, is_remote=True)

    def _address(self, settings: Settings) -> GatewayAddress:
        known = GatewayAddress.from_settings(settings)
        api, admin = (self.api or known.api).rstrip("/"), (self.admin or known.admin).rstrip("/")
        # The token of the cortex.toml is for the gateway of the cortex.toml, and must not go to another server.
        is_known = (api, admin) == (known.api, known.admin)
        if is_known and settings.tls.cert is not None and self.ca is None:
            self._trust(TlsTrust.of_host(settings.tls, os.environ), api, admin)
        else:
            self._trust(TlsTrust.of_remote(self.ca, None, None, os.environ), api, admin)
        return GatewayAddress(api, admin, self.token or (known.token if is_known else None))

    def _trust(self, tls: TlsTrust, *urls: str) -> None:
        if tls == TlsTrust() and not any(url.lower().startswith("https:") for url in urls):
            return  # reading the system's certificates takes 40 ms
        try:
            api_client.trust(tls)
        except CannotTrust as error:
            print_error(f"error: {error}")
            sys.exit(1)

    def file(self) -> EditableFile:
        """The `models.toml`."""
        if self.url:
            return RemoteFile(self.address())
        return LocalFile(CatalogueFiles.from_settings(self.settings), self._catalogue_status, self._last_audit_line)

    def _last_audit_line(self) -> AuditHead:
        """The last line of the audit log that the gateway of the cortex.toml has written, as far as it tells."""
        gateway = self.address()
        try:
            with api_client.open_client() as client:
                audit = api_client.get_health(client, gateway).get("audit", {})
        except ApiError:
            return AuditHead()
        is_same_log = audit.get("path") == str(CatalogueFiles.from_settings(self.settings).audit_log.path)
        return AuditHead(audit["last"], audit["hash"]) if is_same_log and "hash" in audit else AuditHead()

    def _catalogue_status(self, *, reload: bool = False) -> Mapping[str, Any] | None:
        """The catalogue of the gateway's `/health`; None if it does not answer."""
        gateway = self.address()
        try:
            with api_client.open_client() as client:
                if reload and gateway.token is not None:
                    with suppress(ApiError):  # a wrong token, or a faulty file
                        api_client.post(client, f"{gateway.admin}/admin/reload", ("result",), token=gateway.token)
                status: Mapping[str, Any] = api_client.get_health(client, gateway)["catalogue"]
                return status
        except ApiError:
            return None
