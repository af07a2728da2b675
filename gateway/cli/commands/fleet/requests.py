"""`cortex requests`: the requests that a gateway is serving now."""

from __future__ import annotations

import click
import httpx

from gateway.cli import api_client
from gateway.cli.api_client import GatewayAddress
from gateway.cli.commands.admin_command import run_admin_command
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.terminal import console, print_json
from gateway.cli.views.status_view import requests_table

__all__ = ["requests"]


@click.command()
@click.option("--cancel", metavar="REQUEST_ID", help="Cancel the request with this id. Without it: show all requests.")
@connection_options
@json_option
def requests(cancel: str | None, *, connection: Connection, as_json: bool) -> None:
    """Show the running and waiting requests, or cancel one.

    `cortex explain` shows what happened to one of them. Exit code 1 if the gateway refuses or there is no such request,
    2 if the gateway does not answer.
    """

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        url, token = f"{gateway.admin}/admin/requests", gateway.required_token()
        if cancel is not None:
            response = api_client.send(client, "DELETE", f"{url}/{api_client.segment(cancel)}", token=token, headers={})
            click.echo(f"cancelled {response.json()['cancelled']} request(s) with the id {cancel}")
            return 0
        body = api_client.get(client, url, ("requests",), token=token)
        if as_json:
            print_json(body)
        else:
            console().print(requests_table(body["requests"]))
        return 0

    run_admin_command("requests", connection, command)
