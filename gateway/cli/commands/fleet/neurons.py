"""`cortex neurons`: the neurons of a gateway, and the file that has them."""

from __future__ import annotations

import difflib
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx

from gateway.cli import api_client
from gateway.cli.api_client import GatewayAddress
from gateway.cli.commands.admin_command import run_admin_command
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.source.local_file import os_user
from gateway.cli.terminal import console, print_error, print_json
from gateway.cli.views.status_view import neurons_table

__all__ = ["neurons"]

DONE, REFUSED = 0, 1  # exit codes
FILE_LIMIT_BYTES = 1024 * 1024  # as much as the admin API takes


@click.group()
def neurons() -> None:
    """Show and change the neurons of a gateway.

    They can be changed while the gateway runs if they are in the file that `neurons_config` of its cortex.toml names.
    """


@neurons.command(name="list")
@connection_options
@json_option
def list_neurons(*, connection: Connection, as_json: bool) -> None:
    """Show the neurons, with their state and devices."""

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        fleet = api_client.get(client, f"{gateway.admin}/admin/fleet", ("nodes",), token=gateway.required_token())
        if as_json:
            print_json({"nodes": fleet["nodes"], "leaving": fleet["leaving"]})
            return DONE
        console().print(neurons_table(fleet))
        for name, requests in fleet["leaving"].items():
            click.echo(f"{name} was removed, and finishes {requests} request{'s' * (requests != 1)}")
        return DONE

    run_admin_command("neurons list", connection, command)


@neurons.command()
@connection_options
def get(*, connection: Connection) -> None:
    """Print the file of the neurons, with *** in place of each secret. Its hash is on stderr, for `put --if-match`."""

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        text, digest = _get(client, gateway)
        click.echo(text, nl=False)
        print_error(f"hash: {digest}")
        return DONE

    run_admin_command("neurons get", connection, command)


@neurons.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True, exists=True))
@click.option("--if-match", metavar="HASH", help="Refuse if the gateway's file has another hash, as `get` printed it.")
@connection_options
def put(file: Path, if_match: str | None, *, connection: Connection) -> None:
    """Replace the file of the neurons by FILE, or by stdin if that is -, and print what changes.

    A secret that is *** stays as it is. A new neuron gets requests at once, a removed one finishes those that it has,
    one with another endpoint moves once it answers there. Exit code 1 if the gateway refuses, 2 if it does not answer.
    """

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        with click.open_file(str(file), "rb") as stream:
            wanted = stream.read(FILE_LIMIT_BYTES + 1)
        if len(wanted) > FILE_LIMIT_BYTES:
            print_error(f"{file} is larger than 1 MiB: check that it is the right file")
            return REFUSED
        before, digest = _get(client, gateway)
        _replace(client, gateway, wanted, before, if_match or digest)
        return DONE

    run_admin_command("neurons put", connection, command)


@neurons.command()
@connection_options
def edit(*, connection: Connection) -> None:
    """Edit the file of the neurons with $EDITOR, put it in force, and print what changes.

    A secret that is *** stays as it is. Exit code 1 if the gateway refuses, also if the file was changed meanwhile,
    2 if it does not answer.
    """

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        before, digest = _get(client, gateway)
        wanted = click.edit(before, extension=".toml", require_save=True)
        if wanted is None:
            click.echo("no change: the editor saved nothing")
            return DONE
        _replace(client, gateway, wanted.encode(), before, digest)
        return DONE

    run_admin_command("neurons edit", connection, command)


@neurons.command()
@click.option("--to", metavar="HASH", help="The beginning of a version's hash, as `get` prints it.")
@connection_options
def rollback(to: str | None, *, connection: Connection) -> None:
    """Restore the last version of the file of the neurons, put it in force, and print what changes.

    Without --to: the file in force, if that on disk has a fault; else the version before it. Secrets come back too.
    Exit code 1 if the gateway refuses, 2 if it does not answer.
    """

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        before, _ = _get(client, gateway)
        url, headers = f"{gateway.admin}/admin/neurons/rollback", {"x-cortex-user": _user()}
        answer = api_client.send(client, "POST", url, token=gateway.required_token(), headers=headers, json={"to": to})
        _print_change(client, gateway, before, answer.json())
        return DONE

    run_admin_command("neurons rollback", connection, command)


def _get(client: httpx.Client, gateway: GatewayAddress) -> tuple[str, str]:
    url, token = f"{gateway.admin}/admin/neurons", gateway.required_token()
    response = api_client.send(client, "GET", url, token=token, headers={})
    return response.text, response.headers["etag"].strip('"')


def _replace(client: httpx.Client, gateway: GatewayAddress, wanted: bytes, before: str, digest: str) -> None:
    """Put the file in force, if its hash is still `digest`, and print what changes. Raises ApiError."""
    headers = {
        "if-match": f'"{digest}"',
        "content-type": "application/toml",
        "x-cortex-user": _user(),
    }
    url, token = f"{gateway.admin}/admin/neurons", gateway.required_token()
    answer = api_client.send(client, "PUT", url, token=token, headers=headers, content=wanted)
    _print_change(client, gateway, before, answer.json())


def _print_change(client: httpx.Client, gateway: GatewayAddress, before: str, result: dict[str, Any]) -> None:
    after, _ = _get(client, gateway)
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "now", n=0, lineterm=""):
        click.echo(line)
    click.echo(_summary(result["diff"]))


def _user() -> str:
    return quote(f"{os_user()}@{socket.gethostname()}")


def _summary(diff: dict[str, dict[str, list[str]]] | None) -> str:
    if diff is None or not any(diff.values()):
        return "no neuron changes"
    words = [f"{what} {', '.join(diff[what])}" for what in ("added", "removed") if diff[what]]
    words += [f"changed {name} ({', '.join(keys)})" for name, keys in diff["changed"].items()]
    return "; ".join(words)
