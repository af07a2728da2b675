"""`cortex drain` and `cortex undrain`: ask a gateway to stop or resume sending requests to a neuron."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from gateway.cli import api_client
from gateway.cli.api_client import ApiError
from gateway.cli.options import admin_option, token_option
from gateway.cli.terminal import print_error
from gateway.cli.views.drain_view import progress_lines

__all__ = ["drain", "undrain"]

POLL_S = 0.5
REFUSED, UNREACHABLE, INTERRUPTED = 1, 2, 130  # exit codes


@click.command()
@click.argument("neuron")
@click.option(
    "--move", is_flag=True, help="First load the models that only this neuron has on others; it serves them until then."
)
@admin_option
@token_option
def drain(neuron: str, admin: str, token: str, *, move: bool) -> None:
    """Drain a neuron: send it no new requests.

    Returns when its running requests have ended. It stays drained, even if it restarts, until `cortex undrain` or
    until the gateway restarts. Exit code 1 if the gateway refuses, or cannot move a model: then the neuron is not
    drained. 2 if the gateway does not answer. Ctrl-C ends the waiting, not the drain.
    """
    try:
        sys.exit(_run(admin, token, neuron, "drain", {"move": move}))
    except KeyboardInterrupt:
        print_error(f"the drain continues; `cortex undrain {neuron}` ends it")
        sys.exit(INTERRUPTED)


@click.command()
@click.argument("neuron")
@admin_option
@token_option
def undrain(neuron: str, admin: str, token: str) -> None:
    """Send requests to a drained neuron again.

    Exit code 1 if the gateway refuses, 2 if it does not answer.
    """
    sys.exit(_run(admin, token, neuron, "undrain", {}))


def _run(admin: str, token: str, neuron: str, action: str, body: Mapping[str, Any]) -> int:
    """Post the action; print its progress until it is complete; return the exit code."""
    url = f"{admin.rstrip('/')}/admin/nodes/{quote(neuron, safe='')}"
    printed: set[str] = set()

    def print_progress(view: Mapping[str, Any]) -> None:
        for line in progress_lines(view):
            if line not in printed:
                printed.add(line)
                click.echo(line)

    try:
        with api_client.open_client() as client:
            view = api_client.post(client, f"{url}/{action}", ("state",), token=token, data=json.dumps(body).encode())
            while view["state"] in {"moving", "draining"} and action == "drain":
                print_progress(view)
                time.sleep(POLL_S)
                view = api_client.get(client, url, ("state",), token=token)
    except ApiError as error:
        hint = "; --admin sets the address" if error.message is None else ""
        print_error(f"cortex {action}: {error}{hint}")
        return UNREACHABLE if error.status is None else REFUSED
    print_progress(view)
    return REFUSED if action == "drain" and view["state"] == "open" else 0
