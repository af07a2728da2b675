"""`cortex usage`: what was used, from the store or from a running gateway."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import click
import httpx

from gateway.access.ledger.usage_period import InvalidPeriod, parse_since
from gateway.access.ledger.usage_report import GROUPINGS, Grouping, UsageQuery, read_usage_report
from gateway.access.limits.windows import zone_of
from gateway.access.store.database import Database, InvalidStoreUrl, StoreUnavailable
from gateway.aliases.files.catalogue_files import state_directory
from gateway.cli import api_client
from gateway.cli.api_client import GatewayAddress
from gateway.cli.commands.admin_command import run_admin_command
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.terminal import print_error, print_json
from gateway.cli.views import usage_view

__all__ = ["usage"]

REFUSED, NO_STORE = 1, 2  # exit codes


@click.command()
@click.option("--by", type=click.Choice(GROUPINGS), default="key", show_default=True, help="What each row is about.")
@click.option("--since", default="7d", show_default=True, help="A duration such as 24h or 7d, or a date.")
@connection_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values, for spreadsheets.")
def usage(by: str, since: str, *, connection: Connection, as_json: bool, as_csv: bool) -> None:
    """Show requests, tokens and cost by key, model or day.

    Also GPU time and energy, and by alias or node.

    Without --url the report is read from the store that cortex.toml names, and needs no key. Rows are in the store
    250 ms after their request ended. Exit code 1 if a value is not understood, 2 without a store or a gateway.
    """

    def show(report: Mapping[str, Any]) -> None:
        if as_json:
            print_json(report)
        elif as_csv:
            usage_view.print_csv(report)
        else:
            usage_view.print_report(report)

    if not connection.url:
        show(_from_store(connection, cast("Grouping", by), since))
        return

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        url = httpx.URL(f"{gateway.admin}/admin/usage", params={"by": by, "since": since})
        show(api_client.get(client, str(url), ("rows",), token=gateway.required_token()))
        return 0

    run_admin_command("usage", connection, command)


def _from_store(connection: Connection, by: Grouping, since: str) -> dict[str, Any]:
    ledger, until = connection.settings.ledger, time.time()
    try:
        begin = parse_since(since, until, zone_of(ledger.timezone))
        database = Database(connection.settings.store.url, state_directory(connection.settings))
    except (InvalidPeriod, InvalidStoreUrl) as error:
        print_error(f"cortex usage: {error}")
        sys.exit(REFUSED)
    query = UsageQuery(by, begin, until, timezone=ledger.timezone)
    try:
        rows = database.read(partial(read_usage_report, query=query))
    except StoreUnavailable as error:
        print_error(f"cortex usage: {error}; --url asks a running gateway")
        sys.exit(NO_STORE)
    finally:
        database.close()
    rows_json = [asdict(row) for row in rows]
    return {"by": by, "since": begin, "until": until, "currency": ledger.currency, "rows": rows_json}
