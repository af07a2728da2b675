"""`cortex plan`: what a models.toml would change, from a running gateway or from the last version that was in force."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from catalogue.diff import diff
from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import FaultyFile
from gateway.aliases.files import versions
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.source.editable_file import AliasCommandError
from gateway.cli.terminal import HASH_DIGITS, print_error, print_json
from gateway.cli.views import plan_view
from gateway.files.config_file import FILE_LIMIT_BYTES

__all__ = ["plan"]

NO_CHANGES, IMPOSSIBLE, CHANGES, NO_COMPARISON = 0, 1, 2, 3  # exit codes


class _NoComparison(Exception):
    """No gateway answers, or there is nothing to compare the file with."""


@click.command()
@click.argument("models", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=False)
@click.option("--offline", is_flag=True, help="Compare with the last file that was in force, without a gateway.")
@connection_options
@json_option
def plan(models: Path | None, *, connection: Connection, offline: bool, as_json: bool) -> None:
    """Show what a models.toml would change.

    Shows the changes, and the models that the gateway would load and evict, before the file is in force. MODELS is
    the file to check. Without it: the one that the gateway reads. Needs a key that has the verb `read`, unless
    --offline is given.
    Exit code 0: no changes; 2: changes; 1: the file is faulty or a change is impossible; 3: no gateway answers, or
    there is nothing to compare with.
    """
    file = connection.file()
    name = str(models) if models is not None else file.name  # of a gateway elsewhere: its address, which is no path
    if offline and connection.url:
        raise click.UsageError("--offline reads the files of this host; --url names a gateway")
    try:
        data = file.read() if models is None else _read(models)
        if offline:
            result = _compare_offline(CatalogueFiles.from_settings(connection.settings), data, Path(name))
        else:
            result = _ask_gateway(connection.address(), data, name)
    except (OSError, AliasCommandError, _NoComparison) as error:
        print_error(f"error: {error}")
        sys.exit(NO_COMPARISON)
    if as_json:
        print_json(result)
    else:
        plan_view.print_plan(result, name)
    sys.exit({"nothing": NO_CHANGES, "changes": CHANGES}.get(result["verdict"], IMPOSSIBLE))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:  # it may be a pipe
        return file.read(FILE_LIMIT_BYTES)


def _ask_gateway(gateway: GatewayAddress, data: bytes, name: str) -> dict[str, Any]:
    """The gateway's plan, for its fleet as it is now."""
    if gateway.token is None:
        raise _NoComparison("the gateway plans only for a key: set CORTEX_KEY, or use --offline")
    try:
        with api_client.open_client() as client:
            url = f"{gateway.admin}/admin/plan"
            return api_client.post(client, url, ("verdict",), token=gateway.token, data=data, params={"path": name})
    except ApiError as error:
        raise _NoComparison(f"{error}; --offline compares without a gateway") from error


def _compare_offline(files: CatalogueFiles, data: bytes, path: Path) -> dict[str, Any]:
    """The changes since the last file that was in force. What they require of the fleet is unknown offline."""
    try:
        wanted = parse(data, path=str(path), generation=0, loaded_at=0.0)
    except FaultyFile as error:
        return {"verdict": "faulty", "faults": [fault.as_json() for fault in error.faults]}
    old, description = _last_in_force(files, path)
    changes = diff(old, wanted)
    return {
        "verdict": "changes" if changes else "nothing",
        "compared_with": description,
        "summary": str(changes),
        "diff": changes.as_json(),
        "warnings": [fault.as_json() for fault in wanted.warnings],
    }


def _last_in_force(files: CatalogueFiles, path: Path) -> tuple[Catalogue, str]:
    """The catalogue that was last in force, and its description.

    Without an audit log it is the configured file, unless that is the file to check.
    """
    models_path = files.models_path
    digest = versions.newest_digest(files)
    data = None if digest is None else files.history.get(digest)
    if digest is not None and data is not None:
        newest = next((version for version in versions.list_versions(files) if version.digest == digest), None)
        description = f"file {digest[:HASH_DIGITS]}" if newest is None else f"version {newest.number} of {newest.time}"
    elif path.resolve() == models_path.resolve():
        raise _NoComparison(f"nothing to compare {path} with: {files.audit_log.path} names no version that is kept")
    else:
        data, description = models_path.read_bytes(), str(models_path)
    try:
        return parse(data, path=str(models_path), generation=0, loaded_at=0.0), description
    except FaultyFile as error:
        raise _NoComparison(f"nothing to compare {path} with: {models_path} is faulty") from error
