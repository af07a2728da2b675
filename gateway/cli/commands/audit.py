"""`cortex audit verify` and `cortex audit show`: read the audit log beside models.toml."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import NoReturn

import click

from gateway.aliases.files.audit_log import AuditLog
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.cli.options import config_option, json_option, load_settings
from gateway.cli.terminal import print_error, print_json
from gateway.cli.views import audit_view

__all__ = ["audit"]

FAILED = 1  # exit code


@click.group()
def audit() -> None:
    """Show or verify the audit log of models.toml.

    It records who changed the file and when, and what the gateway did with each change.
    """


@audit.command()
@config_option
def verify(config: Path | None) -> None:
    """Verify that no line of the audit log was changed or removed.

    Exit code 1 if the log is broken; the output names the first broken line.
    """
    log = _audit_log(config)
    try:
        verification = log.verify()
    except OSError as error:
        _fail(error)
    if verification.broken is not None:
        print_error(f"broken: {verification.broken}")
        print_error(f"intact lines before it: {verification.lines}")
        sys.exit(FAILED)
    for line in audit_view.verification_lines(log.path, verification):
        click.echo(line)


@audit.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Number of lines, newest.")
@config_option
@json_option
def show(limit: int, config: Path | None, *, as_json: bool) -> None:
    """Show the last lines of the audit log, oldest first. Broken lines are left out."""
    log = _audit_log(config)
    try:
        lines = [line.fields for line in islice(log.newest_first(), limit)][::-1]
    except OSError as error:
        _fail(error)
    if as_json:
        print_json({"lines": lines})
    else:
        audit_view.print_lines(log.path, lines)


def _audit_log(config: Path | None) -> AuditLog:
    return CatalogueFiles.from_settings(load_settings(config).settings).audit_log


def _fail(error: OSError) -> NoReturn:
    print_error(f"error: {error}")
    sys.exit(FAILED)
