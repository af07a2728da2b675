"""`cortex reload`: has a gateway read its `models.toml` now."""

from __future__ import annotations

import click
import httpx

from gateway.cli import api_client
from gateway.cli.api_client import GatewayAddress
from gateway.cli.commands.admin_command import run_admin_command
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.terminal import print_json

__all__ = ["reload"]


@click.command()
@connection_options
@json_option
def reload(*, connection: Connection, as_json: bool) -> None:
    """Have the gateway read models.toml now.

    Exit code 1 if the file is faulty: the catalogue in force stays in force. 2 if the gateway does not answer.
    """

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        url = f"{gateway.admin}/admin/reload"
        body = api_client.post(client, url, ("result", "generation"), token=gateway.required_token())
        if as_json:
            print_json(body)
        else:
            click.echo(f"{body['result']}: generation {body['generation']} is in force")
            for name in body["warming"]:
                click.echo(f"{name} has not moved yet; `cortex status` shows what it waits for")
        return 0

    run_admin_command("reload", connection, command)
