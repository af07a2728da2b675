"""`cortex explain`: asks a gateway's admin API about one request."""

from __future__ import annotations

import sys
from urllib.parse import quote

import click

from gateway.cli import api_client
from gateway.cli.api_client import ApiError
from gateway.cli.options import admin_option, json_option, token_option
from gateway.cli.terminal import print_error, print_json
from gateway.cli.views import explain_view

__all__ = ["explain"]

NOT_FOUND, UNREACHABLE = 1, 2  # exit codes


@click.command()
@click.argument("request_id")
@admin_option
@token_option
@json_option
def explain(request_id: str, admin: str, token: str, *, as_json: bool) -> None:
    """Explain what happened to a request.

    Shows which neurons it was sent to and why, what it waited for, and how it ended. REQUEST_ID is the x-request-id
    header of its answer. If several requests had this id, each is explained. Exit code 1 if the gateway remembers
    no such request, 2 if it does not answer.
    """
    url = f"{admin.rstrip('/')}/admin/requests/{quote(request_id, safe='')}"
    try:
        with api_client.open_client() as client:
            body = api_client.get(client, url, ("requests",), token=token)
    except ApiError as error:
        if error.message is None:
            print_error(f"cortex explain: {error}; --admin sets the address")
            sys.exit(UNREACHABLE)
        print_error(f"cortex explain: {error.message}")
        sys.exit(NOT_FOUND)
    if as_json:
        print_json(body)
    else:
        explain_view.print_requests(body["requests"])
