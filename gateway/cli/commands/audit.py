"""`cortex audit verify` and `cortex audit show`: read the audit log beside models.toml."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.source.editable_file import AliasCommandError, NoAnswer
from gateway.cli.terminal import print_error, print_json
from gateway.cli.views import audit_view

__all__ = ["audit"]

FAILED, NO_GATEWAY = 1, 2  # exit codes


@click.group()
def audit() -> None:
    """Show or verify the audit log of models.toml.

    It records the author and the time of each change of the file, and what the gateway did with it.
    """


@audit.command()
@connection_options
def verify(*, connection: Connection) -> None:
    """Verify that no line of the audit log was changed or removed.

    Exit code 1 if the log is broken; the output names the first broken line.
    """
    file = connection.file()
    try:
        verification = file.verify_audit_log()
    except AliasCommandError as error:
        _fail(error)
    if verification.broken is not None:
        print_error(f"broken: {verification.broken}")
        print_error(f"intact lines before it: {verification.lines}")
        sys.exit(FAILED)
    for line in audit_view.verification_lines(file.audit_name, verification):
        click.echo(line)


@audit.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Number of lines, newest.")
@connection_options
@json_option
def show(limit: int, *, connection: Connection, as_json: bool) -> None:
    """Show the last lines of the audit log, oldest first. Broken lines are left out."""
    file = connection.file()
    try:
        lines = list(file.audit_lines(limit))
    except AliasCommandError as error:
        _fail(error)
    if as_json:
        print_json({"lines": lines})
    else:
        audit_view.print_lines(file.audit_name, lines)


def _fail(error: AliasCommandError) -> NoReturn:
    print_error(f"error: {error}")
    sys.exit(NO_GATEWAY if isinstance(error, NoAnswer) else FAILED)
