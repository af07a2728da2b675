"""`cortex explain`: asks a gateway's admin API about one request."""

from __future__ import annotations

import sys

import click

from gateway.cli import api_client
from gateway.cli.api_client import ApiError, NoToken
from gateway.cli.connection import Connection
from gateway.cli.connection_options import asking_options
from gateway.cli.options import json_option
from gateway.cli.terminal import print_error, print_json
from gateway.cli.views import explain_view

__all__ = ["explain"]

NOT_FOUND, UNREACHABLE = 1, 2  # exit codes


@click.command()
@click.argument("request_id")
@asking_options
@json_option
def explain(request_id: str, *, connection: Connection, as_json: bool) -> None:
    """Explain what happened to a request.

    Shows which neurons it was sent to and why, what it waited for, and how it ended. REQUEST_ID is the x-request-id
    header of its answer. If several requests had this id, each is explained. Exit code 1 if the gateway remembers
    no such request, 2 if it does not answer.
    """
    gateway = connection.address_if_possible()
    url = f"{gateway.admin}/admin/requests/{api_client.segment(request_id)}"
    try:
        with api_client.open_client() as client:
            body = api_client.get(client, url, ("requests",), token=gateway.required_token())
    except NoToken as error:
        print_error(f"cortex explain: {error}")
        sys.exit(NOT_FOUND)
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
