"""`cortex status`: asks a gateway for its state over HTTP, and shows it once or again and again."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from gateway.cli.api_client import ApiError, GatewayAddress, get_text, open_client
from gateway.cli.connection import Connection
from gateway.cli.connection_options import asking_options
from gateway.cli.gateway_state import read_state
from gateway.cli.live_figures import LiveFigures, parse_scrape
from gateway.cli.options import json_option
from gateway.cli.terminal import console, print_error, print_json
from gateway.cli.views import status_view

__all__ = ["status"]

REDRAW_S = 2.0
REFUSED, UNREACHABLE = 1, 2  # exit codes


@click.command()
@asking_options
@json_option
@click.option("--watch", is_flag=True, help="Redraw every 2 seconds until Ctrl-C, with rates and times.")
def status(*, connection: Connection, as_json: bool, watch: bool) -> None:
    """Show problems, neurons, models and aliases.

    Exit code 1 if the gateway refuses the key, 2 if it does not answer.

    Without a key that has the verb `read`, devices, leases, requests and loads are missing.
    """
    address = connection.address_if_possible()
    out = console()
    try:
        state = read_state(address)
        if as_json:
            print_json(state)
        elif watch:
            _redraw_until_interrupted(address, out)
        else:
            out.print(status_view.render(state))
    except ApiError as error:
        if error.message is not None:
            print_error(f"cortex status: {error.message}")
            sys.exit(REFUSED)
        print_error(f"cortex status: {error}; --endpoint sets the address")
        sys.exit(UNREACHABLE)
    except KeyboardInterrupt:
        pass


def _redraw_until_interrupted(address: GatewayAddress, out: Console) -> None:
    figures = LiveFigures()
    with Live(console=out, auto_refresh=False) as live:
        while True:
            live.update(_render_or_error(address, figures), refresh=True)
            time.sleep(REDRAW_S)


def _render_or_error(address: GatewayAddress, figures: LiveFigures) -> RenderableType:
    figures_error = None
    try:
        state = read_state(address)
        try:
            with open_client() as client:
                figures.add(parse_scrape(get_text(client, f"{address.admin}/metrics"), time.monotonic()))
        except (ApiError, ValueError) as error:  # a metrics port that is out of reach must not hide the rest
            figures_error = f"{error}; --admin sets the address of the metrics port"
        return status_view.render(state, figures, figures_error)
    except ApiError as error:
        return Text(f"{error}; still trying", style="bold red")
