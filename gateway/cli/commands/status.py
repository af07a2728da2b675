"""`cortex status`: asks a gateway for its state over HTTP, and shows it once or again and again."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from gateway.cli.api_client import ApiError, GatewayAddress, get, get_models, open_client
from gateway.cli.connection import Connection
from gateway.cli.connection_options import asking_options
from gateway.cli.options import json_option
from gateway.cli.terminal import console, print_error, print_json
from gateway.cli.views import status_view

__all__ = ["status"]

REDRAW_S = 2.0
UNREACHABLE = 2  # exit code


@click.command()
@asking_options
@json_option
@click.option("--watch", is_flag=True, help="Redraw every 2 seconds until Ctrl-C.")
def status(*, connection: Connection, as_json: bool, watch: bool) -> None:
    """Show health, neurons, models and aliases. Exit code 2 if the gateway does not answer.

    Without a key or the admin token, devices, leases, requests and loads are missing.
    """
    address = connection.address_if_possible()
    out = console()
    try:
        state = _read(address)
        if as_json:
            print_json(state)
        elif watch:
            _redraw_until_interrupted(address, out)
        else:
            out.print(status_view.render(state))
    except ApiError as error:
        print_error(f"cortex status: {error}; --endpoint sets the address")
        sys.exit(UNREACHABLE)
    except KeyboardInterrupt:
        pass


def _redraw_until_interrupted(address: GatewayAddress, out: Console) -> None:
    with Live(console=out, auto_refresh=False) as live:
        while True:
            live.update(_render_or_error(address), refresh=True)
            time.sleep(REDRAW_S)


def _render_or_error(address: GatewayAddress) -> RenderableType:
    try:
        return status_view.render(_read(address))
    except ApiError as error:
        return Text(f"{error}; still trying", style="bold red")


def _read(address: GatewayAddress) -> dict[str, Any]:
    """`health`, `models`; with a token also `fleet` and `requests`, or in `admin_error` why they are missing.

    Raises:
        ApiError: The public port does not answer as a gateway does.
    """
    with open_client() as client:
        state: dict[str, Any] = {
            "health": get(client, f"{address.api}/health", ("nodes", "catalogue"), token=address.token),
            "models": get_models(client, address),
        }
        if address.token is not None:
            try:
                state["fleet"], state["requests"] = (
                    get(client, f"{address.admin}/admin/fleet", ("nodes", "loads"), token=address.token),
                    get(client, f"{address.admin}/admin/requests", ("requests",), token=address.token)["requests"],
                )
            except ApiError as error:  # a wrong token must not hide the public part
                state["admin_error"] = str(error)
    return state
