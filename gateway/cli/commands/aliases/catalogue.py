"""`cortex catalogue get, put, edit`: the whole `models.toml`, on this host or over the network.

The exit codes are those of `cortex alias`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.cli.commands.aliases.alias_edit import DONE, AliasEditor, run_alias_command
from gateway.cli.commands.aliases.follow_edit import follow
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.source.editable_file import AliasCommandError

__all__ = ["catalogue"]

FILE_LIMIT_BYTES = 1 << 20  # what the admin API takes

_wait_option = click.option("--wait", is_flag=True, help="Return only once all aliases have moved to their targets.")
_from_disk_option = click.option(
    "--from-disk", is_flag=True, help="Replace the file on disk also if it is not the file in force."
)


@click.group()
def catalogue() -> None:
    """Show and replace the whole models.toml."""


@catalogue.command()
@click.option("--on-disk", is_flag=True, help="The file on disk, also if the gateway has refused it.")
@connection_options
def get(*, on_disk: bool, connection: Connection) -> None:
    """Print the models.toml in force."""

    def command(editor: AliasEditor) -> int:
        sys.stdout.buffer.write(editor.file.read() if on_disk else _in_force(editor))
        sys.stdout.buffer.flush()
        return DONE

    run_alias_command(connection, command, only_reads=True)


@catalogue.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@_wait_option
@_from_disk_option
@connection_options
def put(file: Path, *, wait: bool, from_disk: bool, connection: Connection) -> None:
    """Replace models.toml by FILE (- for standard input), and wait until it is in force.

    A faulty FILE is refused, and nothing is written. `cortex plan FILE` shows what it would change.
    """

    def command(editor: AliasEditor) -> int:
        with click.open_file(str(file), "rb") as stream:
            wanted = stream.read(FILE_LIMIT_BYTES + 1)
        return _replace(editor, wanted, f"cortex catalogue put {file}", wait=wait, from_disk=from_disk)

    run_alias_command(connection, command)


@catalogue.command()
@_wait_option
@_from_disk_option
@connection_options
def edit(*, wait: bool, from_disk: bool, connection: Connection) -> None:
    """Edit models.toml with $EDITOR, and put it in force."""

    def command(editor: AliasEditor) -> int:
        before = editor.file.read() if from_disk else _in_force(editor)
        text = click.edit(before.decode("utf-8", "replace"), extension=".toml", require_save=True)
        if text is None:
            editor.report("no change: the editor saved nothing")
            return DONE
        return _replace(editor, text.encode(), "cortex catalogue edit", wait=wait, from_disk=from_disk, base=before)

    run_alias_command(connection, command)


def _in_force(editor: AliasEditor) -> bytes:
    data = editor.in_force()
    if data is None:
        raise AliasCommandError(f"no version of {editor.file.name} is known to be in force; --on-disk prints the file")
    return data


def _replace(
    editor: AliasEditor, wanted: bytes, command: str, *, wait: bool, from_disk: bool, base: bytes | None = None
) -> int:
    if len(wanted) > FILE_LIMIT_BYTES:
        raise AliasCommandError(f"the file has more than {FILE_LIMIT_BYTES} bytes")
    return follow(editor, editor.replace(wanted, command, base=base, from_disk=from_disk), None, wait=wait)
