"""`cortex capture`: has a gateway keep the texts of an alias's requests for a while, and shows them."""

from __future__ import annotations

from typing import Any

import click
import httpx

from gateway.cli import api_client
from gateway.cli.api_client import GatewayAddress
from gateway.cli.commands.admin_command import run_admin_command
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.param_types import Duration
from gateway.cli.terminal import print_json
from gateway.cli.views.capture_view import capture_text

__all__ = ["capture"]


@click.command()
@click.option(
    "--alias", metavar="NAME", help="Start to capture the requests of this alias. Without it: show what was captured."
)
@click.option("--for", "seconds", type=Duration(), default="10m", show_default=True, help="How long.")
@click.option("--redact", is_flag=True, help="Replace e-mail addresses, secrets, IP addresses and long numbers.")
@click.option("--stop", is_flag=True, help="Stop the capture and erase its texts.")
@connection_options
@json_option
def capture(
    alias: str | None, seconds: float, *, redact: bool, stop: bool, connection: Connection, as_json: bool
) -> None:
    """Keep the texts of an alias for a while, and show them.

    The gateway must allow it: [capture] enabled = true. It keeps texts in memory only, within a limit, and erases them
    when the time is over. Start and end are in the audit log. Without --alias and --stop: show what was captured. Exit
    code 1 if the gateway refuses, 2 if it does not answer.
    """
    if alias is not None and stop:
        raise click.UsageError("--alias and --stop exclude each other")

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        url, key = f"{gateway.admin}/admin/capture", gateway.required_token()
        body: dict[str, Any]
        if alias is not None:
            wanted = {"alias": alias, "seconds": seconds, "redact": redact}
            body = api_client.send(client, "POST", url, token=key, headers={}, json=wanted).json()
        elif stop:
            body = api_client.send(client, "DELETE", url, token=key, headers={}).json()
        else:
            body = api_client.get(client, url, ("capture", "requests"), token=key)
        if as_json:
            print_json(body)
        else:
            click.echo(capture_text(body))
        return 0

    run_admin_command("capture", connection, command)
