"""`cortex alias list, show, compare, set, remove, retry, history, rollback`; `rollout` is in `rollout.py`.

Exit codes: 0 done and in force; 1 refused or a wrong command line, nothing was written; 2 written, but no gateway
answers; 3 written, but the gateway did not apply it or could not move the alias.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import click

from catalogue.diff import alias_json
from catalogue.nearest import did_you_mean
from gateway.aliases.files.versions import Version
from gateway.cli import api_client
from gateway.cli.api_client import ApiError
from gateway.cli.commands.aliases import follow_edit
from gateway.cli.commands.aliases.alias_edit import DONE, AliasEditor, run_alias_command
from gateway.cli.commands.aliases.alias_states import AliasStates, loaded_on
from gateway.cli.commands.aliases.follow_edit import follow
from gateway.cli.commands.aliases.rollout import rollout
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.param_types import Percent
from gateway.cli.source.editable_file import AliasCommandError
from gateway.cli.terminal import print_json
from gateway.cli.views import alias_view, compare_view

__all__ = ["alias"]

VERSIONS_SHOWN = 5  # by `show`

_from_disk_option = click.option(
    "--from-disk", is_flag=True, help="Edit the file on disk also if it is not the file in force."
)
_wait_option = click.option("--wait", is_flag=True, help="Return only once the alias has moved to its target.")


@click.group()
def alias() -> None:
    """Show and change aliases.

    The changes are edits of models.toml, which you could also make with an editor.
    """


alias.add_command(rollout)


@alias.command("list")
@connection_options
@json_option
def list_(*, connection: Connection, as_json: bool) -> None:
    """List the aliases with their targets and states."""

    def command(editor: AliasEditor) -> int:
        states, name = AliasStates(editor), editor.file.name
        if as_json:
            aliases = [
                {"name": alias.name, **alias_json(alias), "state": states.state(alias)}
                for alias in states.aliases.values()
            ]
            print_json({"file": name, "aliases": aliases})
        else:
            alias_view.print_list(name, [(alias, states.state(alias)) for alias in states.aliases.values()])
        return DONE

    run_alias_command(connection, command, only_reads=True)


@alias.command()
@click.argument("name")
@connection_options
@json_option
def show(name: str, *, connection: Connection, as_json: bool) -> None:
    """Show one alias.

    Shows its settings in the file, where its targets are loaded, its state, and its last changes.
    """

    def command(editor: AliasEditor) -> int:
        states = AliasStates(editor)
        alias = states.aliases.get(name)
        if alias is None:
            raise AliasCommandError(f"{editor.file.name} has no alias '{name}'{did_you_mean(name, states.aliases)}")
        places, state = loaded_on(editor, alias), states.state(alias)
        newest = editor.file.versions(name, VERSIONS_SHOWN)
        if as_json:
            result: dict[str, Any] = {"name": name, **alias_json(alias), "state": state, "loaded_on": places}
            print_json(result | {"versions": [_version_json(version) for version in newest]})
        else:
            alias_view.print_alias(alias, places, state, newest)
        return DONE

    run_alias_command(connection, command, only_reads=True)


@alias.command()
@click.argument("name")
@connection_options
@json_option
def compare(name: str, *, connection: Connection, as_json: bool) -> None:
    """Compare an alias with its shadow.

    Compares speed, length and contents of their answers. Needs a key with the verb read.
    """

    def command(editor: AliasEditor) -> int:
        result = _get_comparison(editor, name)
        if result["candidate"] is None:
            raise AliasCommandError(
                f"alias '{name}' has no shadow; add one to its table in {editor.file.name}: "
                'shadow = { model = "…", percent = … }'
            )
        if as_json:
            print_json(result)
        else:
            compare_view.print_comparison(result)
        return DONE

    run_alias_command(connection, command, only_reads=True)


def _get_comparison(editor: AliasEditor, name: str) -> dict[str, Any]:
    url, keys = f"{editor.gateway.admin}/admin/shadows/{quote(name)}", ("candidate", "compared", "results", "verdict")
    try:
        with api_client.open_client() as client:
            return api_client.get(client, url, keys, token=editor.gateway.required_token())
    except ApiError as error:
        raise AliasCommandError(str(error)) from error


@alias.command("set")
@click.argument("name")
@click.argument("target")
@click.option(
    "--weight",
    type=Percent(0, 100, min_open=True),
    metavar="PERCENT",
    default=100.0,
    show_default=True,
    help="TARGET's share of the requests; the present targets keep the rest in their proportions.",
)
@click.option(
    "--cold/--warm",
    "is_cold",
    default=None,
    show_default="as in the file",
    help="Move at once, or once TARGET is loaded and has answered. The file keeps this setting.",
)
@click.option("--force", is_flag=True, help="Also to a TARGET that neither models.toml nor a neuron has.")
@_from_disk_option
@_wait_option
@connection_options
def set_(
    name: str,
    target: str,
    weight: float,
    *,
    connection: Connection,
    is_cold: bool | None,
    wait: bool,
    force: bool,
    from_disk: bool,
) -> None:
    """Point an alias at a model.

    A new NAME becomes an alias. Other keys of its table stay as they are. Prints everything that changes. Refuses if
    the file on disk is not the file in force, or if TARGET is unknown.
    """
    swap = None if is_cold is None else "cold" if is_cold else "warm"
    command_line = f"cortex alias set {name} {target}" + ("" if weight == 100 else f" --weight {weight:g}")
    command_line += "" if swap is None else f" --{swap}"

    def command(editor: AliasEditor) -> int:
        done = editor.point(name, target, weight, command_line, swap=swap, force=force, from_disk=from_disk)
        return follow(editor, done, {name}, wait=wait)

    run_alias_command(connection, command)


@alias.command()
@click.argument("name")
@_from_disk_option
@connection_options
def remove(name: str, *, connection: Connection, from_disk: bool) -> None:
    """Remove an alias. New requests for it get 404; running ones finish."""
    command_line = f"cortex alias remove {name}"

    def command(editor: AliasEditor) -> int:
        return follow(editor, editor.remove(name, command_line, from_disk=from_disk), set(), wait=False)

    run_alias_command(connection, command)


@alias.command()
@click.argument("name")
@_wait_option
@connection_options
def retry(name: str, *, connection: Connection, wait: bool) -> None:
    """Try again to move an alias whose target could not be warmed."""
    run_alias_command(connection, lambda editor: follow_edit.retry(editor, name, wait=wait))


@alias.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Number of versions, newest.")
@connection_options
@json_option
def history(name: str | None, limit: int, *, connection: Connection, as_json: bool) -> None:
    """List the versions of models.toml.

    The newest is first. With NAME, only the versions that changed this alias.
    """

    def command(editor: AliasEditor) -> int:
        found = editor.file.versions(name, limit)
        if as_json:
            print_json({"versions": [_version_json(version) for version in found]})
        elif found:
            title = editor.file.name + (":" if name is None else f", changes of {name}:")
            alias_view.print_versions(title, found)
        else:
            alias_view.print_no_versions(editor.file.audit_name, name)
        return DONE

    run_alias_command(connection, command, only_reads=True)


def _version_json(version: Version) -> dict[str, Any]:
    return asdict(version) | {"aliases": sorted(version.aliases)}


@alias.command()
@click.argument("name", required=False)
@click.option(
    "--to", metavar="VERSION", help="A number or the beginning of a hash from `history`. Without it: the previous one."
)
@_wait_option
@connection_options
def rollback(name: str | None, to: str | None, *, connection: Connection, wait: bool) -> None:
    """Restore an earlier version of models.toml.

    Without NAME the whole file is restored byte by byte; with NAME only that alias. Without --to, a second rollback
    undoes the first. A file that is deleted, empty or faulty is replaced by the one in force. The history keeps the
    replaced file.
    """
    command_line = " ".join(["cortex alias rollback", *([name] if name else []), *(["--to", to] if to else [])])
    aliases = None if name is None else {name}

    def command(editor: AliasEditor) -> int:
        return follow(editor, editor.roll_back(name, to, command_line), aliases, wait=wait)

    run_alias_command(connection, command)
